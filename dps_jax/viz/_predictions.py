"""Figure of the current predictions for all prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax import _checks
from dps_jax.viz import _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WORDS = {"success_rate": "predicted success rate", "p_informative": "predicted P(0 < m < G)"}
_NUM_BINS = 25
_MOST_GROUPS = 12


def predictions(
    predicted: Any,
    *,
    groups: Any = None,
    group_names: Sequence[str] | None = None,
    candidates: Any = None,
    title: str = "",
) -> Figure:
    """Returns a figure of two distributions over all prompts: predicted success rates and predicted P(0 < m < G).

    P(0 < m < G) is the probability that some but not all of the G completions of a prompt are correct.

    Args:
      predicted: predictions for all prompts, as returned by `PromptSelector.predict()` or by `predict` of a selector or
        a predictor: a mapping with the keys, or an object with the attributes, `success_rate` and `p_informative`,
        float [N] each.
      groups: prompt group of each prompt, int [N], -1 where it is unknown; adds a panel with predictions by prompt
        group, for the 12 largest groups. None leaves the panel out.
      group_names: names of the prompt groups 0, 1, ...; None uses "group 0", "group 1", ...
      candidates: ids of the prompts from which the next batch is picked, int [M]; the outline of their distribution is
        drawn over the distribution of all prompts. None draws only all prompts.
      title: title of the figure.

    Raises:
      ValueError: for predictions that are missing, differ in length or are not in [0, 1], or for groups, names or ids
        that do not fit the predictions.

    Example:
      >>> import dps_jax
      >>> from dps_jax import viz
      >>> selector = dps_jax.PromptSelector(num_prompts=6, groups=[0, 0, 1, 1, 1, -1])
      >>> figure = viz.predictions(selector.predict(), groups=[0, 0, 1, 1, 1, -1], group_names=["easy", "hard"])
      >>> [label.get_text() for label in figure.axes[2].get_yticklabels()]  # with numbers of prompts
      ['easy (2)', 'hard (3)', 'unknown (1)']
    """
    values = {name: _checked(predicted, name) for name in _WORDS}
    num_prompts = values["success_rate"].size
    if values["p_informative"].size != num_prompts:
        raise ValueError(
            f"predicted: expected one value per prompt, got {num_prompts} of success_rate and "
            f"{values['p_informative'].size} of p_informative"
        )
    if groups is not None:
        groups = _checks.check_groups(groups, num_prompts)
        if group_names is not None and groups.max(initial=-1) >= len(group_names):
            raise ValueError(f"group_names: expected at least {groups.max() + 1} names, got {list(group_names)}")
    if candidates is not None:
        candidates = _checks.check_ids("candidates", candidates, num_prompts)
    figure, axes = _style.panels(2 if groups is None else 3, title=title)
    for place, (name, color) in enumerate(zip(_WORDS, _style.COLORS, strict=False)):
        _draw_distribution(axes[place], values[name], candidates, color)
        heading = "Success rate" if name == "success_rate" else "Informative"
        _style.label(axes[place], heading, _WORDS[name], "share of prompts")
    if groups is not None:
        _draw_groups(axes[2], values, groups, group_names)
    return figure


def _checked(predicted: Any, name: str) -> np.ndarray:
    """Returns one field of predictions, float64 [N]."""
    value = predicted.get(name) if isinstance(predicted, Mapping) else getattr(predicted, name, None)
    if value is None or np.ndim(value) != 1 or not np.size(value):
        found = "none" if value is None else f"shape {list(np.shape(value))}"
        raise ValueError(f"predicted: expected {name} of shape [N], got {found}; PromptSelector.predict() returns it")
    array = np.asarray(value, np.float64)
    # Sums of float32 probabilities may be a little more than 1.
    if not np.all((array >= -1e-5) & (array <= 1 + 1e-5)):
        raise ValueError(f"predicted: expected {name} in [0, 1], got {array.min()} to {array.max()}")
    return np.clip(array, 0, 1)


def _draw_distribution(axes: Axes, values: np.ndarray, candidates: np.ndarray | None, color: str) -> None:
    """Draws the histograms of all prompts (bars) and of the candidates (outline), both as shares."""
    edges = np.linspace(0, 1, _NUM_BINS + 1)
    shares = lambda of: np.histogram(of, edges)[0] / max(of.size, 1)
    name = f"all {values.size:,} prompts"
    axes.bar(edges[:-1], shares(values), 1 / _NUM_BINS, align="edge", color=color, alpha=0.55, label=name)
    if candidates is not None:
        name = f"{candidates.size:,} candidates of the next batch"
        axes.stairs(shares(values[candidates]), edges, color=_style.INK, linewidth=1.5, label=name)
    axes.yaxis.set_major_formatter(_style.percent)
    # Leaves room for the legend.
    axes.set(xlim=(0, 1), ylim=(0, 1.3 * axes.get_ylim()[1]))


def _draw_groups(
    axes: Axes, values: dict[str, np.ndarray], groups: np.ndarray, group_names: Sequence[str] | None
) -> None:
    """Draws, for every prompt group, the means of both quantities and the middle 80 % of predicted success rates."""
    ids, sizes = np.unique(groups, return_counts=True)
    largest = np.sort(np.argsort(-sizes, kind="stable")[:_MOST_GROUPS])
    # Prompts of unknown group come last.
    order = [*largest[ids[largest] >= 0], *largest[ids[largest] < 0]]
    names = []
    for place, index in enumerate(order):
        mine = {name: of_all[groups == ids[index]] for name, of_all in values.items()}
        low, high = np.quantile(mine["success_rate"], (0.1, 0.9))
        is_first = place == 0
        axes.plot((low, high), (place, place), color=_style.COLORS[0], linewidth=5, alpha=0.3, solid_capstyle="butt")
        for (name, marker), color in zip(
            {"success_rate": "o", "p_informative": "D"}.items(), _style.COLORS, strict=False
        ):
            text = {"success_rate": "success rate", "p_informative": "P(0 < m < G)"}[name]
            mean = float(mine[name].mean())
            axes.plot(mean, place, marker, color=color, markersize=6, label=text if is_first else None, linestyle="")
        group = int(ids[index])
        name = "unknown" if group < 0 else f"group {group}" if group_names is None else group_names[group]
        names.append(f"{name} ({sizes[index]:,})")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -1.2))
    _style.label(axes, "By prompt group", "mean, and middle 80 %", "")
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center")
    if ids.size > _MOST_GROUPS:
        text = f"the {_MOST_GROUPS} largest of {ids.size:,}"
        axes.set_title(text, loc="right", fontsize=8.5, color=_style.GREY)
