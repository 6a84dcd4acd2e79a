"""The pool of processes that graders run in, so that failures of a grader cannot harm the trainer."""

from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from dps_jax import _checks
from dps_jax.grading import _process
from dps_jax.grading._batches import Batch, Grades
from dps_jax.grading._dispatch import Dispatcher
from dps_jax.grading._specs import GraderSpec
from dps_jax.grading._workers import Item

__all__ = ["GraderPool", "Grades", "Pending"]

_MAX_DEFAULT_PROCESSES = 8


class Pending:
    """A submission whose answers are being graded, as returned by `GraderPool.submit`.

    Example:
      >>> from dps_jax import grading
      >>> with grading.GraderPool(grading.resolve("numeric"), num_processes=1) as pool:
      ...     pending = pool.submit(["7 + 5 = 12", "It is 13."], answers=["12", "12"])
      ...     # the next rollout may begin here
      ...     grades = pending.result()
      >>> grades.rewards.tolist()
      [1.0, 0.0]
    """

    def __init__(self, batch: Batch, pool: GraderPool):
        self._batch = batch
        self._pool = pool  # keeps the pool alive, as a pool without references is closed

    def result(self) -> Grades:
        """Waits for the grades of all answers and returns them, at the latest at the time limit of the batch.

        Raises:
          ValueError: if processes ended and no new one could load the grader.
          RuntimeError: if the pool was closed before all answers were graded.
        """
        return self._batch.wait()


class GraderPool:
    """A pool of processes that grade text answers; a context manager.

    The processes are started with the same Python interpreter as the trainer; they load neither the script of
    the trainer nor, unless the grader imports it, JAX. Whatever a grader prints is discarded, and its standard input
    is empty.

    An answer counts as wrong, with reward 0, if its grader raises an exception, returns a value that is not a grade,
    takes longer than the time limit, or ends its process. `Grades` contains the number of each of these failures. A
    process that hangs or has ended is replaced. If a grader depends on its arguments alone and stays within the
    time limits, its grades do not depend on other answers, on the order of answers or on the number of processes.

    The processes end when the pool is closed or garbage-collected, and when the trainer ends, even by a signal.

    Example:
      >>> from dps_jax import grading
      >>> with grading.GraderPool(grading.resolve("numeric"), num_processes=1) as pool:
      ...     grades = pool.submit(["7 + 5 = 12", "It is 13."], answers=["12", "12"]).result()
      >>> grades.is_correct.tolist()
      [True, False]
    """

    def __init__(
        self,
        spec: GraderSpec,
        *,
        num_processes: int | None = None,
        time_limit_s: float = 5.0,
        batch_limit_s: float = 60.0,
        threshold: float = 1.0,
        memory_limit_gib: float | None = 4.0,
    ):
        """Starts the processes and waits until they have loaded the grader.

        Args:
          spec: specification of the grader, as returned by `resolve`.
          num_processes: number of processes; None is one per core, at most 8.
          time_limit_s: time limit for each answer, in seconds of wall-clock time.
          batch_limit_s: time limit for all answers of one `submit`, in seconds from that call on. Large batches, and
            batches that wait for others, need a larger limit.
          threshold: smallest reward that counts as correct, for graders that return numbers only.
          memory_limit_gib: memory that a process may allocate after the grader was loaded, in GiB; an allocation beyond
            it raises a MemoryError in the grader. None is no limit. It works on Linux only.

        Raises:
          ValueError: for an argument out of range, or if the grader cannot be loaded, with the cause.
        """
        _checks.check_instance("spec", spec, GraderSpec)
        if num_processes is None:
            num_processes = min(_num_cores(), _MAX_DEFAULT_PROCESSES)
        if memory_limit_gib is not None:
            memory_limit_gib = _checks.check_number("memory_limit_gib", memory_limit_gib, above=0.0)
        time_limit_s = _checks.check_number("time_limit_s", time_limit_s, above=0.0)
        self._batch_limit_s = _checks.check_number("batch_limit_s", batch_limit_s, above=0.0)
        config = _process.make_config(
            spec.name,
            spec.import_path,
            dict(spec.options),
            threshold=_checks.check_number("threshold", threshold),
            time_limit_s=time_limit_s,
            memory_limit_gib=memory_limit_gib,
        )
        num_processes = _checks.check_int("num_processes", num_processes, at_least=1)
        self._dispatcher = Dispatcher(config, num_processes, time_limit_s)
        # Also at the end of the program, and for a pool that was never closed.
        self._close = weakref.finalize(self, self._dispatcher.close)
        try:
            self._dispatcher.wait_until_ready()
        except BaseException:  # raised again; Ctrl-C, too, leaves no process
            self.close()
            raise

    def submit(
        self,
        completions: Sequence[str],
        answers: Sequence[Any],
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> Pending:
        """Returns at once a `Pending`, whose answers are graded in other processes.

        The answers of earlier calls are graded first. Any thread may call this method.

        Args:
          completions: texts of the completions to grade, [R].
          answers: reference of each completion, of any type that can be pickled, [R].
          infos: other columns of the row of each completion, as mappings, [R]; None is an empty mapping for each.

        Raises:
          ValueError: for an argument of another type or length, or one that cannot be pickled; or if new processes can
            no longer load the grader.
          RuntimeError: if the pool is closed.
        """
        infos = [{}] * len(completions) if infos is None else infos
        for name, values in (("answers", answers), ("infos", infos)):
            if len(values) != len(completions):
                raise ValueError(f"{name}: expected {len(completions)} values, one per completion, got {len(values)}")
        payloads = [_payload(*row) for row in zip(range(len(completions)), completions, answers, infos, strict=True)]
        batch = Batch(len(payloads), self._batch_limit_s)
        self._dispatcher.put(batch, [Item(batch, index, payload) for index, payload in enumerate(payloads)])
        return Pending(batch, self)

    def close(self) -> None:
        """Ends the processes; `Pending.result` then raises if answers are ungraded. May be called repeatedly."""
        self._close()

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _payload(index: int, completion: str, answer: Any, info: Mapping[str, Any]) -> bytes:
    """Returns the arguments of the grader, pickled; raises a ValueError for those that are not valid."""
    if not isinstance(completion, str):
        raise ValueError(f"completions: expected texts, got {completion!r:.80} at position {index}")
    if not isinstance(info, Mapping):
        raise ValueError(f"infos: expected mappings, got {info!r:.80} at position {index}")
    try:
        return pickle.dumps((completion, answer, info), protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"answers: expected answers and infos that can be pickled, got {answer!r:.80} at position {index} ({error})"
        ) from error


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
