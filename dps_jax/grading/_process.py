"""One worker process, from the side of the trainer: starts it, exchanges messages with it, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dps_jax.grading import graders

_PROGRAM = Path(__file__).with_name("_worker.py")
_LENGTH = struct.Struct("<Q")
_READ_BYTES = 1 << 16
_MAX_READS = 16
# Messages of a worker are short; a longer one was written by its grader.
_MAX_MESSAGE_BYTES = 1 << 16
# Linear algebra libraries start a thread per core, each with memory of its own; a worker uses one core.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
START_LIMIT_S = 120.0


class ProtocolError(Exception):
    """A message that the program of a worker did not write."""


def make_config(
    name: str,
    import_path: str,
    options: dict[str, Any],
    *,
    threshold: float,
    time_limit_s: float,
    memory_limit_gib: float | None,
) -> bytes:
    """Returns the first message to a worker.

    Raises:
      ValueError: for options that cannot be pickled.
    """
    try:
        pickled = pickle.dumps(options)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"options: expected values that can be pickled, got {options!r:.80} ({error})") from error
    # With this path, a worker can import the same modules as the trainer, and files in the current folder.
    path = [os.getcwd(), *(os.path.abspath(entry) for entry in sys.path)]
    return pickle.dumps(
        {
            "built_in": name.partition(":")[0] if name.partition(":")[0] in graders.BUILT_IN else None,
            "import_path": import_path,
            "options": pickled,
            "threshold": threshold,
            "time_limit_s": time_limit_s,
            "memory_limit_gib": memory_limit_gib,
            "path": list(dict.fromkeys(path)),
        }
    )


class WorkerProcess:
    """A process that runs _worker.py, which imports neither JAX nor the module `__main__` of the trainer.

    The process leads its own session, so that Ctrl-C in a terminal does not reach it, and processes that its grader
    starts can be ended with it. Of the methods, only `reap` blocks.
    """

    def __init__(self, config: bytes):
        requests, requests_end = os.pipe()
        results_end, results = os.pipe()
        environment = {**dict.fromkeys(_ONE_THREAD, "1"), **os.environ}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM), str(os.getpid()), str(requests), str(results)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(requests, results),
                start_new_session=True,
                env=environment,
            )
        except BaseException:  # raised again, once the pipes are closed
            os.close(requests_end)
            os.close(results_end)
            raise
        finally:
            os.close(requests)
            os.close(results)
        os.set_blocking(requests_end, False)
        os.set_blocking(results_end, False)
        self.requests_fd = requests_end
        self.results_fd = results_end
        self._unsent = bytearray()
        self._unread = bytearray()
        self.send(config)

    def send(self, content: bytes) -> None:
        """Queues a message, and writes as much as the pipe accepts."""
        self._unsent += _LENGTH.pack(len(content)) + content
        self.flush()

    def flush(self) -> bool:
        """Writes as much as the pipe accepts; returns whether nothing is left to write."""
        # If the worker has ended, reading its results reports that.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                del self._unsent[: os.write(self.requests_fd, memoryview(self._unsent)[:_READ_BYTES])]
        return not self._unsent

    def receive(self) -> Iterator[Any]:
        """Yields the messages that have arrived completely.

        Raises:
          ProtocolError: for bytes that are not a message, after all messages before them.
          EOFError: after all messages, if the worker has closed its end of the pipe.
        """
        is_closed = False
        # A limit, so that a grader which never stops writing to the pipe does not block the other workers.
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MAX_READS):
                content = os.read(self.results_fd, _READ_BYTES)
                self._unread += content
                if is_closed := not content:
                    break
        while len(self._unread) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._unread)
            if length > _MAX_MESSAGE_BYTES:
                raise ProtocolError(f"expected a message, got one of {length} bytes")
            end = _LENGTH.size + length
            if len(self._unread) < end:
                break
            content = bytes(self._unread[_LENGTH.size : end])
            del self._unread[:end]
            try:
                message = json.loads(content)
            except ValueError as error:
                raise ProtocolError(f"expected JSON, got {error}") from error
            yield message
        if is_closed:
            raise EOFError

    def kill(self) -> None:
        """Kills the process and the processes that its grader started, and closes the pipes; call `reap` afterwards."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        os.close(self.requests_fd)
        os.close(self.results_fd)

    def has_ended(self) -> bool:
        """Returns whether the process has ended; the system then releases it."""
        return self._process.poll() is not None

    def reap(self, timeout_s: float) -> str:
        """Waits until the process has ended, and returns a description of how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        code = self._process.returncode
        if code is None:
            return "has closed its pipe"
        return f"ended by signal {-code}" if code < 0 else f"ended with exit status {code}"


def check_in_worker(config: bytes) -> str:
    """Loads a grader in a new process, and returns the rules of the grader.

    Raises:
      ValueError: if the process cannot load the grader; the message contains the cause.
    """
    process = WorkerProcess(config)
    deadline = time.monotonic() + START_LIMIT_S
    try:
        while time.monotonic() < deadline:
            process.flush()
            for kind, text in process.receive():
                if kind == "ready":
                    return text
                raise ValueError(text)
            time.sleep(0.005)
        raise ValueError(f"the grader was not loaded within {START_LIMIT_S:g} s")
    except (EOFError, ProtocolError) as error:
        raise ValueError("the process ended while the grader was loaded") from error
    finally:
        process.kill()
        process.reap(2.0)
