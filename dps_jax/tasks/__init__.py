"""Verifiable tasks: problems drawn without limit, scoring on the device, and solutions for a warm-up.

A task is a `Task` from `build`. Its problems are token sequences of small vocabularies.
"""

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

    Args:
      name: name of a task in `TASKS`.
      **options: arguments of the function of this name, such as `levels` of `chain_sum`.

    Raises:
      ValueError: for an unknown name or option (the message lists the known ones), or an option out of range.

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task = tasks.build("steps", levels=[(3, 4, 1.0)])
      >>> problems = task.make_problems(0, "train", np.arange(100))
      >>> problems.prompts.shape == (100, task.prompt_length), len(task.group_names)
      (True, 1)
    """
    _checks.check_choice("name", name, TASKS)
    _checks.check_options(f"options of task {name!r}", options, list(inspect.signature(TASKS[name]).parameters))
    return TASKS[name](**options)


__all__ = ["TASKS", "Problems", "Score", "Slips", "Task", "build", "chain_sum", "countdown", "geometry", "steps"]
