"""The thread that sends answers to worker processes and replaces processes that hang or have ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections import deque
from typing import Any

from dps_jax.grading._batches import DIED, TIMED_OUT, Batch, Outcome
from dps_jax.grading._process import START_LIMIT_S, ProtocolError, WorkerProcess
from dps_jax.grading._workers import Item, Worker

# Grading time of the answers in one message: so long that a worker seldom waits for the next message.
_MESSAGE_S = 0.02
_MAX_PER_MESSAGE = 32
# If an answer takes longer than this, the answers behind it are also sent to idle workers.
_STUCK_S = 0.1
# Grades are read with this delay, many at once, because waking up for each grade would cost CPU time.
_COALESCE_S = 0.002
_POLL_S = 0.5
# Weight of the duration of one answer in the moving mean of all.
_FORGET = 0.05
_MAX_FAILED_STARTS = 3
# Time to wait for the end of a process that has closed its pipe, and of one that was killed.
_DEATH_S = 0.2
_REAP_S = 2.0


class _StartError(Exception):
    """No worker process can load the grader."""


class Dispatcher:
    """Distributes answers to worker processes, from a separate thread."""

    def __init__(self, config: bytes, num_processes: int, time_limit_s: float):
        self._config = config
        self._num_processes = num_processes
        self._time_limit_s = time_limit_s
        self._inbox: deque[tuple[Batch, list[Item]]] = deque()
        self._queue: deque[Item] = deque()
        self._batches: list[Batch] = []
        self._workers: list[Worker] = []
        self._ending: list[WorkerProcess] = []
        self._num_failed_starts = 0
        self._mean_s = _MESSAGE_S
        self._error: Exception | None = None
        self._is_closing = False
        self._has_started = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="grading", daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Waits until all processes have loaded the grader.

        Raises:
          ValueError: if a process cannot load the grader; the message contains the cause.
        """
        self._has_started.wait()
        if self._error is not None:
            raise self._error

    def put(self, batch: Batch, items: list[Item]) -> None:
        """Adds the answers of a batch to the queue.

        Raises:
          ValueError: if no process can be started any more.
          RuntimeError: if the dispatcher is closed.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            self._inbox.append((batch, items))
            self._wake()

    def close(self) -> None:
        """Ends all processes; open answers fail. Does nothing in a process that was forked from this one."""
        if os.getpid() != self._pid:
            return
        self._is_closing = True
        if threading.current_thread() is self._thread:  # the pool was garbage-collected in this thread
            return
        with self._lock:
            if self._error is None:
                self._wake()
        self._thread.join()

    def _wake(self) -> None:
        # If the pipe is full, the thread is going to wake up anyway.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b".")

    def _run(self) -> None:
        error: Exception = RuntimeError(
            "pool: expected an open pool, got one that was closed before all answers were graded"
        )
        try:
            for _ in range(self._num_processes):
                self._start()
            while not self._is_closing:
                self._step()
        except _StartError as cause:
            error = ValueError(f"grader: expected to be loaded in another process, got {cause}")
        except Exception as unexpected:  # any error has to reach the callers that wait
            error = unexpected
        self._end(error)

    def _step(self) -> None:
        self._take_inbox()
        self._assign()
        events = self._selector.select(self._timeout(time.monotonic()))
        for key, mask in events:
            worker = key.data
            if worker is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 1 << 12)
            elif worker in self._workers:
                if mask & selectors.EVENT_WRITE and worker.process.flush():
                    self._watch(worker)
                if mask & selectors.EVENT_READ:
                    self._receive(worker)
        # All messages are read first, so that a delay of this thread does not count as time of an answer.
        self._expire(time.monotonic())
        if self._queue:
            time.sleep(_COALESCE_S)

    def _take_inbox(self) -> None:
        while self._inbox:
            batch, items = self._inbox.popleft()
            self._batches.append(batch)
            self._queue.extend(items)
        self._batches = [batch for batch in self._batches if batch.is_open()]

    def _assign(self) -> None:
        """Sends answers to workers with few outstanding ones, and answers behind a slow one to idle workers."""
        ready = [worker for worker in self._workers if worker.is_ready]
        if not self._queue and any(not worker.outstanding for worker in ready):
            self._share(ready)
        share = len(self._queue) // (2 * max(len(self._workers), 1))
        size = max(1, min(_MAX_PER_MESSAGE, int(_MESSAGE_S / self._mean_s), share))
        while self._queue and ready:
            worker = min(ready, key=lambda one: len(one.outstanding))
            if len(worker.outstanding) > size:
                break
            self._send(worker, size)

    def _share(self, workers: list[Worker]) -> None:
        now = time.monotonic()
        for worker in workers:
            if worker.may_be_shared() and now >= worker.since + _STUCK_S:
                worker.is_shared = True
                self._queue.extend(item for item in list(worker.outstanding)[1:] if item.is_open())

    def _send(self, worker: Worker, size: int) -> None:
        items = []
        while self._queue and len(items) < size:
            item = self._queue.popleft()
            if item.is_open():
                items.append(item)
        if items:
            worker.send(items)
            self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Writes as much as the pipe of a worker accepts, and watches a full pipe until it accepts more."""
        key = worker.process.requests_fd
        is_watched = key in self._selector.get_map()
        if worker.process.flush():
            if is_watched:
                self._selector.unregister(key)
        elif not is_watched:
            self._selector.register(key, selectors.EVENT_WRITE, worker)

    def _receive(self, worker: Worker) -> None:
        try:
            for message in worker.process.receive():
                if worker.is_ready:
                    self._mean_s += _FORGET * (worker.accept(message) - self._mean_s)
                else:
                    self._welcome(worker, message)
        except (EOFError, ProtocolError):
            # The worker has ended, or its grader has written something else to the pipe.
            if worker in self._workers:
                self._lose(worker, DIED)

    def _welcome(self, worker: Worker, message: Any) -> None:
        """Reads the first message of a worker: whether the grader could be loaded."""
        kind, text = message
        if kind != "ready":
            self._fail_start(worker, text)
            return
        worker.is_ready = True
        self._num_failed_starts = 0
        if all(one.is_ready for one in self._workers):
            self._has_started.set()

    def _timeout(self, now: float) -> float:
        """Returns the time until the next deadline, in seconds."""
        busy = [worker for worker in self._workers if worker.outstanding]
        times = [worker.since + self._time_limit_s for worker in busy] + [batch.deadline for batch in self._batches]
        if any(worker.is_ready and not worker.outstanding for worker in self._workers):
            times += [worker.since + _STUCK_S for worker in busy if worker.may_be_shared()]
        return max(0.0, min([_POLL_S, *(at - now for at in times)]))

    def _expire(self, now: float) -> None:
        for batch in [batch for batch in self._batches if batch.is_open() and now >= batch.deadline]:
            batch.expire()
            # Grading the other answers of this batch would only delay other batches.
            for worker in [one for one in self._workers if any(item.batch is batch for item in one.outstanding)]:
                self._replace(worker)
        for worker in list(self._workers):
            if worker.process.has_ended():
                # Its last messages are read first. A process that the worker forked may keep the pipe open.
                self._receive(worker)
                if worker in self._workers:
                    self._lose(worker, DIED)
            elif not worker.is_ready and now >= worker.since + START_LIMIT_S:
                self._fail_start(worker, f"the grader was not loaded within {START_LIMIT_S:g} s")
            elif worker.outstanding and now >= worker.since + self._time_limit_s:
                self._lose(worker, TIMED_OUT)
        self._ending = [process for process in self._ending if not process.has_ended()]

    def _lose(self, worker: Worker, kind: str) -> None:
        """Ends a worker because of its first outstanding answer."""
        how = f"not graded within {self._time_limit_s:g} s"
        if kind == DIED and worker.outstanding and time.monotonic() >= worker.since + self._time_limit_s:
            kind = TIMED_OUT  # its own timer ended it before this thread could
        if kind == DIED:
            how = f"the process of the grader {worker.process.reap(_DEATH_S)}"
        if worker.outstanding:
            worker.outstanding.popleft().settle(Outcome(kind, message=how))
        if worker.is_ready:
            self._replace(worker)
        else:
            self._fail_start(worker, f"{how} while it was loaded")

    def _replace(self, worker: Worker) -> None:
        """Ends a worker and starts another; answers that it has not graded are queued again."""
        self._remove(worker)
        elsewhere = {id(item) for one in self._workers for item in one.outstanding} | {id(item) for item in self._queue}
        left = [item for item in worker.outstanding if item.is_open() and id(item) not in elsewhere]
        self._queue.extendleft(reversed(left))
        self._start()

    def _fail_start(self, worker: Worker, cause: str) -> None:
        """Starts another worker if the grader could be loaded before; raises _StartError after repeated failures."""
        self._remove(worker)
        self._num_failed_starts += 1
        if not self._has_started.is_set() or self._num_failed_starts >= _MAX_FAILED_STARTS:
            raise _StartError(cause)
        self._start()

    def _start(self) -> None:
        try:
            process = WorkerProcess(self._config)
        except OSError as error:
            raise _StartError(str(error)) from error
        self._workers.append(Worker(process, time.monotonic()))
        self._selector.register(self._workers[-1].process.results_fd, selectors.EVENT_READ, self._workers[-1])

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        for descriptor in (worker.process.requests_fd, worker.process.results_fd):
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
        worker.process.kill()
        self._ending.append(worker.process)

    def _end(self, error: Exception) -> None:
        with self._lock:
            # From here on, no other thread uses the inbox or the pipe.
            self._error = error
        self._take_inbox()
        for worker in list(self._workers):
            self._remove(worker)
        for process in self._ending:
            process.reap(_REAP_S)
        for batch in self._batches:
            batch.fail(error)
        self._has_started.set()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
