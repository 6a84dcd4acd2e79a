"""The pool of processes that graders run in: what a grader does there never harms the trainer."""

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
    """Answers that are being graded."""

    def __init__(self, batch: Batch, pool: GraderPool):
        self._batch = batch
        self._pool = pool  # a pool that nothing refers to is closed

    def result(self) -> Grades:
        """Returns the grades once all are known, at the latest when the time limit of the batch is over.

        Raises:
          ValueError: if processes ended and no other could load the grader any more.
          RuntimeError: if the pool was closed before.
        """
        return self._batch.wait()


class GraderPool:
    """Processes that grade text answers; a context manager.

    The processes are started afresh with the interpreter of the trainer: neither JAX nor the script that runs is
    imported there. What graders print is thrown away, and their standard input is empty.

    An answer counts as wrong, with reward 0, and as one of the numbers of `Grades`, if its grader raises an exception,
    returns what is no grade, takes longer than the time limit, or ends its process in any way; the process is replaced
    where it has to be. The grade of an answer depends on no other answer, on no order and on no number of processes, as
    long as that is true of the grader itself.

    The processes end when the pool is closed or dropped, and when the trainer ends, however it does.
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
          spec: the grader, from `resolve`.
          num_processes: how many; None is one per core, at most 8.
          time_limit_s: of each answer, in seconds of wall-clock time.
          batch_limit_s: of all answers of one `submit`, in seconds from there on. Raise it for batches that wait behind
            others or are large.
          threshold: the least reward that is correct, of a grader that returns numbers.
          memory_limit_gib: what a process may take beside what it took when the grader was loaded, in GiB; more is a
            MemoryError of the grader. None is no limit. Without effect but on Linux.

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
        """Returns at once; the answers are graded behind those of earlier calls. Any thread may call.

        Args:
          completions: texts to grade, [R].
          answers: what the grader compares each with, of any type that can be pickled, [R].
          infos: the further columns of the row of each, [R]; None is an empty mapping for all.

        Raises:
          ValueError: for an argument of another type or length, or what cannot be pickled; or if no process could load
            the grader any more.
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
        """Ends the processes; answers that are not graded make `Pending.result` raise. May be called again."""
        self._close()

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _payload(index: int, completion: str, answer: Any, info: Mapping[str, Any]) -> bytes:
    """Returns the arguments of the grader, pickled; raises ValueError for what cannot be graded."""
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
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
