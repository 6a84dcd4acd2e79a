"""The policies of a run as files, the last and the best: what training is for."""

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
    """How the policies of a run are written.

    Attributes:
      last: name of the policy at the end, in the folder of the run; a file or a folder.
      best: that of the best by test accuracy.
      write: (path, params, rounds, test accuracy or None) -> checksum of what was written.
      checksum: path -> checksum of what is there. Raises OSError if nothing is.
    """

    last: str
    best: str
    write: Callable[[Path, Any, int, float | None], int]
    checksum: Callable[[Path], int]


def of_task(task: tasks.Task, policy: Callable[[Any], models.Decoder], options: Mapping[str, Any]) -> Policies:
    """Returns how policies of a task are written: as files that `--model.weights` accepts.

    Args:
      task: they are trained on.
      policy: params -> the model.
      options: of the task, of JSON types.
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
    """Makes sure that the best policy is on disk, as it was written.

    Args:
      path: of the policy.
      best: its `round` and `checksum`.
      checksum: of `Policies`.
      rewrite: writes it again from a checkpoint, and returns the checksum; or None without an intact checkpoint of it.

    Raises:
      ValueError: if it is not there, and cannot be written again.
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
