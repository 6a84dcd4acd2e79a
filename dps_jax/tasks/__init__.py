"""Verifiable tasks: any number of random problems, scoring on the device, and solutions for a supervised warm-up.

`build` returns a `Task` by its name. Its problems are token sequences over a small vocabulary.
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


def register(factory: Callable[..., Task]) -> Callable[..., Task]:
    """Registers a task of your own under the name of its factory, for `build` and training configs; a decorator.

    Args:
      factory: function (**options) -> `Task`. Training runs always pass `format_reward`; they also pass
        `levels` and `test_levels` if the config sets `levels`, and `test_levels` if it sets only this option.

    Returns:
      The factory.

    Raises:
      ValueError: if another task has this name, or if the factory is not a function with a name.

    Example:
      >>> from dps_jax import tasks
      >>> @tasks.register
      ... def easy_steps(format_reward=0.0):
      ...     return tasks.steps(levels=[(1, 1, 1.0)], format_reward=format_reward)
      >>> tasks.build("easy_steps").group_names
      ('1 operations from 1 families',)
      >>> del tasks.TASKS["easy_steps"]
    """
    TASKS[_checks.check_factory(factory, TASKS, "task")] = factory
    return factory


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
      >>> problems = task.make_problems(0, "train", np.arange(100))  # seed, split, indices
      >>> problems.prompts.shape, task.group_names
      ((100, 10), ('3 operations from 4 families',))
    """
    _checks.check_choice("name", name, TASKS)
    _checks.check_options(f"options of task {name!r}", options, list(inspect.signature(TASKS[name]).parameters))
    return TASKS[name](**options)


__all__ = [
    "TASKS",
    "Problems",
    "Score",
    "Slips",
    "Task",
    "build",
    "chain_sum",
    "countdown",
    "geometry",
    "register",
    "steps",
]
