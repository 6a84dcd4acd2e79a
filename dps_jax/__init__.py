"""Predicts, before any rollout, which training prompts will teach a reasoning model something."""

__version__ = "0.1.0"

from dps_jax import selectors
from dps_jax.hmm.emissions import Emission, binomial, exact
from dps_jax.hmm.transitions import TransitionPrior
from dps_jax.prompt_selector import PromptSelector
from dps_jax.types import Prediction, Predictor, Selector

__all__ = [
    "Emission",
    "Prediction",
    "Predictor",
    "PromptSelector",
    "Selector",
    "TransitionPrior",
    "binomial",
    "exact",
    "selectors",
]
