"""The last and the best policy of a run as files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dps_jax import _files, models, tasks
from dps_jax.models import _weights

LAST = "policy.safetensors"
BEST = "policy_best.safetensors"


class Policies(NamedTuple):
    """The functions that write the policies of a run.

    Attributes:
      last: name of the file or folder of the final policy, in the folder of the run.
      best: the same for the best policy by test accuracy.
      write: (path, params, rounds, test accuracy or None) -> checksum of what was written.
      checksum: path -> checksum of the policy there. Raises OSError if there is none.
    """

    last: str
    best: str
    write: Callable[[Path, Any, int, float | None], int]
    checksum: Callable[[Path], int]


def of_task(task: tasks.Task, policy: Callable[[Any], models.Decoder], options: Mapping[str, Any]) -> Policies:
    """Returns the functions for policies of a task, which write files that `--model.weights` accepts.

    Args:
      task: task that the policies are trained on.
      policy: params -> the model.
      options: options of the task, of JSON types.
    """
    facts = {"task": task.name, "vocabulary": list(task.vocabulary), "task_options": dict(options)}
    return Policies(LAST, BEST, functools.partial(_write, policy, facts), _files.checksum)


def _write(
    policy: Callable[[Any], models.Decoder],
    facts: Mapping[str, Any],
    path: Path,
    params: Any,
    num_rounds: int,
    accuracy: float | None,
) -> int:
    """Writes a policy, and returns the checksum of the file; see `Policies.write`."""
    _weights.save(policy(params), path, {**facts, "rounds": num_rounds, "test_accuracy": accuracy})
    return _files.checksum(path)


def ensure_best(
    path: Path, best: Mapping[str, Any], checksum: Callable[[Path], int], rewrite: Callable[[], int | None]
) -> None:
    """Makes sure that the file of the best policy is intact.

    Args:
      path: path of the policy.
      best: its `round` and `checksum`.
      checksum: function of `Policies`.
      rewrite: function that writes it again from a checkpoint and returns the checksum; None without an intact
        checkpoint.

    Raises:
      ValueError: if the file is missing or damaged and cannot be written again.
    """
    try:
        found = checksum(path)
    except OSError:
        found = None
    if found == best["checksum"] or rewrite() is not None:
        return
    state = "is missing" if found is None else "was changed"
    raise ValueError(
        f"{path}: expected the policy after {best['round']} rounds, the best of the run, but the file {state}, and no "
        "intact checkpoint of that round is left; put the file back from a copy. All other results were written"
    )
