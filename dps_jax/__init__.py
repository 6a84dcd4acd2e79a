"""Prompt selection for training reasoning models by RL: predicts, before any rollout, which prompts are informative."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dps_jax import (
        advise,
        grading,
        hmm,
        models,
        predictors,
        priors,
        report,
        rl,
        selectors,
        tasks,
        text,
        traces,
        training,
        viz,
    )
    from dps_jax.hmm._transitions import TransitionPrior
    from dps_jax.hmm.emissions import Emission, binomial, exact
    from dps_jax.prompt_selector import PromptSelector
    from dps_jax.types import Prediction, Predictor, Selector

__version__ = "0.1.0"

# Modules that define the public names. They are imported on first use, since some processes never need JAX.
_MODULES = {
    "Emission": "hmm",
    "Prediction": "types",
    "Predictor": "types",
    "PromptSelector": "prompt_selector",
    "Selector": "types",
    "TransitionPrior": "hmm",
    "binomial": "hmm",
    "exact": "hmm",
}

__all__ = [
    "Emission",
    "Prediction",
    "Predictor",
    "PromptSelector",
    "Selector",
    "TransitionPrior",
    "advise",
    "binomial",
    "exact",
    "grading",
    "hmm",
    "models",
    "predictors",
    "priors",
    "report",
    "rl",
    "selectors",
    "tasks",
    "text",
    "traces",
    "training",
    "viz",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"dps_jax.{_MODULES[name]}"), name)
    elif name in __all__:
        value = importlib.import_module(f"dps_jax.{name}")
    else:
        raise AttributeError(f"module 'dps_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
