"""The output of a run: a progress bar on a terminal, and a line from time to time elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

# Without a progress bar, a line is printed after this time; evaluations and other events have lines of their own.
_LINE_EVERY_S = 30.0


class Standing(NamedTuple):
    """The numbers that a progress report shows.

    Attributes:
      round_index: number of rounds done.
      effective_sample_ratio: effective sample ratio of the last round; None before the first.
      accuracy: test accuracy of the last evaluation; None before the first.
      rollouts: number of rollouts so far.
    """

    round_index: int
    effective_sample_ratio: float | None = None
    accuracy: float | None = None
    rollouts: int = 0


def default_console() -> Console:
    """Returns the console for standard output."""
    return Console() if sys.stdout.isatty() else Console(width=150)


def say(console: Console, text: str) -> None:
    """Prints a line without wrapping it, so that paths can be copied from a terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _text(template: str, **options: str) -> TextColumn:
    return TextColumn(template, table_column=Column(no_wrap=True, overflow="ellipsis", **options))  # pyright: ignore


def _bar(console: Console) -> Progress:
    """Returns a progress bar with as many columns as there is room for."""
    accuracy = _text("accuracy {task.fields[accuracy]}")
    if console.width < 60:
        columns = (MofNCompleteColumn(), accuracy, TimeRemainingColumn(compact=True))
    elif console.width < 110:
        columns = (_text("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeRemainingColumn(), accuracy)
    else:
        columns = (
            _text("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _text("rounds"),
            TimeRemainingColumn(),
            _text("informative {task.fields[ratio]}, test accuracy {task.fields[accuracy]}, {task.fields[rollouts]}"),
            _text("rollouts"),
        )
    return Progress(*columns, console=console)


class Reporter:
    """Reports the progress of a run; see `shown`."""

    def __init__(self, console: Console, name: str, num_rounds: int):
        self._console, self._name, self._num_rounds = console, name, num_rounds
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = time.monotonic()
        self._start: tuple[float, int] | None = None

    @property
    def has_bar(self) -> bool:
        """Whether the console can move its cursor; pipes, files and TERM=dumb cannot."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        self._last_line = time.monotonic()
        say(self._console, text)

    @contextlib.contextmanager
    def shown(self, standing: Standing) -> Iterator[None]:
        """Shows the progress bar, if the console has one."""
        self._start = (time.monotonic(), standing.round_index)
        if not self.has_bar:
            yield
            return
        with _bar(self._console) as self._bar:
            fields = self._fields(standing)
            completed = standing.round_index
            self._task = self._bar.add_task(self._name, total=self._num_rounds, completed=completed, **fields)
            yield

    def _fields(self, standing: Standing) -> dict[str, Any]:
        known = lambda value: "-" if value is None else f"{value:.2f}"
        return {
            "ratio": known(standing.effective_sample_ratio),
            "accuracy": known(standing.accuracy),
            "rollouts": f"{standing.rollouts:,}",
        }

    def update(self, standing: Standing) -> None:
        """Shows the progress of the run."""
        fields = self._fields(standing)
        if self._bar is not None:
            self._bar.update(self._task, completed=standing.round_index, **fields)
            return
        if time.monotonic() - self._last_line < _LINE_EVERY_S or self._start is None:
            return
        start_s, start_round = self._start
        per_round = (time.monotonic() - start_s) / max(standing.round_index - start_round, 1)
        left_s = per_round * (self._num_rounds - standing.round_index)
        self.say(
            f"round {standing.round_index} of {self._num_rounds}, {per_round:.1f} s each, about {left_s / 60:.0f} min "
            f"left: informative {fields['ratio']}, test accuracy {fields['accuracy']}, {fields['rollouts']} rollouts"
        )
