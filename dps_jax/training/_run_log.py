"""The log of a run: metrics of every round as JSON lines.

The log may be ahead of the checkpoint that a run is resumed from. It is never behind, if it is synced before the
checkpoint is written. Opening it at the restored round drops later records, so that an interrupted run ends with the
log of an uninterrupted one. `dps_jax.traces.TraceLog` does the same for the trace.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks, _files


def _to_json(name: str, value: Any) -> Any:
    """Returns a value of JSON types: arrays as lists, float32 by its shortest digits, NaN and infinities as None."""
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


def to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record of JSON types; NaN and infinities are None.

    Raises:
      ValueError: for a value that is not a number, text, list or dictionary.
    """
    return _to_json("record", record)


def _parse_metrics(path: Path, content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns lines and their records, without a last line that a kill left unfinished."""
    lines = content.split(b"\n")
    unfinished = lines.pop()  # empty, unless the last line has no end
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and isinstance(record.get("round"), int):
            records.append((line, record))
        elif number < len(lines) or unfinished:
            raise ValueError(
                f"{path}: expected a JSON object with an integer `round` in line {number}, got {line[:60]!r}; "
                "remove that line"
            )
    return records


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    r"""Returns the records of a metrics file, one per round, oldest first.

    An unfinished last line is left out, so that the file of an active run can be read. A missing file has no records.

    Args:
      path: the file metrics.jsonl in the folder of a run.

    Raises:
      ValueError: for any other line that is not a JSON object with an integer `round`.

    Example:
      >>> from pathlib import Path
      >>> from dps_jax import training
      >>> _ = Path("metrics.jsonl").write_text('{"round": 1, "reward": 0.25}\n{"round": 2, "reward": 0.5}\n')
      >>> [record["reward"] for record in training.read_metrics("metrics.jsonl")]
      [0.25, 0.5]
    """
    return [record for _, record in _parse_metrics(Path(path), _read(Path(path)))]


class Position(NamedTuple):
    """A position in a log of metrics.

    Attributes:
      num_bytes: number of bytes up to it.
      checksum: CRC-32 of these bytes.
    """

    num_bytes: int
    checksum: int


def _kept(path: Path, start_round: int, position: Position | None) -> bytes:
    """Returns the contents of a log up to a position; nothing if the position is None.

    Raises:
      ValueError: if the file has changed before the position.
    """
    if position is None:
        return b""
    kept = _read(path)[: position.num_bytes]
    if Position(len(kept), zlib.crc32(kept)) != position:
        raise ValueError(
            f"{path}: expected the {start_round} rounds as they were when the checkpoint was written, got "
            f"{'fewer bytes' if len(kept) < position.num_bytes else 'other content'}; put the file back from a copy, "
            "or start anew in another folder"
        )
    return kept


class MetricsLog:
    """Appends JSON objects, one per line; a line can be read, and survives a kill, as soon as `append` returns."""

    def __init__(
        self,
        path: Path | str,
        *,
        start_round: int = 0,
        position: Position | None = None,
        tensorboard_directory: Path | str | None = None,
    ):
        """Opens an empty log, or continues the log of the rounds before `start_round`.

        Args:
          path: path of the file; its directory is created.
          start_round: the first round that will be appended.
          position: position of the log before that round; later records are dropped. None starts an empty log.
          tensorboard_directory: directory for event files of TensorBoard, if `tensorboardX` is installed, or None.

        Raises:
          ValueError: if the file has changed before `position`.
        """
        self._path = Path(path)
        start_round = _checks.check_int("start_round", start_round, at_least=0)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = _kept(self._path, start_round, position)
        if not self._path.exists() or self._path.stat().st_size != len(content):
            _files.write_atomically(self._path, content)
        self.position = Position(len(content), zlib.crc32(content))
        # Unbuffered: after a failed write nothing is left over to be written later.
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        self._writer = _tensorboard_writer(tensorboard_directory, start_round)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record, which may hold scalars and arrays of NumPy and JAX; NaN and infinities become null.

        Raises:
          ValueError: without an integer `round`, or for a value that is not a number, text, list or dictionary.
          OSError: if it cannot be written; the file then ends with the record before.
        """
        row = to_json(record)
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
        self.position = Position(size + len(line), zlib.crc32(line, self.position.checksum))
        if self._writer is not None:
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, row["round"])

    def sync(self) -> None:
        """Forces all appended records to the disk; call it before saving a checkpoint.

        Raises:
          OSError: if the records cannot be written to the disk.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _files.write_error(error, self._path) from error
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Syncs and closes the files; they are closed even if an OSError is raised."""
        if self._file.closed:
            return
        try:
            self.sync()
        finally:
            self._file.close()
            if self._writer is not None:
                self._writer.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:
                raise  # otherwise the exception that is being raised is more informative


def _tensorboard_writer(directory: Path | str | None, start_round: int) -> Any:
    """Returns a TensorBoard writer, or None where none is wanted or `tensorboardX` is not installed."""
    if directory is None:
        return None
    try:
        tensorboardx = importlib.import_module("tensorboardX")
    except ModuleNotFoundError:
        return None
    # `purge_step` hides the points of rounds that will be repeated.
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
