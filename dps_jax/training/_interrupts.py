"""SIGINT and SIGTERM: noticed at once, also while a compiled program runs or is being compiled.

Python handles signals between two steps of the main thread, and a program on the device is one step. So what takes
long is done in a thread of its own, for which the main thread waits; that can be interrupted. Work that does not end
within a few seconds after a signal is left behind.
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

# Work that ends within this time after a signal is waited for.
GRACE_S = 3.0
_POLL_S = 0.1


class Terminated(SystemExit):
    """SIGINT or SIGTERM came. The exit code is that of a process ended by it.

    Attributes:
      signum: which of them.
      message: what was saved, in a line; empty if nothing had to be.
      is_work_left: a thread is still at work that was left behind; Python cannot end in good order before it has.
    """

    def __init__(self, signum: int = signal.SIGTERM):
        super().__init__(128 + signum)
        self.signum = signum
        self.message = ""
        self.is_work_left = False


class LeftBehind(Exception):
    """A signal came, and what was being done did not end in time."""


class Interrupts:
    """Watches for signals; see `watched`."""

    def __init__(self):
        self.signum: int | None = None
        self.grace_s = GRACE_S
        self._time = 0.0
        self._is_watched = False
        self._raises = True
        self._worker: threading.Thread | None = None

    def _handle(self, signum: int, _: Any) -> None:
        if self.signum is not None:
            os._exit(128 + signum)  # the second one; files are whole at any moment
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
        """The name of the signal that came."""
        return signal.Signals(signal.SIGTERM if self.signum is None else self.signum).name

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Makes signals wait to be asked for: `signum` has them, and `run` leaves its work behind.

        Raises:
          Terminated: at the end, for a signal that was not asked for.
        """
        self._raises = False
        try:
            yield
        finally:
            self._raises = True
        if self.signum is not None:
            raise self.terminated()

    def run(self, function: Callable[[], T]) -> T:
        """Returns the result of a function that may take long.

        Raises:
          LeftBehind: if a signal came, and the function did not return within some seconds.
        """
        if not self._is_watched:
            return function()
        done = threading.Event()
        outcome: list[Any] = [None, None]

        def work() -> None:
            try:
                outcome[0] = function()
            except BaseException as error:  # whatever it is, the waiting thread raises it
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
    """Yields what knows of signals. Until its `held` is entered, and after it, they raise `Terminated` at once.

    A second signal ends the process without further ado. Signals that are ignored stay so, and in a thread that is not
    the main one whoever runs it handles them.
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
