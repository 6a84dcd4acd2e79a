"""Transition priors learned from logged traces with NumPyro.

`prepare` arranges a trace as arrays, `build` returns a model for it, and `fit` returns posterior draws of the model's
parameters together with a `TransitionPrior` for a selector. No other package of the library imports NumPyro.
"""

from dps_jax.priors._fit import METHODS, FitError, fit
from dps_jax.priors._models import MODELS, build, covariates, grouped, hierarchical, online, shared
from dps_jax.priors._outcomes import Outcomes, prepare
from dps_jax.priors._parts import EMISSIONS, PriorModel
from dps_jax.priors._refit import refit
from dps_jax.priors._result import FitResult
from dps_jax.priors._strength import log_predictive_probs, predicted_probs, tune

__all__ = [
    "EMISSIONS",
    "METHODS",
    "MODELS",
    "FitError",
    "FitResult",
    "Outcomes",
    "PriorModel",
    "build",
    "covariates",
    "fit",
    "grouped",
    "hierarchical",
    "log_predictive_probs",
    "online",
    "predicted_probs",
    "prepare",
    "refit",
    "shared",
    "tune",
]
