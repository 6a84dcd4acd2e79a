"""SIGINT and SIGTERM: handled at once, also while a compiled program runs or is being compiled.

Python handles signals between two bytecode steps of the main thread, and a program on the device is one step. Long work
is therefore done in another thread, and the main thread waits for it; this wait can be interrupted. Work that does not
end within a few seconds after a signal is abandoned.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# Time after a signal in which work may still end.
GRACE_S = 3.0
_POLL_S = 0.1


class Terminated(SystemExit):
    """Raised by `train` after SIGINT or SIGTERM, when the state of the run has been saved as far as possible.

    The exception is a `SystemExit` with the exit code of a process that the signal ended. Calling `train` with the same
    config continues the run.

    Attributes:
      signum: number of the signal.
      message: one line about the latest checkpoint; empty if the signal came before or after the rounds.
      is_work_left: whether an abandoned thread is still running, which can keep the process alive; `os._exit` ends it.

    Example:
      >>> import signal
      >>> from dps_jax import training
      >>> try:
      ...     raise training.Terminated(signal.SIGTERM)  # instead of: training.train(config)
      ... except training.Terminated as stop:
      ...     print(stop.signum, stop.code)
      15 143
    """

    def __init__(self, signum: int = signal.SIGTERM):
        super().__init__(128 + signum)
        self.signum = signum
        self.message = ""
        self.is_work_left = False


class LeftBehind(Exception):
    """Raised if work did not end in time after a signal."""


class Interrupts:
    """The signal that a run has received, and the work that it may have interrupted; see `watched`."""

    def __init__(self):
        self.signum: int | None = None
        self.grace_s = GRACE_S
        self._time = 0.0
        self._is_watched = False
        self._raises = True
        self._worker: threading.Thread | None = None

    def _handle(self, signum: int, _: Any) -> None:
        if self.signum is not None:
            os._exit(128 + signum)  # this is the second signal; files are complete at any moment
        self.signum, self._time = signum, time.monotonic()
        if self._raises:
            raise self.terminated()

    def terminated(self) -> Terminated:
        """Returns the error to raise after a signal."""
        error = Terminated(signal.SIGTERM if self.signum is None else self.signum)
        error.is_work_left = self._worker is not None and self._worker.is_alive()
        return error

    @property
    def name(self) -> str:
        """The name of the signal that was received."""
        return signal.Signals(signal.SIGTERM if self.signum is None else self.signum).name

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Defers signals: they are recorded in `signum`, and `run` abandons work that does not end in time.

        Raises:
          Terminated: at the end of the block, if a signal was received in it.
        """
        self._raises = False
        try:
            yield
        finally:
            self._raises = True
        if self.signum is not None:
            raise self.terminated()

    def run(self, function: Callable[[], T]) -> T:
        """Returns the result of a function that may take a long time.

        Raises:
          LeftBehind: if the function did not return within a few seconds after a signal.
        """
        if not self._is_watched:
            return function()
        done = threading.Event()
        outcome: list[Any] = [None, None]

        def work() -> None:
            try:
                outcome[0] = function()
            except BaseException as error:  # the waiting thread raises it
                outcome[1] = error
            finally:
                done.set()

        self._worker = threading.Thread(target=work, name="training", daemon=True)
        self._worker.start()
        while not done.wait(_POLL_S):
            if self.signum is not None and time.monotonic() - self._time > self.grace_s:
                raise LeftBehind
        result, error = outcome
        if error is not None:
            raise error
        return result


@contextlib.contextmanager
def watched() -> Iterator[Interrupts]:
    """Yields the `Interrupts` of a run. Outside its `held` block, signals raise `Terminated` at once.

    A second signal ends the process immediately. Signals that are ignored stay ignored. Outside the main thread nothing
    is installed, and handling signals is left to the caller.
    """
    interrupts = Interrupts()
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                previous[signum] = signal.signal(signum, interrupts._handle)
    interrupts._is_watched = bool(previous)
    try:
        yield interrupts
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
