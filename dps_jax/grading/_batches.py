"""A batch of submitted answers, and the outcome of each of them."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import numpy as np

from dps_jax._documented import documented

_NUM_MESSAGES = 5
# Kinds of outcomes of an answer. All but the first count as wrong, with reward 0.
GRADED, RAISED, INVALID, TIMED_OUT, DIED = "graded", "raised", "invalid", "timed_out", "died"
KINDS = (GRADED, RAISED, INVALID, TIMED_OUT, DIED)


@documented
class Grades(NamedTuple):
    """The grades of the R answers (completions) of one submission, as returned by `Pending.result`.

    Attributes:
      is_correct: whether each answer is correct, bool [R].
      rewards: reward of each answer, float32 [R].
      num_timed_out: number of answers that exceeded the time limit, or were not graded within the time limit of the
        submission.
      num_raised: number of answers whose grader raised an exception, `sys.exit` included.
      num_invalid: number of answers whose grader returned a NaN, an infinity, or a value that is not a grade.
      num_died: number of answers in whose grading the process ended: by the grader, a signal, a crash in C code, or the
        system when memory ran out.
      messages: descriptions of the first five of these failures, such as "answer 3: ValueError: ...".

    Example:
      >>> from dps_jax import grading
      >>> with grading.GraderPool(grading.resolve("numeric"), num_processes=1) as pool:
      ...     grades = pool.submit(["7 + 5 = 12", "It is 13."], answers=["12", "no number"]).result()  # references
      >>> grades.is_correct.tolist(), grades.num_raised
      ([True, False], 1)
      >>> print(grades.messages[0])
      answer 1: ValueError: answer: expected a number, or a text with one, got 'no number' ...
    """

    is_correct: np.ndarray
    rewards: np.ndarray
    num_timed_out: int
    num_raised: int
    num_invalid: int
    num_died: int
    messages: tuple[str, ...]


class Outcome(NamedTuple):
    """The outcome of one answer: its grade, or the kind of failure with a message."""

    kind: str
    is_correct: bool = False
    reward: float = 0.0
    message: str = ""


class Batch:
    """The answers of one submission; the thread of the pool settles them, and the thread of the caller waits."""

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
        """Returns whether an answer, or with None any answer, is not settled yet."""
        return not self._is_done.is_set() and (index is None or self._outcomes[index] is None)

    def settle(self, index: int, outcome: Outcome) -> None:
        """Sets the outcome of an answer, unless it was set before."""
        if not self.is_open(index):
            return
        self._outcomes[index] = outcome
        self._num_open -= 1
        if self._num_open == 0:
            self._is_done.set()

    def expire(self) -> None:
        """Settles all open answers as timed out."""
        outcome = Outcome(TIMED_OUT, message=f"not graded within the {self.limit_s:g} s of its batch")
        for index in range(len(self._outcomes)):
            self.settle(index, outcome)

    def fail(self, error: Exception) -> None:
        """Makes `wait` raise the error, unless all answers are settled."""
        if self.is_open():
            self._error = error
            self._is_done.set()

    def wait(self) -> Grades:
        """Returns the grades when all answers are settled.

        Raises:
          ValueError: if no process can be started any more.
          RuntimeError: if the pool was closed before all answers were graded.
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
