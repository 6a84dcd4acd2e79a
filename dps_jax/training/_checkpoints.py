"""Checkpoints: the whole state of a run, written to disk in the background, atomically and with checksums.

    directory/round_0000000120/state/         written by orbax
    directory/round_0000000120/manifest.json  written last: facts, leaves, and every file's size and checksum

orbax commits by a rename and does not verify what it reads later: array bytes that have changed on disk are read
without an error, and its `CheckpointManager` lists a step whose write has failed. This module therefore uses the lower
layer, `AsyncCheckpointer`. It writes to a directory that gets its final name when all its files are on disk, and
verifies checksums when it reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dps_jax import _checks, _files
from dps_jax.training import _manifest, _state_io

_STATE = "state"
_NAME = re.compile(r"round_(\d{10})(\.replaced)?")
_PENDING = re.compile(r"round_\d{10}(\.replaced)?\.pending")


class CheckpointError(RuntimeError):
    """Raised if a checkpoint cannot be written, or if no checkpoint of the run being resumed can be read.

    Example:
      >>> from dps_jax import training
      >>> def train_or_explain(config):
      ...     try:
      ...         return training.train(config)
      ...     except training.CheckpointError as error:
      ...         return f"set resume=False: {error}"
      >>> issubclass(training.CheckpointError, RuntimeError)
      True
    """


class Restored(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
      round_index: round index, as given to `save`.
      state: state of the run, with the tree structure of the template.
      facts: facts, as given to `save`.
    """

    round_index: int
    state: Any
    facts: dict[str, Any]


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _pending(path: Path) -> Path:
    """Returns the name of a folder that is not a checkpoint yet, or no longer; leftovers of that name are removed."""
    return path.with_name(f"{path.name}.pending")


