"""Reliability diagrams: the predicted P(0 < m < G) against the observed share of informative visits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax import _checks
from dps_jax.traces import Trace, scores
from dps_jax.traces.replay import replay_own_counts
from dps_jax.viz import _methods, _style
from dps_jax.viz._methods import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("predicted", "share", "visits")
# The 97.5 % quantile of the normal distribution, for 95 % intervals.
_QUANTILE = 1.959964


def wilson(shares: np.ndarray, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and the upper ends of Wilson's 95 % intervals of binomial shares, NaN for bins without visits.

    These intervals are also valid for shares of 0 and 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = _QUANTILE**2 / np.asarray(visits, np.float64)
        centre = (shares + squared / 2) / (1 + squared)
        half = _QUANTILE * np.sqrt(shares * (1 - shares) / visits + squared / (4 * visits)) / (1 + squared)
    return centre - half, centre + half


def calibration(
    trace: Trace,
    method: Method | Mapping[str, Method] = "binomial_hmm",
    *,
    num_bins: int = 10,
    title: str = "",
) -> Figure:
    """Returns the reliability diagram of P(0 < m < G), predicted for every visit of a trace before its outcome.

    The method is replayed over the trace. For each visit, G is its own number of completions, of which m are correct.

    Args:
      trace: trace of a run.
      method: name of a predictor, or function from G to a predictor, as in `beliefs`; or a mapping from names in the
        legend to such methods, at most 8, to compare them.
      num_bins: number of bins of equal width that predictions are sorted into, at least 1.
      title: title of the figure.

    Raises:
      ValueError: for an empty trace, an unknown method, no method or more than 8, a trace whose visits all have one
        completion, or `num_bins` below 1.

    Example:
      >>> import numpy as np
      >>> from dps_jax import traces, viz
      >>> sizes = {"num_prompts": 20, "num_rounds": 6, "batch_size": 5}
      >>> trace = traces.simulate_learners(np.random.default_rng(0), **sizes).trace
      >>> methods = {"mopps": "mopps", "base rate": "constant"}  # names in the legend, and names of predictors
      >>> figure = viz.calibration(trace, methods, num_bins=5)
      >>> [axes.get_title(loc="left") for axes in figure.axes]
      ['Calibration', 'Visits']
    """
    num_bins = _checks.check_int("num_bins", num_bins, at_least=1)
    visits = _methods.checked_visits(trace)
    if visits.counts.max() < 2:
        raise ValueError("trace: expected visits of 2 completions or more, as a single one is never informative, got 1")
    methods = method if isinstance(method, Mapping) else {_methods.name_of(method): method}
    if not methods:
        raise ValueError("method: expected at least one method, got none")
    tables = {}
    for name, of_method in methods.items():
        probs = replay_own_counts(_methods.builder(of_method), visits)
        tables[name] = scores.reliability(probs, visits.successes, num_bins, visits.counts)
    return reliability_diagram(tables, title=title)


def reliability_diagram(tables: Mapping[str, Mapping[str, Any]], *, title: str = "") -> Figure:
    """Returns a reliability diagram: the observed share of informative visits against the predicted P(0 < m < G).

    A visit is informative if 0 < m < G, where m of its G completions are correct. A second panel shows the number of
    visits in each bin. Error bars are Wilson's 95 % intervals of a binomial share, which assume that visits are
    independent. The legend gives the expected calibration error (`scores.distance_in_bins`), and in brackets the error
    that perfectly calibrated predictions would have by sampling noise alone.

    Args:
      tables: mapping from names of methods to tables as returned by `traces.scores.reliability`; at most 8.
      title: title of the figure.

    Raises:
      ValueError: for no tables, more than 8, or a table whose columns are missing or differ in length.

    Example:
      >>> from dps_jax import viz
      >>> table = {"predicted": [0.1, 0.7], "share": [0.25, 0.75], "visits": [8, 4]}
      >>> figure = viz.reliability_diagram({"mine": table})
      >>> [int(bar.get_height()) for bar in figure.axes[1].patches]  # visits by bin
      [8, 4]
    """
    if not 1 <= len(tables) <= len(_style.COLORS):
        raise ValueError(f"tables: expected 1 to {len(_style.COLORS)} tables, got {len(tables)}")
    for name, table in tables.items():
        shapes = [np.shape(table[column]) for column in _COLUMNS if column in table]
        if len(shapes) != len(_COLUMNS) or len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ValueError(
                f"tables: expected {', '.join(_COLUMNS)} of one length in {name!r}, got {sorted(table)}; "
                "dps_jax.traces.scores.reliability returns them"
            )
    figure, (diagram, sizes) = _style.panels(2, title=title, ratios=(1.2, 1))
    diagram.plot([0, 1], [0, 1], color=_style.GREY, linewidth=1, linestyle="--")
    for place, ((name, table), color) in enumerate(zip(tables.items(), _style.COLORS, strict=False)):
        visits = np.asarray(table["visits"])
        is_full = visits > 0
        predicted, share = (np.asarray(table[column], np.float64)[is_full] for column in ("predicted", "share"))
        low, high = wilson(share, visits[is_full])
        errors = np.maximum([share - low, high - share], 0)
        distance, chance = scores.distance_in_bins(table), scores.chance_in_bins(table)
        text = f"{name}: {distance:.3f} (chance {chance:.3f})"
        diagram.errorbar(predicted, share, errors, fmt="o-", markersize=4, capsize=2, color=color, label=text)
        width = 1 / visits.size / len(tables)
        lefts = np.arange(visits.size) / visits.size + place * width
        sizes.bar(lefts, visits, width, align="edge", color=color, edgecolor="white", linewidth=0.5, label=name)
    diagram.set(xlim=(0, 1), ylim=(0, 1))
    _style.label(diagram, "Calibration", "predicted P(0 < m < G)", "share of visits with 0 < m < G")
    if len(tables) > 1:
        # Below the panel, because curves may be anywhere in it.
        diagram.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    sizes.set(xlim=(0, 1))
    _style.label(sizes, "Visits", "predicted P(0 < m < G)", "visits")
    if len(tables) == 1:
        sizes.get_legend().remove()  # pyright: ignore[reportOptionalMemberAccess]
    return figure
