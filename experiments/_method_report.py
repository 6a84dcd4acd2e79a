"""Figures and captions for the pages in docs/methods/: the learning curves of each method in the arena."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure

# The mixes of docs/when-selection-pays.md that the arena ran all methods on.
_MIXES = ("lean", "typical")
_COLOR, _GREY = "#1f5fa8", "#8a939c"


def curves(cells: Sequence[dict[str, Any]], method: str) -> Figure | None:
    """Returns a figure of the held-out accuracy of a method and of uniform selection; None if the method was not run.

    Args:
      cells: rows of arenas with the same mixes, numbers of prompts and seeds.
      method: name of a method in `selectors.SELECTORS`.
    """
    found = {(row["mix"], row["method"]): row for row in cells}
    if any((mix, name) not in found for mix in _MIXES for name in (method, "uniform")):
        return None
    figure = Figure(figsize=(7.4, 2.9), layout="constrained")
    for axes, mix in zip(figure.subplots(1, 2, sharey=True), _MIXES, strict=True):
        # For the method `uniform` itself, the dictionary has a single entry.
        for name, (color, style) in {"uniform": (_GREY, "--"), method: (_COLOR, "-")}.items():
            row = found[mix, name]
            thousands = [rollouts / 1000 for rollouts in row["rollouts"]]
            axes.plot(thousands, row["accuracy"], style, color=color, linewidth=2, label=name)
        share = 100 * found[mix, "uniform"]["effective_sample_ratio"]
        axes.set_title(f"{mix}: {share:.0f} % informative if uniform", loc="left", fontsize=9, fontweight="bold")
        axes.set(xlabel="thousand rollouts", ylim=(0, 1))
        axes.grid(color="#d8dce0", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out accuracy")
    figure.axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def caption(cells: Iterable[dict[str, Any]], method: str) -> str:
    """Returns a caption with the areas under the curves."""
    rows = {row["mix"]: row for row in cells if row["method"] == method}
    parts = [f"{rows[mix]['area']:.3f} ({mix})" for mix in _MIXES]
    num_seeds, size = len(rows[_MIXES[0]]["seeds"]), rows[_MIXES[0]]["num_prompts"]
    return (
        f"Held-out accuracy averaged over the course of a run: {', '.join(parts)}; {size:,} prompts, {num_seeds} "
        "seeds. [When selection pays](../when-selection-pays.md) describes the experiment and its mixes of prompts."
    )
