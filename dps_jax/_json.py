"""Standard JSON, written without NaN and read strictly: no repeated keys, and errors that name the file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dps_jax import _files


def dumps(value: Any, **options: Any) -> str:
    """Returns JSON text; arrays become lists, and NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_plain(value), allow_nan=False, **options)


def write(path: os.PathLike[str] | str, value: Any, **options: Any) -> None:
    """Replaces a file by the JSON text of `dumps`, atomically.

    Raises:
      OSError: naming the path; the old file is not changed.
    """
    _files.write_atomically(path, dumps(value, **options) + "\n")


def _plain(value: Any) -> Any:
    """Returns a value of JSON types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_object(path: os.PathLike[str] | str, what: str, remedy: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      path: path of the file.
      what: description of the expected content, which follows "expected" in error messages.
      remedy: text that error messages end with.

    Raises:
      ValueError: naming the file, if it is missing, a folder, cannot be read, is not a JSON object, or has a repeated
        key or a NaN.
    """
    refuse = lambda reason: ValueError(f"{os.fspath(path)}: expected {what}, got {reason}; {remedy}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"the key {repeated!r} twice")
        return dict(pairs)

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name}, which is not JSON")

    try:
        content = Path(path).read_bytes().decode()
        fields = json.loads(content, object_pairs_hook=unique, parse_constant=no_constant)
    except RecursionError as error:
        raise refuse("lists or objects nested too deeply") from error
    except (OSError, ValueError) as error:
        raise refuse(f"none ({error.strerror})" if isinstance(error, OSError) else str(error)) from error
    if not isinstance(fields, dict):
        raise refuse(f"{type(fields).__name__} {str(fields)[:40]!r}")
    return fields
