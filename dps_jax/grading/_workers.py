"""The answers that were sent to a worker process and are not graded yet."""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections import deque
from typing import Any, NamedTuple

from dps_jax.grading._batches import KINDS, Batch, Outcome
from dps_jax.grading._process import ProtocolError, WorkerProcess


class Item(NamedTuple):
    """One answer to grade: its batch and position, and the pickled arguments of the grader."""

    batch: Batch
    position: int
    payload: bytes

    def is_open(self) -> bool:
        """Returns whether the answer is not settled."""
        return self.batch.is_open(self.position)

    def settle(self, outcome: Outcome) -> None:
        """Sets the outcome of the answer."""
        self.batch.settle(self.position, outcome)


@dataclasses.dataclass(eq=False)
class Worker:
    """A worker process and the answers that were sent to it.

    Attributes:
      process: the process.
      since: start of the grading of the first outstanding answer, or of the process before it is ready, in seconds of
        the monotonic clock.
      is_ready: whether the process has loaded the grader.
      is_shared: whether the answers behind the first outstanding one were sent to other workers, too.
      num_done: number of answers that the process has graded.
      outstanding: answers that were sent and are not graded, in order; the first one is being graded.
    """

    process: WorkerProcess
    since: float
    is_ready: bool = False
    is_shared: bool = False
    num_done: int = 0
    outstanding: deque[Item] = dataclasses.field(default_factory=deque)

    def send(self, items: list[Item]) -> None:
        """Sends some answers in one message."""
        if not self.outstanding:
            self.since = time.monotonic()
        self.outstanding.extend(items)
        self.process.send(pickle.dumps([item.payload for item in items]))

    def accept(self, message: Any) -> float:
        """Settles the first outstanding answer with a message of the worker, and returns the seconds that it took.

        Raises:
          ProtocolError: for a message that the program of a worker does not write.
        """
        try:
            position, kind, is_correct, reward, text = message
            outcome = Outcome(str(kind), bool(is_correct), float(reward), str(text))
        except (TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"expected a grade, got {message!r:.80}") from error
        if position != self.num_done or outcome.kind not in KINDS or not self.outstanding:
            raise ProtocolError(f"expected the grade of answer {self.num_done}, got {message!r:.80}")
        self.outstanding.popleft().settle(outcome)
        self.num_done += 1
        self.is_shared = False
        before, self.since = self.since, time.monotonic()
        return self.since - before

    def may_be_shared(self) -> bool:
        """Returns whether answers behind the one that is being graded could be sent to other workers."""
        return len(self.outstanding) > 1 and not self.is_shared
