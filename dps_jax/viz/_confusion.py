"""Figure of the confusion matrix of predicted and observed solve states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax.viz import _style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STATE_NAMES = {3: ("unsolved", "partial", "solved")}


def confusion_matrix(counts: Any, *, state_names: Sequence[str] | None = None, title: str = "") -> Figure:
    r"""Returns a figure of the confusion matrix of predicted (rows) and observed (columns) solve states.

    Args:
      counts: number of completion groups for each predicted (row) and observed (column) state, [K, K]: the transpose of
        what `traces.scores.confusion` returns.
      state_names: names of the K states; None stands for "unsolved", "partial" and "solved" if K is 3, and for "state
        0", "state 1", ... otherwise.
      title: title of the figure.

    Raises:
      ValueError: for counts of another shape, or if there are not K names.

    Example:
      >>> from dps_jax import viz
      >>> figure = viz.confusion_matrix([[6, 3, 1], [2, 8, 2], [0, 1, 5]], title="dps")
      >>> figure.axes[0].get_title()
      'dps\n67.9% of 28 groups as predicted'
    """
    from matplotlib.figure import Figure

    counts = np.asarray(counts, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"counts: expected shape [K, K], got {list(counts.shape)}")
    num_states = counts.shape[0]
    names = state_names or _STATE_NAMES.get(num_states, [f"state {index}" for index in range(num_states)])
    if len(names) != num_states:
        raise ValueError(f"state_names: expected {num_states} names, got {list(names)}")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    figure = Figure(figsize=(2.6 + 1.15 * num_states, 1.8 + 1.0 * num_states), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, place), count in np.ndenumerate(counts):
        share = shares[row, place]
        text = f"{share:.0%}\n{count:,.0f}" if totals[row, 0] else "-"
        axes.text(place, row, text, ha="center", va="center", color="white" if share > 0.55 else _style.INK)
    axes.set_xticks(range(num_states), names)
    axes.set_yticks(range(num_states), names)
    axes.set_xlabel("observed")
    axes.set_ylabel("predicted")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    hits = f"{np.trace(counts) / counts.sum():.1%} of {counts.sum():,.0f} groups" if counts.sum() else "no groups"
    axes.set_title(f"{title}\n{hits} as predicted".strip(), fontsize=10.5)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, format=_style.percent)
    bar.set_label("share of the row")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure
