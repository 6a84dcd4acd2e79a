"""Scores of predicted outcome distributions against the outcomes: log loss, calibration, ranking.

Functions take arrays over visits: `probs`, the predicted distribution of m = 0, ..., G correct completions, [R, G + 1],
and `successes`, the observed m, int [R]. If visits have different numbers of completions, `counts`, int [R], gives the
number of each visit, and the `probs` of a visit are 0 above its count; without `counts`, all visits have G completions.
Everything is computed on the host in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

__all__ = [
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

# Probabilities are clipped from below at this value, so that one surprise does not dominate a mean.
_SMALLEST_PROB = 1e-6


def _counts(probs: Any, counts: Any) -> np.ndarray:
    """Returns the number of completions of every visit, int [R]."""
    num_visits, num_outcomes = np.shape(probs)
    return np.full(num_visits, num_outcomes - 1) if counts is None else np.asarray(counts)


def _solved_probs(probs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns P(m = G), [R]."""
    return probs[np.arange(len(probs)), counts]


def informative_probs(probs: Any, counts: Any = None) -> np.ndarray:
    """Returns the predicted probability of an informative outcome, P(0 < m < G), float64 [R].

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      counts: number of completions of each visit, int [R]; None means G for all visits.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> scores.informative_probs(probs).round(2).tolist()
      [0.2, 0.8, 0.6]
    """
    probs, sizes = np.asarray(probs, np.float64), _counts(probs, counts)
    if counts is None:
        return probs[:, 1:-1].sum(axis=1)
    return np.where(np.arange(probs.shape[1]) < sizes[:, None], probs, 0)[:, 1:].sum(axis=1)


def is_informative(probs: Any, successes: Any, counts: Any = None) -> np.ndarray:
    """Returns whether each outcome was informative, 0 < m < G, bool [R].

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1]; only
        its shape is used.
      successes: number of correct completions of each visit, int [R].
      counts: number of completions of each visit, int [R]; None means G for all visits.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> scores.is_informative(probs, successes=[0, 1, 2]).tolist()
      [False, True, False]
    """
    return (np.asarray(successes) > 0) & (np.asarray(successes) < _counts(probs, counts))


def log_losses(probs: Any, successes: Any) -> np.ndarray:
    """Returns minus the log of the predicted probability of each outcome, nats, [R].

    Probabilities below 1e-6 count as 1e-6, so that one surprise does not dominate a mean.

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      successes: number of correct completions of each visit, int [R].

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> scores.log_losses(probs, successes=[0, 1, 2]).round(2).tolist()
      [0.36, 0.22, 2.3]
    """
    probs = np.asarray(probs, np.float64)
    return -np.log(np.maximum(probs[np.arange(len(probs)), np.asarray(successes)], _SMALLEST_PROB))


def brier_scores(probs: Any, successes: Any, counts: Any = None) -> np.ndarray:
    """Returns the Brier score of each visit: the squared error of P(0 < m < G), [R].

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      successes: number of correct completions of each visit, int [R].
      counts: number of completions of each visit, int [R]; None means G for all visits.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> scores.brier_scores(probs, successes=[0, 1, 2]).round(2).tolist()
      [0.04, 0.04, 0.36]
    """
    return (informative_probs(probs, counts) - is_informative(probs, successes, counts)) ** 2


def reliability(probs: Any, successes: Any, num_bins: int = 10, counts: Any = None) -> dict[str, np.ndarray]:
    """Returns the reliability diagram of P(0 < m < G), over bins of equal width.

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      successes: number of correct completions of each visit, int [R].
      num_bins: number of bins of the predicted probability.
      counts: number of completions of each visit, int [R]; None means G for all visits.

    Returns:
      A table of columns [num_bins]: "predicted", the mean predicted probability of the visits in each bin; "share", the
      share of them that were informative; and "visits", their number. An empty bin has NaN in the first two.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> table = scores.reliability(probs, successes=[0, 1, 2], num_bins=2)
      >>> {name: column.round(2).tolist() for name, column in table.items()}
      {'predicted': [0.2, 0.7], 'share': [0.0, 0.5], 'visits': [1, 2]}
    """
    predicted, came = informative_probs(probs, counts), is_informative(probs, successes, counts)
    bins = np.clip((predicted * num_bins).astype(int), 0, num_bins - 1)
    visits = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, predicted, num_bins) / visits
        share = np.bincount(bins, came, num_bins) / visits
    return {"predicted": mean, "share": share, "visits": visits}


