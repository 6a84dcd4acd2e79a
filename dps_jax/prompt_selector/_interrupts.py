"""Blocks of code that signal handlers cannot interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_Handler = Callable[[int, Any], Any]
# Signals that stop a run, announce its end, or limit its time; not every system has all of them.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays signal handlers, such as the handler of Ctrl-C, until the block has ended.

    Python runs signal handlers in the main thread, between any two instructions. In other threads, no handler can
    interrupt the block, and this context manager does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in _NUMBERS}
    handlers: dict[int, _Handler] = {number: handler for number, handler in found.items() if callable(handler)}
    received: list[tuple[int, Any]] = []
    try:
        for number in handlers:
            signal.signal(number, lambda *signalled: received.append(signalled))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in received:
            handlers[number](number, frame)
