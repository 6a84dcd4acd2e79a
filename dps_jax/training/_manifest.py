"""The manifest of a directory: a list of its files with sizes and checksums, written last and checked first."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dps_jax import _files

NAME = "manifest.json"
_VERSION = 1


def _own_checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def check_json(name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a dictionary of JSON types.

    Raises:
      ValueError: if writing and reading the dictionary as JSON would change it, as with tuples, NaN or keys that are
        not strings.
    """
    try:
        copy = json.loads(json.dumps(dict(entries), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected text, lists, dictionaries and finite numbers, got {error}") from error
    for key, value in entries.items():
        if copy.get(key) != value:
            raise ValueError(f"{name}: expected values that JSON does not change, got {key!r}: {value!r}")
    return copy


def write(directory: Path, entries: Mapping[str, Any]) -> None:
    """Writes the manifest of a directory, and forces all of its files to the disk.

    Args:
      directory: directory whose files are complete.
      entries: further entries of the manifest, of JSON types.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    sums = {
        path.relative_to(directory).as_posix(): [path.stat().st_size, _files.checksum(path, is_synced=True)]
        for path in paths
    }
    for path in sorted(path for path in directory.rglob("*") if path.is_dir()):
        _files.sync_directory(path)
    content = {"version": _VERSION, "files": sums, "entries": dict(entries)}
    text = json.dumps({"checksum": _own_checksum(content), "content": content}, indent=1)
    _files.write_atomically(directory / NAME, text)


def read(directory: Path) -> dict[str, Any]:
    """Returns the entries of a directory's manifest, without checking the files.

    Raises:
      ValueError: if the manifest is missing, damaged or of another version.
    """
    return _read(directory)["entries"]


def _read(directory: Path) -> dict[str, Any]:
    try:
        whole = json.loads((directory / NAME).read_bytes())
        content = whole["content"]
        is_sound = _own_checksum(content) == whole["checksum"]
    except OSError as error:
        raise ValueError(f"{NAME} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{NAME} is damaged") from error
    if not is_sound:
        raise ValueError(f"{NAME} is damaged")
    if content["version"] != _VERSION:
        raise ValueError(f"{NAME} is of version {content['version']}, and this release reads version {_VERSION}")
    return content


def read_checked(directory: Path) -> dict[str, Any]:
    """Returns the entries of a directory's manifest, after comparing all files with their sizes and checksums.

    Raises:
      ValueError: if the manifest or a file is missing or damaged; the message names it.
    """
    content = _read(directory)
    for name, (size, checksum) in content["files"].items():
        path = directory / name
        try:
            found_size = path.stat().st_size
            is_same = found_size == size and _files.checksum(path) == checksum
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror})") from error
        if found_size != size:
            raise ValueError(f"{name} has {found_size} bytes instead of {size}")
        if not is_same:
            raise ValueError(f"{name} has changed since it was written (checksum)")
    return content["entries"]
