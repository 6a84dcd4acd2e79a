"""Predictors for replays of traces, by name or as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dps_jax import _checks, predictors
from dps_jax.traces import Trace
from dps_jax.traces.replay import Visits, visits_of
from dps_jax.types import Predictor

Method = str | Callable[[int], Predictor]


def builder(method: Any) -> Callable[[int], Predictor]:
    """Returns the function from a group size to a predictor.

    Raises:
      ValueError: for an unknown name; the message lists the known names.
    """
    if callable(method):
        own: Any = method
        return own
    _checks.check_choice("method", method, predictors.PREDICTORS)
    return lambda size: predictors.build(method, group_size=size)


def name_of(method: Any) -> str:
    """Returns the name of a method for a legend."""
    return (
        method if isinstance(method, str) else getattr(method, "__name__", "predicted").replace("<lambda>", "predicted")
    )


def checked_visits(trace: Any, num_prompts: int | None = None) -> Visits:
    """Returns the visits of a trace.

    Raises:
      ValueError: if `trace` is not a trace, and wherever `visits_of` raises it.
    """
    _checks.check_instance("trace", trace, Trace)
    if num_prompts is not None:
        num_prompts = _checks.check_int("num_prompts", num_prompts, at_least=1)
    return visits_of(trace, num_prompts)


def usual_size(visits: Visits) -> int:
    """Returns G, the most frequent number of completions of a visit."""
    sizes, frequency = np.unique(visits.counts, return_counts=True)
    return int(sizes[frequency.argmax()])