def pooled_reliability(tables: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Returns one reliability diagram for the visits of several diagrams, such as the diagrams of several runs.

    Args:
      tables: tables as returned by `reliability`, all with the same number of bins.

    Example:
      >>> from dps_jax.traces import scores
      >>> one = {"predicted": [0.2, 0.8], "share": [0.3, 0.7], "visits": [10, 30]}
      >>> other = {"predicted": [0.4, 0.8], "share": [0.5, 0.9], "visits": [10, 10]}
      >>> pooled = scores.pooled_reliability([one, other])
      >>> {name: column.round(2).tolist() for name, column in pooled.items()}
      {'visits': [20, 40], 'predicted': [0.3, 0.8], 'share': [0.4, 0.75]}
    """
    visits = np.sum([table["visits"] for table in tables], axis=0)
    pooled: dict[str, np.ndarray] = {"visits": visits}
    for name in ("predicted", "share"):
        sums = np.nansum([np.asarray(table[name], np.float64) * table["visits"] for table in tables], axis=0)
        with np.errstate(invalid="ignore"):
            pooled[name] = sums / visits
    return pooled


def distance_in_bins(table: Mapping[str, Any]) -> float:
    """Returns the expected calibration error of a reliability diagram.

    This error is the mean absolute difference between predicted probability and observed share over bins, weighted by
    visits.

    Args:
      table: table as returned by `reliability`.

    Example:
      >>> from dps_jax.traces import scores
      >>> table = {"predicted": [0.2, 0.8], "share": [0.3, 0.7], "visits": [10, 30]}
      >>> round(scores.distance_in_bins(table), 3)
      0.1
    """
    gap = np.abs(np.asarray(table["predicted"], np.float64) - np.asarray(table["share"], np.float64))
    return float(np.nansum(gap * table["visits"]) / np.sum(table["visits"]))


def chance_in_bins(table: Mapping[str, Any]) -> float:
    """Returns the expected calibration error that a perfectly calibrated predictor would have by sampling noise alone.

    Args:
      table: table as returned by `reliability`, of which the predictions and the numbers of visits are used.

    Example:
      >>> from dps_jax.traces import scores
      >>> table = {"predicted": [0.2, 0.8], "share": [0.3, 0.7], "visits": [10, 30]}
      >>> scores.chance_in_bins(table) < scores.distance_in_bins(table)  # more than sampling noise
      True
    """
    predicted, visits = (np.asarray(table[name], np.float64) for name in ("predicted", "visits"))
    with np.errstate(divide="ignore"):
        # Mean absolute value of a normal error, as if all predictions in a bin were equal.
        gap = np.sqrt(2 / np.pi * predicted * (1 - predicted) / visits)
    return float(np.nansum(gap * visits) / np.sum(visits))


def reliability_error(probs: Any, successes: Any, num_bins: int = 10, counts: Any = None) -> float:
    """Returns the expected calibration error of P(0 < m < G).

    With few visits, sampling noise raises it; `chance_in_bins` returns the size of this effect.

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      successes: number of correct completions of each visit, int [R].
      num_bins: number of bins of the predicted probability.
      counts: number of completions of each visit, int [R]; None means G for all visits.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> round(scores.reliability_error(probs, successes=[0, 1, 2], num_bins=2), 2)
      0.2
    """
    return distance_in_bins(reliability(probs, successes, num_bins, counts))


def auc(probs: Any, successes: Any, counts: Any = None) -> float:
    """Returns the area under the ROC curve of P(0 < m < G) as a classifier of informative visits.

    This area is the share of pairs of an informative and an uninformative visit in which the informative visit has the
    larger predicted probability; ties count half. The result is NaN if all visits or no visits are informative.

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      successes: number of correct completions of each visit, int [R].
      counts: number of completions of each visit, int [R]; None means G for all visits.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> scores.auc(probs, successes=[0, 1, 2])
      1.0
    """
    predicted, came = informative_probs(probs, counts), is_informative(probs, successes, counts)
    num_positive, num_negative = int(came.sum()), int((~came).sum())
    if not num_positive or not num_negative:
        return float("nan")
    ranks = stats.rankdata(predicted)
    return float((ranks[came].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def spearman(probs: Any, successes: Any, counts: Any = None) -> float:
    """Returns Spearman's rank correlation of predicted and observed success rates; 0 if one of them is constant.

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      successes: number of correct completions of each visit, int [R].
      counts: number of completions of each visit, int [R]; None means G for all visits.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> round(scores.spearman(probs, successes=[0, 2, 1]), 2)
      1.0
    """
    probs, sizes = np.asarray(probs, np.float64), _counts(probs, counts)
    expected, rates = probs @ np.arange(probs.shape[1]) / sizes, np.asarray(successes) / sizes
    if np.ptp(expected) == 0 or np.ptp(rates) == 0:
        return 0.0
    return float(np.corrcoef(stats.rankdata(expected), stats.rankdata(rates))[0, 1])


def confusion(probs: Any, successes: Any, counts: Any = None) -> np.ndarray:
    """Returns the confusion matrix of solve states: numbers of visits by observed and predicted state, int [3, 3].

    States are unsolved, partially solved and solved; the predicted state is the most likely one.

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      successes: number of correct completions of each visit, int [R].
      counts: number of completions of each visit, int [R]; None means G for all visits.

    Returns:
      The matrix, with the observed state as row and the predicted state as column.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> scores.confusion(probs, successes=[0, 1, 2]).tolist()
      [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    """
    probs, successes, sizes = np.asarray(probs, np.float64), np.asarray(successes), _counts(probs, counts)
    classes = [probs[:, 0], informative_probs(probs, counts), _solved_probs(probs, sizes)]
    guesses = np.stack(classes, axis=1).argmax(axis=1)
    came = np.where(successes == 0, 0, np.where(successes == sizes, 2, 1))
    return np.histogram2d(came, guesses, bins=(3, 3), range=((-0.5, 2.5), (-0.5, 2.5)))[0].astype(int)


def interval_coverage(probs: Any, successes: Any, level: float = 0.9) -> float:
    """Returns the coverage of central prediction intervals, minus their predicted probability.

    As outcomes are discrete, an interval contains at least `level` of the predicted probability, and usually more.
    Calibrated predictions have an expected value of 0; a negative value indicates overconfidence.

    Args:
      probs: predicted distribution of m, the number of correct completions out of G, for each visit, [R, G + 1].
      successes: number of correct completions of each visit, int [R].
      level: smallest predicted probability of an interval.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])  # of 0, 1 and 2 correct of G = 2
      >>> round(scores.interval_coverage(probs, successes=[0, 1, 2], level=0.5), 2)  # too few inside: overconfident
      -0.2
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
    """Returns the mean of values over visits with its 95 % bootstrap interval over prompts.

    Visits of one prompt depend on each other, so prompts are resampled with all their visits.

    Args:
      values: values of the visits, such as log losses, float [R].
      prompt_ids: prompt of each visit, int [R].
      rng: source of randomness.
      num_resamples: number of bootstrap resamples.

    Returns:
      The mean, and the lower and the upper end of its interval.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> losses, prompt_ids = [0.2, 0.4, 0.9, 0.5], [0, 0, 1, 1]
      >>> mean, low, high = scores.bootstrap_by_prompt(losses, prompt_ids, np.random.default_rng(0))
      >>> round(mean, 2), low < mean < high
      (0.5, True)
    """
    _, index = np.unique(prompt_ids, return_inverse=True)
    sums, visits = np.bincount(index, values), np.bincount(index)
    picks = rng.integers(0, sums.size, (num_resamples, sums.size))
    means = sums[picks].sum(axis=1) / visits[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)
