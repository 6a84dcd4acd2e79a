"""Colours, panels and labels of axes, which all figures share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax import _files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#1f5fa8", "#d1602b", "#2f8f5b", "#8a4fa3", "#b8961e", "#5b6570", "#c2447c", "#2a9bb0")
INK, GREY, GRID = "#20262c", "#808890", "#d8dce0"
_DPI = 130


def save(figure: Figure, path: Path | str) -> None:
    r"""Writes a figure as a PNG file, atomically.

    Args:
      figure: figure as returned by a function of this package.
      path: path of the file.

    Raises:
      OSError: if the file cannot be written; an existing file is not changed.

    Example:
      >>> from pathlib import Path
      >>> from dps_jax import viz
      >>> viz.save(viz.confusion_matrix([[3, 1], [0, 4]]), "confusion.png")
      >>> Path("confusion.png").read_bytes()[:4]
      b'\x89PNG'
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    _files.write_atomically(path, content.getvalue())


def moving_average(values: Any, window: int) -> np.ndarray:
    """Returns the centred moving average of a series, [T]; NaNs are skipped, and the window is truncated at the ends.

    Args:
      values: series, float [T].
      window: number of entries in the window, at least 1.

    Example:
      >>> from dps_jax import viz
      >>> viz.moving_average([1.0, 2.0, 6.0], 3).tolist()
      [1.5, 3.0, 4.0]
    """
    values = np.asarray(values, np.float64)
    if values.size == 0:
        return values
    is_known = np.isfinite(values)
    before, after = (window - 1) // 2, window - 1 - (window - 1) // 2
    spread = lambda entries: np.convolve(np.pad(entries, (before, after)), np.ones(window), mode="valid")
    counts, totals = spread(is_known.astype(np.float64)), spread(np.where(is_known, values, 0.0))
    return np.divide(totals, counts, out=np.full(values.shape, np.nan), where=counts > 0.5)


def panels(num_columns: int, *, title: str = "", ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels in a row.

    Args:
      num_columns: number of panels.
      title: title of the figure.
      ratios: ratios of the widths of the panels; None makes all widths equal.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 if num_columns == 1 else 11, 3.9), layout="constrained")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(wspace=0.04)  # pyright: ignore[reportCallIssue]
    if title:
        figure.suptitle(title)
    return figure, list(figure.subplots(1, num_columns, squeeze=False, width_ratios=ratios).flat)


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Sets the title and the labels of axes, and draws a grid and, if an artist has a label, a legend."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=9, frameon=False)


def percent(share: float, _: Any = None) -> str:
    """Returns a share as a percentage, for the tick labels of axes."""
    return f"{share:.0%}"


def draw_shares(figure: Figure, axes: Axes, edges: Any, table: Any) -> None:
    """Draws shares of all prompts as a heat map with a colour bar.

    Args:
      figure: figure that contains the axes.
      axes: axes to draw on.
      edges: edges of the columns on the x axis, [T + 1].
      table: shares by bins of equal width on [0, 1], [bins, T].
    """
    from matplotlib.colors import PowerNorm

    table = np.asarray(table)
    # Most prompts are in few bins; the square root keeps small shares in other bins visible.
    norm = PowerNorm(0.5, vmin=0, vmax=max(float(table.max(initial=0)), 1e-6))
    image = axes.pcolormesh(edges, np.linspace(0, 1, len(table) + 1), table, cmap="Blues", norm=norm)
    figure.colorbar(image, ax=axes, format=percent).set_label("share of all prompts")
