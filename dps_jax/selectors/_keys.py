"""What prompts are ranked by: their scores, noise for a draw, and the right to a turn of those that waited too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.selectors import _picking, _ranking
from dps_jax.selectors._acquisition import Acquisition, ScoreOf
from dps_jax.selectors._sharding import Shards

# Scores below this count as this where their logarithm is taken.
_SMALLEST_SCORE = 1e-6
# Where there are more prompts, a trial draws from about so many.
_TRIAL_SIZE = 2**17


class Salts(NamedTuple):
    """Of one selection, uint32 [4] each: of ties, of noise in scores, of draws from beliefs, of noise in a trial."""

    ties: jax.Array
    noise: jax.Array
    draws: jax.Array
    trial: jax.Array


def salts_of(key: jax.Array) -> Salts:
    """Returns the salts of a selection."""
    ties, draws = jax.random.bits(key, (2, 4), jnp.uint32)
    return Salts(ties=ties, noise=~ties, draws=draws, trial=~draws)


class Ranks(NamedTuple):
    """What prompts are ranked by.

    Attributes:
      score: of `acquisition.score_of`.
      wanted: how to choose.
    """

    score: ScoreOf
    wanted: Acquisition


# Log weights of prompts -> what a trial finds a perturbed one has to exceed to be picked, scalar. A trial has noise of
# its own: what follows from it says nothing about the noise of the real draw.
Trial = Callable[[jax.Array], jax.Array]


def keys_of(
    ranks: Ranks, state: Any, salts: Salts, ids: jax.Array, *, trial: Trial, picked_share: float | jax.Array
) -> jax.Array:
    """Returns what to rank prompts by, float32 [P].

    Args:
      ranks: how.
      state: of these P prompts alone, of the predictor of `from_predictor`.
      salts: of this selection.
      ids: of the prompts, int32 [P].
      trial: for the share that explores.
      picked_share: of the prompts to choose from, B / N or B / M.
    """
    wanted = ranks.wanted
    keys = jnp.broadcast_to(ranks.score(state, lambda: _ranking.bits(salts.draws, ids), ids.size), ids.shape)
    if wanted.expected_tokens is not None:
        keys = keys / state.expected_tokens
    if wanted.temperature:
        log_weights = jnp.log(jnp.maximum(keys, _SMALLEST_SCORE)) / wanted.temperature_among(1 / picked_share)
        if wanted.explore:
            # A small weight is drawn with a chance of weight / exp(lowest perturbed log weight that is picked).
            least = trial(log_weights) + jnp.log(wanted.explore * jnp.asarray(picked_share, jnp.float32))
            log_weights = jnp.logaddexp(log_weights, least)
        keys = log_weights + _ranking.gumbels(salts.noise, ids)
    if wanted.max_wait is not None:
        num_late = state.round - state.last_round - wanted.max_wait
        keys = jnp.where(num_late >= 0, _picking.TURN_SCORE * (1.0 + num_late.astype(jnp.float32)), keys)
    return keys


def trial_among_all(
    first_id: Any, salts: jax.Array, shards: Shards, batch_size: int, log_weights: jax.Array
) -> jax.Array:
    """Returns the lowest log weight that is picked from every n-th prompt, the same on every shard.

    Perturbed or not, whichever is higher: where there are no more good prompts than places, noise brings in no others,
    and the lowest perturbed weight of the good ones says little.

    Args:
      first_id: of the shard.
      salts: uint32 [4], of the trial.
      shards: how prompts lie.
      batch_size: B.
      log_weights: of the shard's prompts, [size].
    """
    stride = max(1, shards.num_prompts // _TRIAL_SIZE)
    num_picked = max(1, round(batch_size / stride))
    positions = -first_id % stride + stride * jnp.arange(-(-shards.size // stride), dtype=jnp.int32)
    ids = first_id + positions
    sampled = log_weights[jnp.minimum(positions, shards.size - 1)]
    is_mine = (positions < shards.size) & (ids < shards.num_prompts)
    both = jnp.where(is_mine, jnp.stack([sampled, sampled + _ranking.gumbels(salts, ids)]), -jnp.inf)
    best = lax.top_k(both, min(num_picked, positions.size))[0]
    if shards.axis_name is not None:
        best = lax.top_k(shards.gathered(best, axis=1), num_picked)[0]
    return best.min(axis=1).max()


def trial_among_candidates(
    is_mine: jax.Array,
    candidates: jax.Array,
    salts: jax.Array,
    shards: Shards,
    batch_size: int,
    log_weights: jax.Array,
) -> jax.Array:
    """Returns the same, of a trial among all candidates.

    Args:
      is_mine: whether a candidate belongs to this shard, bool [M].
      candidates: ids, int32 [M].
      salts: uint32 [4], of the trial.
      shards: how prompts lie.
      batch_size: B.
      log_weights: of the candidates, [M]; of no meaning for those of other shards.
    """
    whole = jnp.where(candidates >= 0, shards.of_owners(is_mine, log_weights), -jnp.inf)
    both = jnp.stack([whole, whole + _ranking.gumbels(salts, candidates)])
    return lax.top_k(both, batch_size)[0].min(axis=1).max()
