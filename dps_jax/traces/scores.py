"""How good predictions of outcomes were, made before the outcomes came.

All functions take arrays over visits: `probs`, the distribution of m = 0, ..., G that was predicted, [R, G + 1], and
`successes`, the m that came, int [R]. Where groups differ in size, `counts` [R] has that of each visit, and its `probs`
are 0 beyond it; without `counts` all are of G. On the host, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

__all__ = [
    "SMALLEST_PROB",
    "auc",
    "bootstrap_by_prompt",
    "brier_scores",
    "chance_in_bins",
    "confusion",
    "distance_in_bins",
    "informative_probs",
    "interval_coverage",
    "is_informative",
    "log_losses",
    "pooled_reliability",
    "reliability",
    "reliability_error",
    "spearman",
]

# No outcome counts as less likely than this, so that one surprise does not decide a comparison.
SMALLEST_PROB = 1e-6


def _counts(probs: Any, counts: Any) -> np.ndarray:
    """Returns the group size of every visit, int [R]."""
    num_visits, num_outcomes = np.shape(probs)
    return np.full(num_visits, num_outcomes - 1) if counts is None else np.asarray(counts)


def _solved_probs(probs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns P(m = G), [R]."""
    return probs[np.arange(len(probs)), counts]


def informative_probs(probs: Any, counts: Any = None) -> np.ndarray:
    """Returns P(0 < m < G), float64 [R]."""
    probs, sizes = np.asarray(probs, np.float64), _counts(probs, counts)
    if counts is None:
        return probs[:, 1:-1].sum(axis=1)
    return np.where(np.arange(probs.shape[1]) < sizes[:, None], probs, 0)[:, 1:].sum(axis=1)


def is_informative(probs: Any, successes: Any, counts: Any = None) -> np.ndarray:
    """Returns whether 0 < m < G came, bool [R]."""
    return (np.asarray(successes) > 0) & (np.asarray(successes) < _counts(probs, counts))


def log_losses(probs: Any, successes: Any) -> np.ndarray:
    """Returns minus the log of the probability of what came, nats, [R]."""
    probs = np.asarray(probs, np.float64)
    return -np.log(np.maximum(probs[np.arange(len(probs)), np.asarray(successes)], SMALLEST_PROB))


def brier_scores(probs: Any, successes: Any, counts: Any = None) -> np.ndarray:
    """Returns squared errors of P(0 < m < G), [R]."""
    return (informative_probs(probs, counts) - is_informative(probs, successes, counts)) ** 2


def reliability(probs: Any, successes: Any, num_bins: int = 10, counts: Any = None) -> dict[str, np.ndarray]:
    """Returns mean prediction, share that was informative, and visits, of bins of equal width, [num_bins] each.

    Empty bins have NaN.
    """
    predicted, came = informative_probs(probs, counts), is_informative(probs, successes, counts)
    bins = np.clip((predicted * num_bins).astype(int), 0, num_bins - 1)
    visits = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, predicted, num_bins) / visits
        share = np.bincount(bins, came, num_bins) / visits
    return {"predicted": mean, "share": share, "visits": visits}