def _remove(path: Path) -> None:
    """Removes a checkpoint directory; a file or link of its name was not made here and is renamed to NAME.stray-1."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        _files.move_aside(path, "stray")


class Checkpoints:
    """The checkpoints of one run; one run writes, others may read.

    If the process is killed, all earlier checkpoints stay intact, and the one being written is complete or ignored.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        keep_last: int = 2,
        keep_best: bool = True,
        report: Callable[[str], None] = _warn,
    ):
        """Opens a directory of checkpoints; nothing is written before `save`.

        Args:
          directory: directory of all checkpoints of the run.
          keep_last: number of latest checkpoints to keep.
          keep_best: whether the checkpoint with the highest score is kept, too.
          report: function that is called with messages about skipped checkpoints and failures that do not end the run;
            by default they are warnings.

        Raises:
          ValueError: for `keep_last` below 1.
        """
        # orbax requires an absolute path.
        self._directory = Path(directory).absolute()
        self._keep_last = _checks.check_int("keep_last", keep_last, at_least=1)
        self._keep_best = keep_best
        self._report = report
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: tuple[Path, futures.Future[None]] | None = None
        self._damaged: set[Path] = set()

    def save(
        self, round_index: int, state: Any, facts: Mapping[str, Any] | None = None, score: float | None = None
    ) -> None:
        """Starts writing a checkpoint, and returns when the state has been copied to the host and may be donated.

        When the checkpoint is complete, all others are removed except for the last `keep_last` and the best. Damaged
        checkpoints are removed, and so are checkpoints of later rounds, which the run will repeat.

        Args:
          round_index: number of rounds done.
          state: a tree of arrays, typed keys and scalars.
          facts: further entries, of JSON types.
          score: score that decides which checkpoint is the best; None without one.

        Raises:
          ValueError: for facts that are not of JSON types, or a score that is not finite.
          CheckpointError: if this checkpoint or the one before it could not be written.
        """
        round_index = _checks.check_int("round_index", round_index, at_least=0, at_most=10**10 - 1)
        facts = _manifest.check_json("facts", facts or {})
        if score is not None and not np.isfinite(score):
            raise ValueError(f"score: expected a finite number or None, got {score!r}")
        self.wait()
        leaves = _state_io.named_leaves(state)
        entries = {
            "round_index": round_index,
            "score": None if score is None else float(score),
            "facts": facts,
            **_state_io.describe(leaves),
        }
        final = self._directory / f"round_{round_index:010d}"
        pending = _pending(final)
        try:
            if jax.process_index() == 0:
                self._directory.mkdir(parents=True, exist_ok=True)
                for leftover in list(self._directory.iterdir()):
                    if _PENDING.fullmatch(leftover.name):
                        _remove(leftover)
                self._check_space(leaves)
                pending.mkdir()
            self._checkpointer.save(pending / _STATE, args=ocp.args.PyTreeSave(_state_io.to_save(leaves)))
        except (OSError, ValueError, RuntimeError) as error:
            raise self._save_error(final, error) from error
        self._saving = (final, self._thread.submit(self._finish, pending, final, entries))

    def _check_space(self, leaves: Mapping[str, Any]) -> None:
        """Raises OSError if the disk is too full; orbax would fail later, with a long traceback."""
        needed = _state_io.num_bytes(leaves)
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            reason = f"{os.strerror(errno.ENOSPC)}: {free:,} bytes are free and {needed:,} are needed"
            raise OSError(errno.ENOSPC, reason)

    def _finish(self, pending: Path, final: Path, entries: dict[str, Any]) -> None:
        """Completes a checkpoint after orbax has written the state; runs in a thread."""
        self._checkpointer.wait_until_finished()
        if jax.process_index() != 0:
            return
        _manifest.write(pending, entries)
        _files.sync_directory(pending)
        replaced = final.with_name(f"{final.name}.replaced")
        if final.is_dir() and not final.is_symlink():
            if os.path.lexists(replaced):
                _remove(replaced)
            os.rename(final, replaced)
        elif os.path.lexists(final):
            _remove(final)
        os.rename(pending, final)
        _files.sync_directory(self._directory)
        self._prune(final, entries["round_index"])

    def _prune(self, saved: Path, round_index: int) -> None:
        """Removes checkpoints that need not be kept after another one was saved."""
        scores: dict[Path, float | None] = {}
        for found_round, path in self._candidates():
            is_damaged = path in self._damaged - {saved}
            if found_round <= round_index and not is_damaged and path.suffix == "" and not path.is_symlink():
                try:
                    scores[path] = _manifest.read(path)["score"]
                except ValueError as error:
                    self._report(f"{path}: removed, {error}")
        kept = set(list(scores)[: self._keep_last])
        if self._keep_best:
            scored = [path for path in scores if scores[path] is not None]
            kept |= set(sorted(scored, key=lambda path: (scores[path], path.name))[-1:])
        for _, path in self._candidates():
            if path not in kept and not path.is_symlink():
                # Renamed first, since a partly removed directory would look like a damaged checkpoint.
                removed = _pending(path)
                os.rename(path, removed)
                _remove(removed)
        self._damaged.clear()

    def wait(self) -> None:
        """Waits until the checkpoint that `save` started is on disk.

        Raises:
          CheckpointError: if the checkpoint could not be written; earlier checkpoints are intact.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        path, future = saving
        try:
            future.result()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._save_error(path, error) from error

    def _save_error(self, path: Path, error: Exception) -> CheckpointError:
        with contextlib.suppress(OSError):
            _remove(_pending(path))  # frees its space
        full = _files.full_disk_reason(error)
        remedy = "repair what is wrong there" if full is None else "free space there"
        rounds = ", ".join(str(index) for index in self.rounds()) or "none"
        return CheckpointError(
            f"{path}: expected to write a checkpoint, got: {full or error}. Earlier checkpoints are intact "
            f"(rounds: {rounds}); {remedy} and run the same again to continue from the latest"
        )

    def rounds(self) -> tuple[int, ...]:
        """Returns the rounds of the checkpoints on disk, oldest first; they are not checked."""
        return tuple(sorted({index for index, _ in self._candidates()}))

    def _candidates(self) -> list[tuple[int, Path]]:
        """Returns rounds and paths of all directories with the name of a checkpoint, latest first."""
        try:
            paths = list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"{self._directory}: expected the directory of checkpoints, got {error.strerror}; move away "
                "what is there"
            ) from error
        matches = [(_NAME.fullmatch(path.name), path) for path in paths if path.is_dir()]
        # A checkpoint that was being replaced comes after its replacement, which is of the same round.
        found = [(int(match[1]), match[2] is None, path) for match, path in matches if match is not None]
        return [(index, path) for index, _, path in sorted(found, reverse=True)]

    def restore(self, template: Any, *, is_best: bool = False) -> Restored | None:
        """Returns the latest intact checkpoint, or None where there is no checkpoint at all.

        Damaged checkpoints are skipped, and `report` is called with a message about each.

        Args:
          template: structure of the state, such as `jax.eval_shape` returns. A leaf with a sharding is restored with
            this sharding, and all others to the default device.
          is_best: whether to restore the checkpoint with the highest score instead of the latest.

        Raises:
          ValueError: if the checkpoint has another structure; the message names the first leaf that differs.
          CheckpointError: if there are checkpoints, and all of them are damaged.
        """
        self.wait()
        targets = _state_io.named_leaves(template)
        candidates = self._candidates()
        if is_best:
            candidates = self._by_score(candidates)
        damages = []
        for _, path in candidates:
            try:
                entries = _manifest.read_checked(path)
            except ValueError as error:
                damages.append(f"{path.name}: {error}")
                self._damaged.add(path)
                self._report(f"{path}: this checkpoint is damaged and is skipped: {error}")
                continue
            _state_io.check_structure(path, entries, targets)
            leaves = _state_io.read(path / _STATE, entries, targets)
            state = jax.tree.unflatten(jax.tree.structure(template), leaves)
            return Restored(round_index=entries["round_index"], state=state, facts=entries["facts"])
        if damages:
            raise CheckpointError(
                f"{self._directory}: expected an intact checkpoint, got {len(damages)} damaged ({'; '.join(damages)}); "
                "put one back from a copy, or remove this directory to start anew"
            )
        return None

    def _by_score(self, candidates: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
        """Returns the candidates, best first; those without a readable score come last."""

        def rank(candidate: tuple[int, Path]) -> tuple[float, int]:
            try:
                score = _manifest.read(candidate[1])["score"]
            except ValueError:
                score = None  # `restore` reports the damage
            return -np.inf if score is None else score, candidate[0]

        return sorted(candidates, key=rank, reverse=True)

    def close(self) -> None:
        """Waits until everything is written, and ends the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._checkpointer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except CheckpointError as error:
            if kind is None:
                raise
            self._report(str(error))  # the exception that is being raised is more informative
