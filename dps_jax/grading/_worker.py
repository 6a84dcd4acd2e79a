"""The program of a worker process: reads answers from one pipe, grades them, and writes grades to another.

`_process.WorkerProcess` runs this file as a script. It imports the standard library only, so that a worker starts fast
and never imports JAX, unless a user's grader does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import json
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

_LENGTH = struct.Struct("<Q")
# Interval at which a worker checks that its parent exists, and restarts the timer that ends it if a grader hangs.
_POLL_S = 0.5
# Largest number of characters of a message about an answer, and about a grader that cannot be loaded.
_MAX_MESSAGE = 300
_MAX_CAUSE = 8000
_PID = os.getpid()


def main() -> None:
    """Grades answers until the pipe of requests is closed."""
    parent_pid, requests_fd, results_fd = (int(value) for value in sys.argv[1:4])
    del sys.argv[1:]
    for descriptor in (requests_fd, results_fd):
        os.set_inheritable(descriptor, False)
    threading.Thread(target=_end_after, args=(parent_pid,), daemon=True).start()
    _offer_to_out_of_memory_killer()
    requests = os.fdopen(requests_fd, "rb")
    first = _read(requests)
    if first is None:
        _end()
    config = pickle.loads(first)
    try:
        graders, grade, rules = _load(config)
    except BaseException as error:  # foreign code is imported, which may call sys.exit
        _send(results_fd, ["failed", describe(error, _MAX_CAUSE)])
        _end()
    _send(results_fd, ["ready", rules])
    _limit_memory(config["memory_limit_gib"])
    _serve(requests, results_fd, graders, grade, config)
    _end()


def _load(config: dict[str, Any]) -> tuple[Any, Any, str]:
    """Returns the package of graders, the grader, and its rules."""
    sys.path[:] = [*config["path"], *(entry for entry in sys.path if entry not in config["path"])]
    folder = Path(__file__).parent / "graders"
    spec = importlib.util.spec_from_file_location(
        "dps_jax_graders", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {folder}")
    graders = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = graders
    spec.loader.exec_module(graders)
    options = pickle.loads(config["options"])
    if config["built_in"] is not None:
        return graders, graders.make(config["built_in"], options), ""
    return graders, *graders._load(config["import_path"], options)


def _serve(requests: BinaryIO, results_fd: int, graders: Any, grade: Any, config: dict[str, Any]) -> None:
    module = importlib.import_module(f"{graders.__name__}._grade")
    # The timer below is a C thread, which ends the process even if a grader holds the GIL. The parent, if it still
    # exists, usually ends the process earlier.
    silent = open(os.devnull, "w")  # noqa: SIM115
    limit_s = config["time_limit_s"] + 2 * _POLL_S
    position = 0
    while (content := _read(requests)) is not None:
        armed = -float("inf")
        for payload in pickle.loads(content):
            if (now := time.monotonic()) > armed + _POLL_S:
                faulthandler.dump_traceback_later(limit_s, exit=True, file=silent)
                armed = now
            outcome = _outcome(module, grade, payload, config["threshold"])
            if os.getpid() != _PID:  # a grader forked, and the child came back from it
                os._exit(0)
            _send(results_fd, [position, *outcome])
            position += 1
        faulthandler.cancel_dump_traceback_later()


def _outcome(module: Any, grade: Any, payload: bytes, threshold: float) -> tuple[str, bool, float, str]:
    """Returns the kind of outcome, is_correct, reward and a message for one answer."""
    try:
        value = grade(*pickle.loads(payload))
        is_correct, reward = module.as_grade(value, threshold)
    except module.InvalidGradeError as error:
        return "invalid", False, 0.0, describe(error)
    except BaseException as error:  # foreign code; sys.exit and KeyboardInterrupt are among what it may raise
        return "raised", False, 0.0, describe(error)
    return "graded", is_correct, reward, ""


def describe(error: BaseException, limit: int = _MAX_MESSAGE) -> str:
    """Returns the last line of a traceback, with the file and the line that raised it."""
    try:
        text = traceback.format_exception_only(error)[-1].strip()
    except Exception:  # an exception of foreign code whose text cannot be computed
        text = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return text[:limit] + where


def _read(file: BinaryIO) -> bytes | None:
    """Returns the content of the next message; None when the pipe is closed."""
    header = file.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    content = file.read(length)
    return content if len(content) == length else None


def _send(descriptor: int, message: list[Any]) -> None:
    content = json.dumps(message).encode()
    content = _LENGTH.pack(len(content)) + content
    while content:
        content = content[os.write(descriptor, content) :]


def _end_after(parent_pid: int) -> None:
    """Ends this process when its parent has ended, even while a grader hangs."""
    # A closed pipe would not show this: a process that the parent forked may hold the other end.
    while os.getppid() == parent_pid:
        time.sleep(_POLL_S)
    _end()


def _end() -> NoReturn:
    """Ends this process and those that graders started, which are in the process group of the worker."""
    os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


def _offer_to_out_of_memory_killer() -> None:
    """Makes Linux end this process before the trainer when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory(limit_gib: float | None) -> None:
    """Limits the memory that is allocated from now on, on Linux."""
    statm = Path("/proc/self/statm")
    if limit_gib is None or not statm.exists():
        return
    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    limit = taken + int(limit_gib * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
