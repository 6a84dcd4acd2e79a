"""What a run writes down round by round: metrics as JSON lines.

The log may be ahead of the checkpoint a run is resumed from, never behind it if it is synced first. Opening it with
the restored round drops what the run will do again, so that an interrupted run writes what an uninterrupted one would
have written. `dps_jax.traces.TraceLog` does the same for the trace.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dps_jax import _checks, _files


def _to_json(name: str, value: Any) -> Any:
    """Returns a value as JSON knows it: arrays as lists, float32 by its few digits, NaN and infinities as None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _to_json(f"{name}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(name, entry) for entry in value]
    array = np.asarray(value)
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name}: expected numbers, text, lists or dictionaries of them, got {value!r}")
    if array.dtype != np.float64:
        array = array.astype(np.float32).astype(str).astype(np.float64)
    return _to_json(name, array.tolist())


def _parse_metrics(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns lines and what they say, without a last line that a kill left unfinished."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    unfinished = lines.pop()  # empty, unless the last line has no end
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("round"), int):
            records.append((line, record))
        elif number < len(lines) or unfinished:
            raise ValueError(
                f"{path}: expected a JSON object with an integer `round` in line {number}, got {line[:60]!r}; "
                "remove that line"
            )
    return records


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Returns the records of a metrics file, oldest first; an unfinished last line is left out, no file has none.

    Raises:
      ValueError: for any other line that is not a JSON object with an integer `round`.
    """
    return [record for _, record in _parse_metrics(Path(path))]


class MetricsLog:
    """Appends one JSON object per line, each on disk for a reader or after a kill as soon as `append` returns."""

    def __init__(self, path: Path | str, *, start_round: int = 0, tensorboard_directory: Path | str | None = None):
        """Opens the log, keeping what it has of rounds before `start_round`.

        Args:
          path: of the file; its directory is made.
          start_round: the first round that will be appended.
          tensorboard_directory: where to write the numbers for TensorBoard too, if `tensorboardX` is installed.

        Raises:
          ValueError: if the file has a damaged line, other than an unfinished last one.
        """
        self._path = Path(path)
        start_round = _checks.check_int("start_round", start_round, at_least=0)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line, record in _parse_metrics(self._path) if record["round"] < start_round]
        content = b"".join(line + b"\n" for line in kept)
        if not self._path.exists() or self._path.stat().st_size != len(content):
            _files.write_atomically(self._path, content)
        # Unbuffered: after a failed write nothing is left over to be written later.
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        self._writer = _tensorboard_writer(tensorboard_directory, start_round)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; scalars and arrays of NumPy and JAX are welcome, NaN and infinities become null.

        Raises:
          ValueError: without an integer `round`, or for a value that is no number, text, list or dictionary.
          OSError: if the disk is full; the file ends with the record before.
        """
        row = _to_json("record", record)
        _checks.check_int("round", row.get("round"), at_least=0)
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise _files.write_error(error, self._path) from error
        if self._writer is not None:
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, row["round"])

    def sync(self) -> None:
        """Makes everything appended survive a power cut; call it before saving a checkpoint."""
        os.fsync(self._file.fileno())
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Syncs and closes the files."""
        if not self._file.closed:
            self.sync()
            self._file.close()
            if self._writer is not None:
                self._writer.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tensorboard_writer(directory: Path | str | None, start_round: int) -> Any:
    """Returns a TensorBoard writer, or None where none is wanted or `tensorboardX` is not installed."""
    if directory is None:
        return None
    try:
        tensorboardx = importlib.import_module("tensorboardX")
    except ModuleNotFoundError:
        return None
    # What was drawn of the rounds that will be done again is hidden by `purge_step`.
    return tensorboardx.SummaryWriter(str(directory), purge_step=start_round if start_round else None)


def _scalars(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Returns the numbers of a record with their names, those of dictionaries as name/key."""
    scalars = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            scalars += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key != "round":
            scalars.append((prefix + key, value))
    return scalars