def pooled_reliability(tables: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the table of `reliability` for the visits of several tables together."""
    visits = np.sum([table["visits"] for table in tables], axis=0)
    pooled: dict[str, np.ndarray] = {"visits": visits}
    for name in ("predicted", "share"):
        sums = np.nansum([np.asarray(table[name], np.float64) * table["visits"] for table in tables], axis=0)
        with np.errstate(invalid="ignore"):
            pooled[name] = sums / visits
    return pooled


def distance_in_bins(table: Mapping[str, Any]) -> float:
    """Returns the mean distance between prediction and share over the bins of a table, weighted by visits."""
    gap = np.abs(np.asarray(table["predicted"], np.float64) - np.asarray(table["share"], np.float64))
    return float(np.nansum(gap * table["visits"]) / np.sum(table["visits"]))


def chance_in_bins(table: Mapping[str, Any]) -> float:
    """Returns the `distance_in_bins` to expect of right predictions, from the chance in so many visits alone."""
    predicted, visits = (np.asarray(table[name], np.float64) for name in ("predicted", "visits"))
    with np.errstate(divide="ignore"):
        # The mean size of a normal error; bins are taken to hold one prediction each.
        gap = np.sqrt(2 / np.pi * predicted * (1 - predicted) / visits)
    return float(np.nansum(gap * visits) / np.sum(visits))


def reliability_error(probs: Any, successes: Any, num_bins: int = 10, counts: Any = None) -> float:
    """Returns `distance_in_bins` of the table of `reliability`; of few visits, chance alone makes some."""
    return distance_in_bins(reliability(probs, successes, num_bins, counts))


def auc(probs: Any, successes: Any, counts: Any = None) -> float:
    """Returns how often an informative visit was ranked above another one; ties count half. NaN if all are alike."""
    predicted, came = informative_probs(probs, counts), is_informative(probs, successes, counts)
    num_positive, num_negative = int(came.sum()), int((~came).sum())
    if not num_positive or not num_negative:
        return float("nan")
    ranks = stats.rankdata(predicted)
    return float((ranks[came].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def spearman(probs: Any, successes: Any, counts: Any = None) -> float:
    """Returns the rank correlation of the expected and the observed success rate; 0 where one of them is constant."""
    probs, sizes = np.asarray(probs, np.float64), _counts(probs, counts)
    expected, rates = probs @ np.arange(probs.shape[1]) / sizes, np.asarray(successes) / sizes
    if np.ptp(expected) == 0 or np.ptp(rates) == 0:
        return 0.0
    return float(np.corrcoef(stats.rankdata(expected), stats.rankdata(rates))[0, 1])


def confusion(probs: Any, successes: Any, counts: Any = None) -> np.ndarray:
    """Returns visits by class that came and most likely class (unsolved, partially solved, solved), int [3, 3]."""
    probs, successes, sizes = np.asarray(probs, np.float64), np.asarray(successes), _counts(probs, counts)
    classes = [probs[:, 0], informative_probs(probs, counts), _solved_probs(probs, sizes)]
    guesses = np.stack(classes, axis=1).argmax(axis=1)
    came = np.where(successes == 0, 0, np.where(successes == sizes, 2, 1))
    return np.histogram2d(came, guesses, bins=(3, 3), range=((-0.5, 2.5), (-0.5, 2.5)))[0].astype(int)


def interval_coverage(probs: Any, successes: Any, level: float = 0.9) -> float:
    """Returns the share of outcomes inside central intervals of at least `level`, minus what these are said to hold.

    Outcomes are few, so intervals hold more than the level; 0 is right, negative is overconfident.
    """
    probs, successes = np.asarray(probs, np.float64), np.asarray(successes)
    cumulative = np.cumsum(probs, axis=1)
    low = np.argmax(cumulative >= (1 - level) / 2, axis=1)
    high = np.argmax(cumulative >= 1 - (1 - level) / 2 - 1e-9, axis=1)
    places = np.arange(probs.shape[1])
    is_inside = (places >= low[:, None]) & (places <= high[:, None])
    came = is_inside[np.arange(len(probs)), successes]
    return float(came.mean() - (probs * is_inside).sum(axis=1).mean())


def bootstrap_by_prompt(
    values: Any, prompt_ids: Any, rng: np.random.Generator, num_resamples: int = 500
) -> tuple[float, float, float]:
    """Returns the mean of values over visits and its 95 % interval; prompts are drawn whole.

    Args:
      values: float [R].
      prompt_ids: whose visits they are, int [R].
      rng: of the bootstrap.
      num_resamples: of it.
    """
    _, index = np.unique(prompt_ids, return_inverse=True)
    sums, visits = np.bincount(index, values), np.bincount(index)
    picks = rng.integers(0, sums.size, (num_resamples, sums.size))
    means = sums[picks].sum(axis=1) / visits[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)
