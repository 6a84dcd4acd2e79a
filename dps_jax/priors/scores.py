"""Scores of one-step predictions of solve states, to compare priors on a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from dps_jax.hmm import emissions
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.priors._outcomes import Outcomes
from dps_jax.priors._strength import predicted_probs

__all__ = ["SMALLEST_PROB", "class_probs", "difference", "log_losses"]

SMALLEST_PROB = 1e-4
"""Probabilities of classes are clipped from below at this value, so that one surprise does not dominate a mean."""


def class_probs(prior: TransitionPrior, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the class probabilities that the filter predicts for every visit, the observed classes, and the prompts.

    Classes are unsolved (m = 0), partially solved and solved (m = G), whatever the emission is, so that filters with
    different states can be compared.

    Args:
      prior: prior of the filter.
      outcomes: outcomes as returned by `priors.prepare`.

    Returns:
      For R visits, in order of rounds: the predicted probabilities of the three classes, float64 [R, 3]; the observed
      classes, int [R]; and the positions of the prompts in `outcomes`, int [R].

    Raises:
      ValueError: if the prior has groups and the outcomes have none, or if the prior has the exact emission with two
        states, which cannot distinguish the classes.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm, priors, traces
      >>> from dps_jax.priors import scores
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> prior = hmm.TransitionPrior(np.full(3, 1 / 3), np.full((3, 3), 1.0), decay=0.9)
      >>> probs, seen, positions = scores.class_probs(prior, outcomes)
      >>> probs.shape, seen.shape, bool(np.allclose(probs.sum(axis=1), 1))
      ((80, 3), (80,), True)
    """
    emission = prior.emission
    if emission.num_states < 3 and emission.kind == "exact":
        raise ValueError(f"prior: expected at least three states, got {emission.num_states}")
    codes = np.asarray(outcomes.codes)
    rounds, positions = np.nonzero(codes)
    successes, counts = (np.asarray(kinds)[codes[rounds, positions]] for kinds in (outcomes.successes, outcomes.counts))
    belief = np.asarray(predicted_probs(prior, outcomes), np.float64)[rounds, :, positions]
    by_state = np.stack([_class_probs_of_states(emission, int(size)) for size in np.unique(counts)])
    probs = np.einsum("rk,rkc->rc", belief, by_state[np.searchsorted(np.unique(counts), counts)])
    seen = np.where(successes == 0, 0, np.where(successes == counts, 2, 1))
    return probs / probs.sum(axis=1, keepdims=True), seen, positions


def _class_probs_of_states(emission: emissions.Emission, size: int) -> np.ndarray:
    """Returns p(class | state) for groups of a size, [K, 3]."""
    if emission.success_rates is None:
        states = np.arange(emission.num_states)
        classes = np.where(states == 0, 0, np.where(states == emission.num_states - 1, 2, 1))
        return np.eye(3)[classes]
    rates = np.asarray(emission.success_rates, np.float64)
    if emission.precision is None:
        ends = (1 - rates) ** size, rates**size
    else:
        a, b = rates * emission.precision, (1 - rates) * emission.precision
        log = special.betaln(a, b)
        ends = np.exp(special.betaln(a, b + size) - log), np.exp(special.betaln(a + size, b) - log)
    return np.stack([ends[0], 1 - ends[0] - ends[1], ends[1]], axis=1)


def log_losses(prior: TransitionPrior, outcomes: Outcomes) -> np.ndarray:
    """Returns the one-step log losses of the three classes, summed over the visits of each prompt.

    Classes are those of `class_probs`. Probabilities below `SMALLEST_PROB` = 1e-4 count as 1e-4.

    Args:
      prior: prior of the filter.
      outcomes: outcomes as returned by `priors.prepare`.

    Returns:
      The sum of the log losses of each prompt, nats, and the number of visits of each prompt, float64 [2, N].

    Raises:
      ValueError: see `class_probs`.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm, priors, traces
      >>> from dps_jax.priors import scores
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> prior = hmm.TransitionPrior(np.full(3, 1 / 3), np.full((3, 3), 1.0), decay=0.9)
      >>> losses, visits = scores.log_losses(prior, outcomes)
      >>> int(visits.sum()), bool(0 < losses.sum() / visits.sum() < 2)  # nats per visit
      (80, True)
    """
    probs, seen, positions = class_probs(prior, outcomes)
    losses = -np.log(np.maximum(probs[np.arange(seen.size), seen], SMALLEST_PROB))
    total = lambda weights: np.bincount(positions, weights=weights, minlength=outcomes.num_prompts)
    return np.stack([total(losses), total(np.ones_like(losses))])


def difference(one: np.ndarray, other: np.ndarray, rng: np.random.Generator, num_resamples: int = 1000) -> Any:
    """Returns the difference in mean log loss per visit, `other` minus `one`, nats, and its bootstrap interval.

    Args:
      one: losses and visits of one prior, as returned by `log_losses`.
      other: losses and visits of another prior for the same outcomes, as returned by `log_losses`.
      rng: source of randomness of the bootstrap, which resamples prompts.
      num_resamples: number of bootstrap resamples.

    Returns:
      The difference, and the lower and the upper end of its 95 % interval over prompts.

    Example:
      >>> import numpy as np
      >>> from dps_jax.priors import scores
      >>> one = np.array([[2.0, 3.0, 1.0], [4, 4, 2]])  # losses and visits of three prompts
      >>> other = np.array([[3.0, 4.0, 1.0], [4, 4, 2]])
      >>> gap, low, high = scores.difference(one, other, np.random.default_rng(0))
      >>> round(gap, 2), low <= gap <= high
      (0.2, True)
    """
    gaps, visits = other[0] - one[0], one[1]
    picks = rng.integers(0, gaps.size, (num_resamples, gaps.size))
    resampled = gaps[picks].sum(axis=1) / np.maximum(visits[picks].sum(axis=1), 1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(gaps.sum() / visits.sum()), float(low), float(high)
