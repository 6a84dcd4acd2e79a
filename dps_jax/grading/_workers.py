"""What a worker process was sent and has not graded yet."""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections import deque
from typing import Any, NamedTuple

from dps_jax.grading._batches import KINDS, Batch, Outcome
from dps_jax.grading._process import ProtocolError, WorkerProcess


class Item(NamedTuple):
    """One answer to grade: where its outcome goes, and the pickled arguments of the grader."""

    batch: Batch
    position: int
    payload: bytes

    def is_open(self) -> bool:
        """Returns whether its outcome is not known yet."""
        return self.batch.is_open(self.position)

    def settle(self, outcome: Outcome) -> None:
        """Sets its outcome."""
        self.batch.settle(self.position, outcome)


@dataclasses.dataclass(eq=False)
class Worker:
    """A worker process and what it was sent.

    Attributes:
      process: the process.
      since: when its first outstanding answer began, or, before it is ready, when the process was started; seconds of
        the monotonic clock.
      is_ready: whether its grader is loaded.
      is_shared: whether what stands behind the first outstanding answer was given to others, too.
      num_done: answers it has graded.
      outstanding: what it was sent and has not graded, in this order; the first one is being graded.
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
        """Settles the first outstanding answer by a message of the worker; returns how long it took, in seconds.

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
        """Returns whether others could be given what stands behind the answer that it is grading."""
        return len(self.outstanding) > 1 and not self.is_shared
