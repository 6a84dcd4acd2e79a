"""Fingerprints of data sets, to check that a resumed run has the rows that its selector was built for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# Largest number of rows that are hashed, at equal distances; enough to detect another order, or changes in a share of
# the rows.
_MAX_ROWS = 4096


def fingerprint(rows: Any, columns: tuple[str, ...] | None = None) -> str:
    """Returns a short text that depends on the number of rows, and on the contents of up to 4,096 of them.

    The text is the same in all processes and on all machines. It does not change if only other rows change.

    Args:
      rows: a sequence of mappings, such as a `datasets.Dataset`.
      columns: names of the columns to include; None includes all columns.
    """
    digest = hashlib.sha256(f"{len(rows)}".encode())
    for index in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MAX_ROWS)).astype(int)).tolist():
        row = rows[index]
        digest.update(_text(row if columns is None else {name: row[name] for name in columns}).encode())
    return digest.hexdigest()[:32]


def _text(value: Any) -> str:
    """Returns a text for a JSON value or an array; for other objects, such as images, the name of their type."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key!r}:{_text(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_text(entry) for entry in value) + "]"
    if isinstance(value, (np.ndarray, np.generic)):
        return _text(value.tolist())
    return repr(value) if isinstance(value, (str, bytes, int, float, type(None))) else type(value).__name__
