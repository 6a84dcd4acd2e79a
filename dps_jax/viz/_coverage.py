"""Figure of which prompts a run has visited, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dps_jax.traces import Trace
from dps_jax.traces.replay import Visits
from dps_jax.viz import _methods, _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A histogram with more values than this has bars of several visits or rounds each.
_MOST_BARS = 40


def coverage(trace: Trace, *, num_prompts: int | None = None, title: str = "") -> Figure:
    """Returns a figure of how a run covered its prompts: distinct prompts over rounds, visits per prompt, last visits.

    Only rounds with a visit are counted: if a trace has visits in steps 0, 10 and 20, these are three rounds.

    Args:
      trace: trace of a run.
      num_prompts: number of prompts, N, if ids are in [0, N), so that prompts without visits are counted; None counts
        only prompts with a visit.
      title: title of the figure.

    Raises:
      ValueError: for an empty trace, or an id that is not below `num_prompts`.

    Example:
      >>> import numpy as np
      >>> from dps_jax import traces, viz
      >>> columns = {"rounds": [0, 0, 1], "prompt_ids": [3, 1, 3], "successes": [4, 0, 8], "counts": [8, 8, 8]}
      >>> trace = traces.Trace(**{name: np.array(column) for name, column in columns.items()})
      >>> figure = viz.coverage(trace, num_prompts=5)
      >>> len(figure.axes), figure.axes[0].lines[0].get_ydata().tolist()  # distinct prompts after each round
      (3, [2, 2])
    """
    visits = _methods.checked_visits(trace, num_prompts)
    figure, (distinct, spread, recent) = _style.panels(3, title=title)
    _draw_distinct(distinct, visits, num_prompts)
    num_visits = np.bincount(visits.ids, minlength=visits.num_prompts)
    _draw_counts(spread, num_visits, _style.COLORS[0])
    never = np.count_nonzero(num_visits == 0)
    spread.set_title(f"{never:,} of {num_visits.size:,} never visited", loc="right", fontsize=8.5, color=_style.GREY)
    _style.label(spread, "Visits", "visits of a prompt", "prompts")
    last = np.full(visits.num_prompts, -1)
    # Visits are in order of rounds, so that the last one remains.
    last[visits.ids] = visits.rounds
    _draw_counts(recent, visits.num_rounds - 1 - last[last >= 0], _style.COLORS[1])
    _style.label(recent, "Last visit", "rounds since a prompt's last visit", "prompts with a visit")
    return figure


def _draw_distinct(axes: Axes, visits: Visits, num_prompts: int | None) -> None:
    """Draws the number of distinct prompts visited up to each round, and a line at the number of all prompts."""
    _, first = np.unique(visits.ids, return_index=True)
    distinct = np.cumsum(np.bincount(visits.rounds[first], minlength=visits.num_rounds))
    rounds, marker = np.arange(visits.num_rounds), "o" if visits.num_rounds == 1 else ""
    axes.plot(rounds, distinct, color=_style.COLORS[0], linewidth=2, marker=marker, label="distinct prompts")
    if num_prompts is not None:
        axes.axhline(num_prompts, color=_style.GREY, linestyle="--", linewidth=1.2, label="all prompts")
    axes.set_ylim(0)
    _style.label(axes, "Coverage", "round", "prompts")


def _draw_counts(axes: Axes, values: np.ndarray, color: str) -> None:
    """Draws a histogram of whole numbers >= 0."""
    largest = int(values.max(initial=0))
    width = -(-(largest + 1) // _MOST_BARS)
    heights = np.bincount(values // width, minlength=1)
    axes.bar(np.arange(heights.size) * width - 0.5, heights, 0.9 * width, align="edge", color=color)
