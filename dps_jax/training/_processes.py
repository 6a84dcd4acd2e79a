"""A run of several processes, on one host or many: all of them compute, and the first writes the files.

Every process runs the same rounds and gets the same numbers. All processes write checkpoints together. All other files
are kept from the first process only; the other processes write theirs to temporary folders, which are removed at the
end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dps_jax.training import _folder as folders
from dps_jax.training._host_rollout import GradeFn, PendingScore, Score, Trimmed
from dps_jax.training._mesh import MeshConfig
from dps_jax.training._run_config import RunConfig

# Files that a resumed run reads.
_READ = ("config.json", "metrics.jsonl", "trace.npz")


def connect(config: MeshConfig) -> None:
    """Connects the processes of a run, if there are several; must be called before any other use of JAX."""
    if config.coordinator is None or jax.distributed.is_initialized():
        return
    if config.coordinator == "auto":
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(config.coordinator, config.num_processes, config.process_index)
    # Gloo, which JAX uses on CPUs, connects the processes at their first exchange, and fails if one of them is half a
    # minute late. Hence an exchange at once, before some processes have spent a long time reading or compiling.
    if are_several():
        multihost_utils.sync_global_devices("all processes are there")


def are_several() -> bool:
    """Returns whether this process is one of several."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process is the one that writes the files of the run."""
    return jax.process_index() == 0


def any_of_all(value: bool) -> bool:
    """Returns whether a condition holds in any of the processes; all of them must call this."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(value)))) if are_several() else value


@contextlib.contextmanager
def opened(config: RunConfig, report: Callable[[str], None]) -> Iterator[RunConfig]:
    """Prepares the folder of a run, and yields the config with the folder that this process writes to.

    Raises:
      ValueError: see `_folder.opened`.
    """
    with contextlib.ExitStack() as stack:
        if is_first():
            stack.enter_context(folders.opened(config.folder, resume=config.resume, report=report))
        if are_several():
            multihost_utils.sync_global_devices("the folder of the run is open")
        own = config
        if not is_first():
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="dps_jax_"))
            own = dataclasses.replace(config, out_dir=Path(place))
            own.folder.mkdir()
            for name in _READ:
                if (config.folder / name).is_file():
                    shutil.copyfile(config.folder / name, own.folder / name)
        if are_several():
            multihost_utils.sync_global_devices("the files of the run are read")
        yield own


def shared_grading(grade: GradeFn) -> GradeFn:
    """Returns a function with which every process grades the completions of its own rows.

    All processes must call it with the same completions, and all get the same scores. For a single process, this is
    `grade` itself.
    """
    return _Shared(grade) if are_several() else grade


def _own_rows(num_rows: int) -> slice:
    """Returns the rows that this process grades; the last processes may have fewer than others, or none."""
    size = -(-num_rows // jax.process_count())
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def _of_all(own: Any, num_rows: int) -> Any:
    """Returns the rows of all processes, given the rows of this one."""
    size = -(-num_rows // jax.process_count())
    padded = lambda leaf: np.pad(leaf, [(0, size - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)])
    gathered = multihost_utils.process_allgather(jax.tree.map(padded, own), tiled=True)
    return jax.tree.map(lambda leaf: leaf[:num_rows], gathered)


class _PendingOfAll:
    """A chunk of which every process grades its own rows."""

    def __init__(self, own: PendingScore, num_rows: int):
        self._own, self._num_rows = own, num_rows

    def result(self) -> Score:
        """Returns the score of the whole chunk, when all processes have graded their rows."""
        own = self._own.result()
        # Rewards that are missing are NaN, as they are for `rl.assemble`.
        arrays = np.asarray(own.is_correct), np.asarray(own.rewards, np.float32)
        is_correct, rewards = _of_all(arrays, self._num_rows)
        names = sorted(own.failures)
        counts = multihost_utils.process_allgather(np.array([own.failures[name] for name in names], np.int32))
        failures = dict(zip(names, counts.reshape(-1, len(names)).sum(axis=0).tolist(), strict=True))
        return Score(is_correct, rewards, failures)


class _Shared:
    """The function that `shared_grading` returns."""

    def __init__(self, grade: GradeFn):
        self._grade = grade

    def __call__(self, ids: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> tuple[Trimmed, PendingScore]:
        rows = _own_rows(len(ids))
        trimmed, score = self._grade(ids[rows], tokens[rows], mask[rows])
        return Trimmed(*_of_all(tuple(trimmed), len(ids))), _PendingOfAll(score, len(ids))
