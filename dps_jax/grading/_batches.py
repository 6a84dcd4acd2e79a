"""What was submitted together, and how each of its answers turned out."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import numpy as np

_NUM_MESSAGES = 5
# Outcomes of an answer. All but the first count as wrong, with reward 0.
GRADED, RAISED, INVALID, TIMED_OUT, DIED = "graded", "raised", "invalid", "timed_out", "died"
KINDS = (GRADED, RAISED, INVALID, TIMED_OUT, DIED)


class Grades(NamedTuple):
    """The grades of the answers of one submission.

    Attributes:
      is_correct: bool [R].
      rewards: float32 [R].
      num_timed_out: answers that took longer than the time limit, or were open when that of their batch was over.
      num_raised: answers whose grader raised an exception; `sys.exit` is one.
      num_invalid: answers whose grader returned a NaN, an infinity, or what is no grade.
      num_died: answers whose grader ended its process, or took so much memory that the system did.
      messages: what went wrong with the first five of these, "answer 3: ValueError: ...".
    """

    is_correct: np.ndarray
    rewards: np.ndarray
    num_timed_out: int
    num_raised: int
    num_invalid: int
    num_died: int
    messages: tuple[str, ...]


class Outcome(NamedTuple):
    """How one answer turned out."""

    kind: str
    is_correct: bool = False
    reward: float = 0.0
    message: str = ""


class Batch:
    """The answers of one submission; the thread of the pool settles them, and another one waits for all."""

    def __init__(self, size: int, limit_s: float):
        self.limit_s = limit_s
        self.deadline = time.monotonic() + limit_s
        self._outcomes: list[Outcome | None] = [None] * size
        self._num_open = size
        self._error: Exception | None = None
        self._is_done = threading.Event()
        if size == 0:
            self._is_done.set()

    def is_open(self, index: int | None = None) -> bool:
        """Returns whether one answer, or any, is not settled."""
        return not self._is_done.is_set() and (index is None or self._outcomes[index] is None)

    def settle(self, index: int, outcome: Outcome) -> None:
        """Sets how an answer turned out; what is known already stands."""
        if not self.is_open(index):
            return
        self._outcomes[index] = outcome
        self._num_open -= 1
        if self._num_open == 0:
            self._is_done.set()

    def expire(self) -> None:
        """Counts what is open as timed out."""
        outcome = Outcome(TIMED_OUT, message=f"not graded within the {self.limit_s:g} s of its batch")
        for index in range(len(self._outcomes)):
            self.settle(index, outcome)

    def fail(self, error: Exception) -> None:
        """Gives up what is open."""
        if self.is_open():
            self._error = error
            self._is_done.set()

    def wait(self) -> Grades:
        """Returns the grades when all answers are settled.

        Raises:
          ValueError: if no process can be started any more.
          RuntimeError: if the pool was closed.
        """
        self._is_done.wait()
        if self._error is not None:
            raise self._error
        outcomes = [outcome for outcome in self._outcomes if outcome is not None]
        counts = {kind: sum(outcome.kind == kind for outcome in outcomes) for kind in KINDS}
        messages = (f"answer {index}: {one.message}" for index, one in enumerate(outcomes) if one.kind != GRADED)
        return Grades(
            is_correct=np.array([outcome.is_correct for outcome in outcomes], bool),
            rewards=np.array([outcome.reward for outcome in outcomes], np.float32),
            num_timed_out=counts[TIMED_OUT],
            num_raised=counts[RAISED],
            num_invalid=counts[INVALID],
            num_died=counts[DIED],
            messages=tuple(message for message, _ in zip(messages, range(_NUM_MESSAGES), strict=False)),
        )
