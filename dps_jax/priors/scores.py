"""How good one-step predictions of solve states were, and whether one prior predicts better than another."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from dps_jax.hmm import emissions
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.priors._outcomes import Outcomes
from dps_jax.priors._strength import predicted_probs

__all__ = ["SMALLEST_PROB", "class_probs", "difference", "log_losses"]

# No class counts as less likely than this, so that one surprise does not decide a comparison.
SMALLEST_PROB = 1e-4


def class_probs(prior: TransitionPrior, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what the filter with a prior predicted for every visit, and what came.

    Classes are unsolved (m = 0), partially solved and solved (m = G), whatever the emission is.

    Returns:
      probabilities of the three classes, float64 [R, 3]; the class that came, int [R]; position of the prompt, int [R];
      in order of rounds.

    Raises:
      ValueError: for a prior with groups and outcomes without, or two states, which do not tell the classes apart.
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
    """Returns summed one-step log losses of the three classes, nats, and visits, of every prompt: float64 [2, N]."""
    probs, seen, positions = class_probs(prior, outcomes)
    losses = -np.log(np.maximum(probs[np.arange(seen.size), seen], SMALLEST_PROB))
    total = lambda weights: np.bincount(positions, weights=weights, minlength=outcomes.num_prompts)
    return np.stack([total(losses), total(np.ones_like(losses))])


def difference(one: np.ndarray, other: np.ndarray, rng: np.random.Generator, num_resamples: int = 1000) -> Any:
    """Returns the mean loss per visit of `other` minus that of `one`, and its 95 % interval over prompts, nats.

    Args:
      one: of `log_losses`.
      other: of the same outcomes.
      rng: of the bootstrap, which resamples prompts.
      num_resamples: of the bootstrap.
    """
    gaps, visits = other[0] - one[0], one[1]
    picks = rng.integers(0, gaps.size, (num_resamples, gaps.size))
    resampled = gaps[picks].sum(axis=1) / np.maximum(visits[picks].sum(axis=1), 1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(gaps.sum() / visits.sum()), float(low), float(high)
