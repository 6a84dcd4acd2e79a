"""The folder of a run: checks of its content, a lock against other processes, and moving an old run aside."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dps_jax import _files

LOCK = "run.lock"
_FORMAT = "dps_jax.run"
_PARTS = {"model", "selector", "rollout", "learner"}
_CHECKPOINT = re.compile(r"round_\d{10}")
# Error numbers from file systems without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def is_config(saved: Any) -> bool:
    """Returns whether a JSON value holds the options of a run."""
    return isinstance(saved, dict) and saved.keys() >= _PARTS


def holds_run(folder: Path) -> bool:
    """Returns whether a folder contains the lock, the options or a checkpoint of a run."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        lock = json.loads((folder / LOCK).read_bytes())
        if isinstance(lock, dict) and lock.get("format") == _FORMAT:
            return True
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if is_config(json.loads((folder / "config.json").read_bytes())):
            return True
    with contextlib.suppress(OSError):
        return any(_CHECKPOINT.fullmatch(path.name) for path in (folder / "checkpoints").iterdir())
    return False


def _is_empty(folder: Path) -> bool:
    """Returns whether a folder is empty, except for the empty lock file of a process that was killed at its start."""
    return all(path.name == LOCK and path.stat().st_size == 0 for path in folder.iterdir())


def check(folder: Path) -> None:
    """Raises ValueError unless a folder does not exist, is empty, or contains a run."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder, got a file; choose another --name or --out-dir, or move it away"
        )
    if not _is_empty(folder) and not holds_run(folder):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        raise ValueError(
            f"{folder}: expected an empty folder or that of a run, got one that holds {names} and no run; nothing in "
            "it was changed. Choose another --name or --out-dir"
        )


def _holder(file: Any) -> str:
    """Returns a description of the process that holds a lock, for a message."""
    try:
        file.seek(0)
        found = json.loads(file.read())
        return f"process {int(found['process'])} on {found['host']}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"


def _is_at(file: Any, path: Path) -> bool:
    """Returns whether the file at a path is this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


@contextlib.contextmanager
def locked(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Locks a folder against other processes. The lock is released when the process ends, in whatever way.

    Raises:
      ValueError: if another process holds the lock.
      OSError: if the folder cannot be written to.
    """
    path = folder / LOCK
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise _files.write_error(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: expected no other process to write to this run, but {_holder(file)} does; wait for it, end "
                "it, or choose another --name"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _files.write_error(error, path) from error
            report(f"{path}: this file system has no locks ({error.strerror}); start no second process in this folder")
        if not _is_at(file, path):
            # Another process moved the folder aside between opening and locking, and is about to write here.
            raise ValueError(
                f"{folder}: expected no other process to write to this run, but one has just moved it aside; choose "
                "another --name"
            )
        try:
            file.truncate(0)
            file.write(json.dumps({"format": _FORMAT, "process": os.getpid(), "host": socket.gethostname()}) + "\n")
            file.flush()
        except OSError as error:
            raise _files.write_error(error, path) from error
        yield


@contextlib.contextmanager
def opened(folder: Path, *, resume: bool, report: Callable[[str], None]) -> Iterator[None]:
    """Creates the folder of a run, if it does not exist, and locks it for the duration of the `with` block.

    Args:
      folder: folder of the run.
      resume: whether an existing run is kept; otherwise its folder is renamed. Nothing is deleted.
      report: function that is called with a message if an existing run was moved, or if the file system has no locks.

    Raises:
      ValueError: if the folder holds other files, or another process writes to it.
      OSError: if the folder cannot be written to.
    """
    check(folder)
    if not resume and folder.exists() and not _is_empty(folder):
        with locked(folder, report):
            aside = _files.move_aside(folder, "old")
        report(f"the run that was in {folder} is in {aside} now")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _files.write_error(error, folder) from error
    with locked(folder, report):
        yield
