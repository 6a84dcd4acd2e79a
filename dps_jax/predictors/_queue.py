"""A queue of three tiers: partially solved at the last visit, never visited, solved or unsolved at the last visit."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.predictors import _outcomes
from dps_jax.predictors._visits import pooled, visits
from dps_jax.types import Prediction, Predictor

_PARTIAL, _UNSEEN, _FLAT = range(3)
# Ages in rounds are clipped to this number, so that all scores are integers that float32 represents exactly.
_OLDEST = 2**23 - 1


class QueueState(NamedTuple):
    """The last visit of each prompt, and the outcomes of each tier.

    Attributes:
      visit: twice the round of the last visit, plus 1 if the prompt was partially solved then, int32 [N]; -1 for
        prompts without visits.
      round_index: number of rounds so far, int32 scalar.
      histograms: number of completion groups by the tier of their prompt and by their outcome, float32 [3, G + 1].
    """

    visit: jax.Array
    round_index: jax.Array
    histograms: jax.Array


def queue(*, group_size: int = 8) -> Predictor:
    """Returns the predictor of each prompt's next outcome from the past outcomes of all prompts in its tier.

    The three tiers, in the order in which the method `queue` picks, are prompts that were partially solved at their
    last visit, prompts without visits, and prompts that were solved or unsolved at their last visit. The outcomes of
    each tier have a categorical distribution with a uniform Dirichlet prior.

    Args:
      group_size: number of completions of a predicted completion group, G; visits with other counts are mapped to the
        nearest outcome out of G.

    Raises:
      ValueError: if `group_size` is not a whole number >= 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> predictor = predictors.queue()
      >>> state = predictor.observe(predictor.init(3), jnp.array([0, 1]), jnp.array([8, 3]), jnp.array([8, 8]))
      >>> print(np.asarray(predictor.predict(state).p_informative).round(2))  # prompt 2: from two first visits
      [0.78 0.78 0.73]
    """
    _checks.check_group_size(group_size)
    return Predictor(
        init=functools.partial(_init, group_size),
        predict=_predict,
        observe=functools.partial(_observe, group_size),
        outcome_probs=_outcome_probs,
    )


def _init(group_size: int, num_prompts: int, first_id: Any = 0) -> QueueState:
    del first_id
    return QueueState(
        visit=jnp.full(num_prompts, -1, jnp.int32),
        round_index=jnp.zeros((), jnp.int32),
        histograms=jnp.zeros((3, group_size + 1), jnp.float32),
    )


def _probs(state: QueueState) -> jax.Array:
    """Returns the distribution of the next outcome in each tier, [G + 1, 3]."""
    counts = state.histograms.T + 1
    return counts / counts.sum(axis=0, keepdims=True)


def _predict(state: QueueState) -> Prediction:
    tiers = _tier(state.visit)
    # Comparisons keep any sharding of the prompts; a gather would not.
    read = lambda entries: jnp.where(tiers == 0, entries[0], jnp.where(tiers == 1, entries[1], entries[2]))
    return jax.tree.map(read, _outcomes.summarise(_probs(state)))


def _outcome_probs(state: QueueState, positions: jax.Array) -> jax.Array:
    return _probs(state)[:, _tier(state.visit[positions])]


def _observe(
    group_size: int,
    state: QueueState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> QueueState:
    seen = visits(state.visit.shape[0], ids, successes, counts)
    outcome = _outcomes.nearest(seen.successes, seen.counts, group_size)
    tiers = _tier(state.visit[seen.positions])
    found = jnp.zeros_like(state.histograms).at[tiers, outcome].add(seen.weights)
    is_partial = (seen.successes > 0) & (seen.successes < seen.counts)
    visit = 2 * state.round_index + is_partial.astype(jnp.int32)
    return QueueState(
        visit=state.visit.at[seen.targets].set(visit, mode="drop"),
        round_index=state.round_index + 1,
        histograms=state.histograms + pooled(found, axis_name),
    )


def rank_score(state: QueueState) -> jax.Array:
    """Returns scores in the order of the queue, float32 [N], larger first.

    Scores are positive for prompts that were partially solved at their last visit, and larger for more recent visits.
    They are 0 for prompts without visits. They are negative for prompts that were solved or unsolved at their last
    visit, and larger for earlier visits.
    """
    age = jnp.minimum(state.round_index - state.visit // 2, _OLDEST)
    score = jnp.where(state.visit % 2 == 1, _OLDEST + 1 - age, age - _OLDEST - 1)
    return jnp.where(state.visit < 0, 0, score).astype(jnp.float32)


def _tier(visit: jax.Array) -> jax.Array:
    return jnp.where(visit < 0, _UNSEEN, jnp.where(visit % 2 == 1, _PARTIAL, _FLAT))
