"""Records the trace of a run round by round.

If a run saves its trace before each checkpoint, the file has all rounds before the checkpoint from which the run is
resumed, and perhaps later rounds. `TraceLog(path, start_round=...)` drops the rounds that will be repeated, so that an
interrupted run writes the same trace as an uninterrupted one.
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
    """Collects the trace of a run in memory and writes it to a file.

    Example:
      >>> from dps_jax import traces
      >>> log = traces.TraceLog("trace.npz")
      >>> log.append(0, prompt_ids=[3, 7], successes=[8, 2], counts=[8, 8])
      >>> log.append(1, prompt_ids=[5, 7], successes=[0, 4], counts=[8, 8])
      >>> log.save()
      >>> resumed = traces.TraceLog("trace.npz", start_round=1)  # round 1 will be repeated
      >>> resumed.trace().prompt_ids.tolist()
      [3, 7]
    """

    def __init__(self, path: Path | str, *, start_round: int = 0, checksum: int | None = None):
        """Starts an empty trace, or continues the trace of the rounds before `start_round`.

        Args:
          path: path of the file, which ends in `.npz`, `.parquet` or `.csv`. It is read if `start_round` is above 0.
          start_round: first round that will be appended; rows of the file from this round on are dropped.
          checksum: result of `checksum()` for the rounds before `start_round`, to detect a different file; None
            skips the check.

        Raises:
          ValueError: if the file is missing, is not a trace, ends before round `start_round - 1` (without a checksum),
            or does not match the checksum.
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
        # The last rounds have no rows if no completion had a score, so only a checksum can detect missing rows.
        if checksum is None and last_round < start_round - 1:
            raise ValueError(
                f"{self._path}: expected the trace of rounds 0 to {start_round - 1}, got {last_round} as the last "
                f"round; {remedy}"
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
          round_index: index (>= 0) of the round.
          prompt_ids: ids of the visited prompts, int [P], >= 0; a repeated id is a row of its own.
          successes: number of correct completions of each prompt, int [P].
          counts: number of completions of each prompt, int [P]; entries with a count of 0 are padding and left out.
          inclusion_probs: probability with which each prompt was selected, [P], in (0, 1], or None. The trace has these
            probabilities only if all rounds with a row have them.

        Raises:
          ValueError: for arrays of different lengths, a negative round or id, successes outside [0, count], or an
            inclusion probability outside (0, 1].
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
        """Returns the trace of all rounds so far."""
        self._parts = [concatenate(self._parts)]
        return self._parts[0]

    def checksum(self) -> int:
        """Returns the CRC-32 of the columns of the trace so far, to be saved with a checkpoint."""
        value = 0
        for column in self.trace():
            if column is not None:
                value = zlib.crc32(np.ascontiguousarray(column).tobytes(), value)
        return value

    def save(self) -> None:
        """Writes the trace so far, atomically; call it before saving a checkpoint.

        Raises:
          OSError: if the file cannot be written; a file that was there before is unchanged.
        """
        write_trace(self._path, self.trace())
