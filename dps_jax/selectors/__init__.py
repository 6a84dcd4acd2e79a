"""Which prompts next? One named method per file, all behind `types.Selector`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from dps_jax import _checks
from dps_jax.selectors.acquisition import OPTIONS
from dps_jax.selectors.arcsine import arcsine
from dps_jax.selectors.binomial_hmm import binomial_hmm
from dps_jax.selectors.dps import dps
from dps_jax.selectors.ema_variance import ema_variance
from dps_jax.selectors.history import history
from dps_jax.selectors.instructive import instructive
from dps_jax.selectors.last_state import last_state
from dps_jax.selectors.logit_kalman import logit_kalman
from dps_jax.selectors.mopps import mopps
from dps_jax.selectors.queue import queue
from dps_jax.selectors.shared_net import shared_net
from dps_jax.selectors.uniform import uniform
from dps_jax.types import Selector

SELECTORS: dict[str, Callable[..., Selector]] = {
    "arcsine": arcsine,
    "binomial_hmm": binomial_hmm,
    "dps": dps,
    "ema_variance": ema_variance,
    "history": history,
    "instructive": instructive,
    "last_state": last_state,
    "logit_kalman": logit_kalman,
    "mopps": mopps,
    "queue": queue,
    "shared_net": shared_net,
    "uniform": uniform,
}


def option_names(method: str) -> list[str]:
    """Returns the names of a method's options.

    Raises:
      ValueError: for an unknown method, with the known ones.
    """
    _checks.check_choice("method", method, SELECTORS)
    parameters = inspect.signature(SELECTORS[method]).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    takes_acquisition = len(names) + 1 < len(parameters)
    return names + [name for name in OPTIONS if takes_acquisition and name not in names]


def build(method: str, num_prompts: int, **options: Any) -> Selector:
    """Returns the selector of a method by its name.

    Raises:
      ValueError: for an unknown method or option, with the known ones, or an option out of range.
    """
    _checks.check_options(f"options of method {method!r}", options, option_names(method))
    return SELECTORS[method](num_prompts, **options)


__all__ = [
    "SELECTORS",
    "arcsine",
    "binomial_hmm",
    "build",
    "dps",
    "ema_variance",
    "history",
    "instructive",
    "last_state",
    "logit_kalman",
    "mopps",
    "option_names",
    "queue",
    "shared_net",
    "uniform",
]
