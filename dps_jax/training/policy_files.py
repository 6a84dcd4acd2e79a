"""The policies of a run as .safetensors files, the last and the best: what training is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dps_jax import _files, models, tasks
from dps_jax.models import weights

LAST = "policy.safetensors"
BEST = "policy_best.safetensors"


def write(
    path: Path,
    task: tasks.Task,
    model: models.Decoder,
    *,
    num_rounds: int,
    accuracy: float | None,
    options: Mapping[str, Any],
) -> int:
    """Writes a policy that `--model.weights` accepts, and returns the checksum of the file.

    Args:
      path: of the file.
      task: it was trained on.
      model: the policy.
      num_rounds: of training.
      accuracy: on the held-out problems, if it was measured then.
      options: of the task, of JSON types.
    """
    facts = {
        "task": task.name,
        "vocabulary": list(task.vocabulary),
        "task_options": dict(options),
        "rounds": num_rounds,
        "test_accuracy": accuracy,
    }
    weights.save(model, path, facts)
    return _files.checksum(path)


def ensure_best(path: Path, best: Mapping[str, Any], rewrite: Callable[[], int | None]) -> None:
    """Makes sure that the best policy is on disk, as it was written.

    Args:
      path: of the file.
      best: its `round` and `checksum`.
      rewrite: writes it again from a checkpoint, and returns the checksum; or None without an intact checkpoint of it.

    Raises:
      ValueError: if it is not there, and cannot be written again.
    """
    try:
        found = _files.checksum(path)
    except OSError:
        found = None
    if found == best["checksum"] or rewrite() is not None:
        return
    state = "is missing" if found is None else "was changed"
    raise ValueError(
        f"{path}: expected the policy after {best['round']} rounds, the best of the run, but the file {state}, and no "
        "intact checkpoint of that round is left; put the file back from a copy. All other results were written"
    )
