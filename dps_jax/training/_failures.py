"""Ends all processes of a run, with a message, after one of them has ended with an error.

Otherwise the others would wait five minutes for it, and JAX would then abort them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax

from dps_jax.training._interrupts import Terminated

_PLACE = "dps_jax/failures/"
_POLL_S = 1.0
# Time in which another process can report its own error, and in which all processes can call `shutdown`.
_GRACE_S = 5.0
_MAX_LENGTH = 2000
_REMEDY = "the same command, for all processes, continues from the last checkpoint"


def _client() -> Any:
    """Returns the key-value store of the processes, for which JAX has no public name; None for a single process."""
    if jax.process_count() == 1:
        return None
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import distributed

        client = distributed.global_state.client
        return client if hasattr(client, "key_value_dir_get") else None
    return None


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Ends this process after another one of the run has ended with an error; reports its own errors to the others.

    The whole process is ended, since its threads may be waiting for the other process inside a compiled program. In a
    run with a single process, the context manager does nothing.
    """
    client = _client()
    if client is None:
        yield
        return
    is_over = threading.Event()
    threading.Thread(target=_watch, args=(client, is_over), name="failures", daemon=True).start()
    try:
        yield
    except BaseException as error:
        is_over.set()
        if isinstance(error, jax.errors.JaxRuntimeError):
            error.add_note(f"Another process of the run may have died, and its output then has the reason; {_REMEDY}.")
        # A `Terminated` with a message is raised in all processes together, so it need not be reported.
        if not (isinstance(error, Terminated) and error.message):
            _report(client, error)
        raise
    finally:
        is_over.set()


def _report(client: Any, error: BaseException) -> None:
    """Reports an error to the other processes."""
    with contextlib.suppress(RuntimeError):  # the first process, which stores the reports, may have ended
        client.key_value_set(f"{_PLACE}{jax.process_index()}", f"{type(error).__name__}: {error}"[:_MAX_LENGTH])


def _watch(client: Any, is_over: threading.Event) -> None:
    """Ends this process after another one has reported an error; runs in a thread."""
    while not is_over.wait(_POLL_S):
        try:
            found = client.key_value_dir_get(_PLACE)
        except RuntimeError:
            return  # JAX ends a process that has lost its connection to the first
        if found:
            break
    else:
        return
    if is_over.wait(_GRACE_S):
        return
    name, text = found[0]
    index, count = name.rpartition("/")[2], jax.process_count()
    print(f"error: process {index} of {count} has ended with {text}\n{_REMEDY}", file=sys.stderr, flush=True)
    # JAX aborts a process that ends before all processes have called `shutdown`.
    last = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    last.start()
    last.join(_GRACE_S)
    os._exit(1)
