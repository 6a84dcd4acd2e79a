"""The trace that a run records round by round.

It may be ahead of the checkpoint a run is resumed from, never behind it if it is saved first. Opening it with the
restored round drops what the run will do again, so that an interrupted run writes what an uninterrupted one would
have written.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dps_jax import _checks
from dps_jax.traces._files import read_trace, write_trace
from dps_jax.traces._format import Trace, checked_trace, concatenate


class TraceLog:
    """Collects the trace of a run in memory, and writes it as a whole."""

    def __init__(self, path: Path | str, *, start_round: int = 0, checksum: int | None = None):
        """Starts an empty trace, or goes on with that of the rounds before `start_round`.

        Args:
          path: of the file: `.npz`, `.parquet` or `.csv`.
          start_round: the first round that will be appended.
          checksum: of the trace when that round was the next; what was written since is dropped.

        Raises:
          ValueError: if the file does not reach up to `start_round`, is no trace, or is not the one of the checksum.
        """
        self._path = Path(path)
        start_round = _checks.check_int("start_round", start_round, at_least=0)
        self._parts: list[Trace] = []
        if start_round == 0:
            return
        remedy = "put the file back, or start anew in another directory"
        if not self._path.exists():
            raise ValueError(
                f"{self._path}: expected the trace of rounds 0 to {start_round - 1}, got no file; {remedy}"
            )
        trace = read_trace(self._path)
        last_round = int(trace.rounds.max(initial=-1))
        # The last rounds may have no rows, where no completion had a score; a checksum knows.
        if checksum is None and last_round < start_round - 1:
            raise ValueError(
                f"{self._path}: expected the trace of rounds 0 to {start_round - 1}, got {last_round} as the last; "
                f"{remedy}"
            )
        self._parts.append(trace.take(trace.rounds < start_round))
        if checksum is not None and self.checksum() != checksum:
            raise ValueError(
                f"{self._path}: expected rounds 0 to {start_round - 1} as they were when the checkpoint was written, "
                f"got others; {remedy}"
            )

    def append(
        self, round_index: int, prompt_ids: Any, successes: Any, counts: Any, inclusion_probs: Any = None
    ) -> None:
        """Adds one round.

        Args:
          round_index: of the round, >= 0.
          prompt_ids: int [P], >= 0; repeats are rows of their own.
          successes: correct completions, int [P].
          counts: completions, int [P]; entries of 0 are padding.
          inclusion_probs: with which each prompt was picked out of all, [P], in (0, 1], or None; the trace has them if
            all rounds do.

        Raises:
          ValueError: for arrays of different lengths, a negative round or id, successes outside [0, count],
            or an inclusion_prob outside (0, 1].
        """
        ids, counts = np.asarray(prompt_ids), np.asarray(counts)
        if ids.ndim != 1 or counts.shape != ids.shape or np.shape(successes) != ids.shape:
            shapes = [list(np.shape(column)) for column in (prompt_ids, successes, counts)]
            raise ValueError(f"prompt_ids, successes, counts: expected three arrays [P], got shapes {shapes}")
        if inclusion_probs is not None and np.shape(inclusion_probs) != ids.shape:
            shape = list(np.shape(inclusion_probs))
            raise ValueError(f"inclusion_probs: expected an array [{ids.size}] or None, got shape {shape}")
        is_used = counts > 0
        solved, counts = _checks.check_outcomes(np.asarray(successes)[is_used], counts[is_used], int(is_used.sum()))
        ids = _checks.check_ids("prompt_ids", ids[is_used], np.iinfo(np.int64).max)
        round_index = _checks.check_int("round_index", np.asarray(round_index).tolist(), at_least=0)
        columns = (np.full(ids.shape, round_index), ids, solved, counts)
        probs = None if inclusion_probs is None else np.asarray(inclusion_probs)[is_used]
        self._parts.append(checked_trace("append", columns, probs))

    def trace(self) -> Trace:
        """Returns the trace so far."""
        self._parts = [concatenate(self._parts)]
        return self._parts[0]

    def checksum(self) -> int:
        """Returns the CRC-32 of all columns so far."""
        value = 0
        for column in self.trace():
            if column is not None:
                value = zlib.crc32(np.ascontiguousarray(column).tobytes(), value)
        return value

    def save(self) -> None:
        """Writes the trace so far, atomically; call it before saving a checkpoint.

        Raises:
          OSError: if the disk is full; the file is as it was.
        """
        write_trace(self._path, self.trace())
