"""The figure at the top of the README, from the results of the arena."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dps_jax.training._curves import cost_to_reach

_GREY, _GRID = "#5b6570", "#d8dce0"
# Colors by the name in the legend. "dps at its best decay" has the best decay for each mix.
_COLORS = {"uniform": "#5b6570", "dps": "#2f8f5b", "dps at its best decay": "#1f5fa8", "instructive": "#d1602b"}
_NUM_LAST = 3
# Number of panels: the mixes with the largest gains, and the mix with the smallest.
_NUM_GAINS = 2
Row = dict[str, Any]


class Place(NamedTuple):
    """A mix of prompts at the largest N.

    Attributes:
      mix: name of the mix.
      num_prompts: number of training prompts, N.
      rows: results of each method, by its name in the legend.
    """

    mix: str
    num_prompts: int
    rows: dict[str, Row]

    @property
    def ratio(self) -> float:
        """Rollouts of `instructive` to uniform's final accuracy, relative to uniform's; infinite if not reached."""
        found = self.rows["instructive"]["ratio_to_uniform"]
        return np.inf if found is None else found


def places_of(cells: Sequence[Row]) -> list[Place]:
    """Returns the mixes that have all methods, at their largest N, in order of decreasing gain."""
    largest = max((row["num_prompts"] for row in cells), default=0)
    found = []
    for mix in dict.fromkeys(row["mix"] for row in cells):
        mine = {row["method"]: row for row in cells if (row["mix"], row["num_prompts"]) == (mix, largest)}
        variants = [row for method, row in mine.items() if method == "dps" or method.startswith("dps:decay=")]
        if not {"uniform", "dps", "instructive"} <= set(mine) or "ratio_interval" not in mine["instructive"]:
            continue
        rows = {name: mine[name] for name in ("uniform", "dps")}
        rows["dps at its best decay"] = max(variants, key=lambda row: row["area"])
        found.append(Place(mix, largest, rows | {"instructive": mine["instructive"]}))
    return sorted(found, key=lambda place: place.ratio)


def title(place: Place) -> str:
    """Returns the title of a panel: the share of uniform's rollouts that selection needs, or that it does not pay."""
    informative = f"{place.mix}: {place.rows['uniform']['effective_sample_ratio']:.0%} informative"
    high = place.rows["instructive"]["ratio_interval"][1]
    if high is None or high >= 1:
        return f"{informative}\nselection does not pay"
    return f"{informative}\n{place.ratio:.0%} of uniform's rollouts"


def interval(row: Row, uniform: Row) -> tuple[float, float, float, float] | None:
    """Returns uniform's final accuracy, the rollouts at which a method reaches it, and their 95 % interval.

    A limit of the interval is infinite if it is not reached. Returns None if the method does not reach the accuracy.
    """
    if row.get("ratio_to_uniform") is None:
        return None
    target = float(np.mean(uniform["accuracy"][-_NUM_LAST:]))
    cost = cost_to_reach(np.array(uniform["rollouts"]), np.array(uniform["accuracy"]), target - 1e-9)
    low, high = (np.inf if bound is None else bound * cost for bound in row["ratio_interval"])
    return target, row["ratio_to_uniform"] * cost, low, high


def _draw(axes: Axes, place: Place) -> None:
    """Plots one mix: mean accuracies, and at uniform's final accuracy the intervals as bars."""
    uniform = place.rows["uniform"]
    end = uniform["rollouts"][-1]
    axes.axhline(np.mean(uniform["accuracy"][-_NUM_LAST:]), color=_GREY, linewidth=1, linestyle=":")
    for index, (name, row) in enumerate(place.rows.items()):
        thousands = np.array(row["rollouts"]) / 1000
        width = 2.4 if name == "instructive" else 1.6
        axes.plot(thousands, row["accuracy"], color=_COLORS[name], linewidth=width, label=name)
        found = interval(row, uniform)
        if name == "uniform" or found is None:
            continue
        target, middle, low, high = found
        # Shifted vertically, so that overlapping bars remain visible.
        height = target + 0.025 * (index - 2)
        ends = np.array([low, min(high, end)]) / 1000
        axes.plot(ends, [height, height], color=_COLORS[name], linewidth=4.5, alpha=0.45, solid_capstyle="butt")
        axes.plot(middle / 1000, height, "o", color=_COLORS[name], markersize=4, markeredgecolor="white")
    axes.set_title(title(place), loc="left", fontsize=8.5, fontweight="bold")
    axes.set(xlim=(0, end / 1000), ylim=(0, 1))
    axes.set_xlabel("thousand rollouts", fontsize=8.5)
    axes.tick_params(labelsize=8)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw(results: dict[str, Any]) -> Figure | None:
    """Returns the figure of held-out accuracy against rollouts, for the mixes with the largest gains and the smallest.

    Returns None if no mix of the arena has all of uniform, dps and instructive.

    Args:
      results: results of the arena.
    """
    places = places_of(results["cells"])
    if not places:
        return None
    shown = places[:_NUM_GAINS] + places[_NUM_GAINS:][-1:]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False).ravel()
    for axes, place in zip(panels, shown, strict=True):
        _draw(axes, place)
    panels[0].set_ylabel("held-out accuracy", fontsize=8.5)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, fontsize=8.5, frameon=False)
    num_seeds = len(shown[0].rows["uniform"]["seeds"])
    note = (
        f"N = {shown[0].num_prompts:,}, means of {num_seeds} runs. "
        "Dots: rollouts to uniform's final accuracy, with 95 % intervals."
    )
    figure.supxlabel(note, fontsize=8, color=_GREY)
    return figure
