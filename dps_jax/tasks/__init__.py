"""Verifiable tasks: problems without end, a scorer that runs on the device, and solutions to warm up on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from dps_jax import _checks
from dps_jax.tasks._chain_sum import chain_sum
from dps_jax.tasks._countdown import countdown
from dps_jax.tasks._geometry import geometry
from dps_jax.tasks._slips import Slips
from dps_jax.tasks._steps import steps
from dps_jax.tasks._task import Problems, Score, Task

TASKS: dict[str, Callable[..., Task]] = {
    "chain_sum": chain_sum,
    "countdown": countdown,
    "geometry": geometry,
    "steps": steps,
}


def build(name: str, **options: Any) -> Task:
    """Returns a task by its name.

    Raises:
      ValueError: for an unknown name or option, with the known ones, or an option out of range.
    """
    _checks.check_choice("name", name, TASKS)
    _checks.check_options(f"options of task {name!r}", options, list(inspect.signature(TASKS[name]).parameters))
    return TASKS[name](**options)


__all__ = ["TASKS", "Problems", "Score", "Slips", "Task", "build", "chain_sum", "countdown", "geometry", "steps"]
