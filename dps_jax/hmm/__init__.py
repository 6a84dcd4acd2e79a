"""The hidden Markov model of solve states: emissions, transition priors, filter and smoother."""

from __future__ import annotations

from dps_jax.hmm import emissions, filtering, online, smoothing
from dps_jax.hmm._transitions import PRIOR_NAMES, TransitionPrior, named_concentration, resolve_prior
from dps_jax.hmm.emissions import Emission, binomial, exact

__all__ = [
    "PRIOR_NAMES",
    "Emission",
    "TransitionPrior",
    "binomial",
    "emissions",
    "exact",
    "filtering",
    "named_concentration",
    "online",
    "resolve_prior",
    "smoothing",
]

# Pickled objects refer to the public module, so they stay readable when private modules change.
TransitionPrior.__module__ = __name__
