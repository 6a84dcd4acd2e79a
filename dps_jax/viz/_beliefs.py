"""Figure of the predictions before every round of a trace, for some prompts and for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.predictors import _outcomes
from dps_jax.traces import Trace
from dps_jax.traces.replay import Visits, _reported
from dps_jax.types import Predictor
from dps_jax.viz import _methods, _style
from dps_jax.viz._methods import Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WORDS = {"success_rate": "predicted success rate", "p_informative": "predicted P(0 < m < G)"}
_NUM_BINS = 20
_NUM_LINES = 4
_LONGEST_NAME = 24


class Beliefs(NamedTuple):
    """Predictions before every round.

    Attributes:
      of_some: predictions for the followed prompts, float64 [T, P].
      shares: share of all prompts whose prediction is in each bin of equal width on [0, 1], float64 [T, bins].
    """

    of_some: np.ndarray
    shares: np.ndarray


def follow(predictor: Predictor, visits: Visits, positions: np.ndarray, quantity: str, num_bins: int) -> Beliefs:
    """Returns the predictions before each round, from the outcomes of earlier rounds.

    Args:
      predictor: predictor of the N prompts of the visits.
      visits: visits of a trace.
      positions: positions of the prompts to follow, int [P], in [0, N).
      quantity: name of a field of `Prediction`.
      num_bins: number of bins of the shares.
    """
    followed = jnp.asarray(positions, jnp.int32)

    def report(state: Any, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        del ids
        of_all = jnp.broadcast_to(getattr(predictor.predict(state), quantity), (visits.num_prompts,))
        # A rate that rounding put just below the edge of a bin belongs to the bin above the edge.
        bins = jnp.clip((of_all * num_bins + 1e-4).astype(jnp.int32), 0, num_bins - 1)
        of_some = getattr(_outcomes.summarise(predictor.outcome_probs(state, followed)), quantity)
        return of_some, jnp.zeros(num_bins, jnp.int32).at[bins].add(1)

    of_some, counts = [], []
    for _, (some, shares) in _reported(predictor, visits, report):
        of_some.append(some)
        counts.append(shares)
    return Beliefs(np.concatenate(of_some).astype(np.float64), np.concatenate(counts) / visits.num_prompts)


def _positions(visits: Visits, prompt_ids: Any) -> np.ndarray:
    """Returns the positions of prompts in the visits, int [P]; of the most visited ones if `prompt_ids` is None."""
    if prompt_ids is None:
        visited = np.bincount(visits.ids, minlength=visits.num_prompts)
        return np.argsort(-visited, kind="stable")[: min(_NUM_LINES, np.count_nonzero(visited))]
    ids = _checks.check_integer_array("prompt_ids", prompt_ids)
    is_missing = ~np.isin(ids, visits.prompt_ids)
    if not ids.size or np.any(is_missing):
        found = "none" if not ids.size else ids[is_missing][0]
        raise ValueError(
            f"prompt_ids: expected ids of prompts of the trace, got {found}; None draws those with the most visits"
        )
    if ids.size > len(_style.COLORS):
        raise ValueError(f"prompt_ids: expected at most {len(_style.COLORS)} ids, got {ids.size}; draw several figures")
    return np.searchsorted(visits.prompt_ids, ids)


def beliefs(
    trace: Trace,
    method: Method = "binomial_hmm",
    *,
    prompt_ids: Any = None,
    quantity: str = "success_rate",
    num_prompts: int | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Returns a figure of predictions over the rounds of a trace: lines for some prompts, and a heat map of all.

    The method is replayed over the trace: it predicts every round before it observes the outcomes of that round. Only
    rounds with a visit are counted: steps 0, 10 and 20 of a trace are drawn as rounds 0, 1 and 2. The outcomes of the
    prompts with lines are drawn as points, at m / G; or for `quantity="p_informative"` at 1 where
    0 < m < G, and at 0 otherwise.

    Args:
      trace: trace of a run.
      method: name of a predictor, a key of `predictors.PREDICTORS` such as "binomial_hmm", "dps" or "mopps"; or a
        function from the number of completions G to a `Predictor`.
      prompt_ids: ids of the prompts that are drawn as lines, at most 8; None draws the 4 prompts with the most visits.
      quantity: predicted quantity: "success_rate", or "p_informative" for P(0 < m < G), where m of G completions are
        correct and G is the most frequent number of completions of a visit.
      num_prompts: number of prompts, N, if ids are in [0, N); the heat map then includes prompts without visits. None
        includes only prompts with a visit.
      names: texts of the prompts, indexed by prompt id, as `traces.read_named_trace` returns them; the legend shortens
        them to 24 characters. None shows ids.
      title: title of the figure.

    Raises:
      ValueError: for an empty trace, an id in the trace that is not below `num_prompts`, an unknown method or quantity,
        an empty
        `prompt_ids` or more than 8 ids, an id of a prompt that the heat map does not include, or names that do not
        reach the largest id.

    Example:
      >>> import numpy as np
      >>> from dps_jax import traces, viz
      >>> sizes = {"num_prompts": 20, "num_rounds": 6, "batch_size": 5}
      >>> trace = traces.simulate_learners(np.random.default_rng(0), **sizes).trace
      >>> figure = viz.beliefs(trace, "mopps", prompt_ids=trace.prompt_ids[:2], num_prompts=20)
      >>> len(figure.axes[0].lines[0].get_xdata())  # predictions before each of the 6 rounds
      6
      >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
      ['Some prompts', 'All 20 prompts']
    """
    _checks.check_choice("quantity", quantity, _WORDS)
    visits = _methods.checked_visits(trace, num_prompts)
    positions = _positions(visits, prompt_ids)
    if names is not None and len(names) <= visits.prompt_ids.max():
        raise ValueError(
            f"names: expected a text for each id up to {visits.prompt_ids.max()}, got {len(names)}; pass the texts "
            "that traces.read_named_trace returns with the trace"
        )
    predictor = _methods.builder(method)(_methods.usual_size(visits))
    found = follow(predictor, visits, positions, quantity, _NUM_BINS)
    figure, (some, everything) = _style.panels(2, title=title)
    rounds = np.arange(visits.num_rounds)
    for position, values, color in zip(positions, found.of_some.T, _style.COLORS, strict=False):
        name = _name_of(int(visits.prompt_ids[position]), names)
        some.plot(rounds, values, color=color, linewidth=1.8, label=name, marker="." if rounds.size == 1 else "")
        _draw_outcomes(some, visits, int(position), quantity, color)
    some.plot([], [], "o", color=_style.GREY, markersize=5, label="observed")
    some.set(ylim=(-0.04, 1.04))
    _style.label(some, "Some prompts", "round", _WORDS[quantity])
    # Below the panel, because lines may be anywhere in it.
    some.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
    _style.draw_shares(figure, everything, np.append(rounds, rounds.size) - 0.5, found.shares.T)
    heading = f"{visits.num_prompts:,} visited prompts" if num_prompts is None else f"All {num_prompts:,} prompts"
    _style.label(everything, heading, "round", _WORDS[quantity])
    return figure


def _name_of(prompt_id: int, names: Sequence[str] | None) -> str:
    """Returns the text for the legend; a dollar sign would begin a formula."""
    if names is None:
        return f"prompt {prompt_id}"
    text = " ".join(names[prompt_id].split()).replace("$", r"\$")
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


def _draw_outcomes(axes: Axes, visits: Visits, position: int, quantity: str, color: str) -> None:
    """Draws the outcomes of a prompt as points."""
    rows = visits.ids == position
    rates = visits.successes[rows] / visits.counts[rows]
    heights = rates if quantity == "success_rate" else ((rates > 0) & (rates < 1)).astype(float)
    axes.scatter(visits.rounds[rows], heights, s=26, color=color, edgecolors="white", linewidths=0.6, zorder=3)
