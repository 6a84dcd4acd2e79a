"""The keys by which prompts are ranked: scores, with Gumbel noise for draws, and precedence after `max_wait` rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.selectors import _picking, _ranking
from dps_jax.selectors._acquisition import Acquisition, ScoreOf
from dps_jax.selectors._sharding import Shards

# Smaller scores are raised to this number before their logarithm is taken.
_SMALLEST_SCORE = 1e-6
# Approximate number of prompts that a trial draws from, if there are more.
_TRIAL_SIZE = 2**17


class Salts(NamedTuple):
    """Salts of the pseudo-random numbers of one selection, uint32 [4] each.

    The four salts are for ties, for the noise in scores, for draws from beliefs, and for the noise in a trial.
    """

    ties: jax.Array
    noise: jax.Array
    draws: jax.Array
    trial: jax.Array


def salts_of(key: jax.Array) -> Salts:
    """Returns the salts of a selection."""
    ties, draws = jax.random.bits(key, (2, 4), jnp.uint32)
    return Salts(ties=ties, noise=~ties, draws=draws, trial=~draws)


class Ranks(NamedTuple):
    """The score and the options by which prompts are ranked.

    Attributes:
      score: function from `_acquisition.score_of`.
      wanted: options of acquisition.
    """

    score: ScoreOf
    wanted: Acquisition


# Function: log weights of prompts -> threshold of a trial, a scalar: a trial picks the prompts whose perturbed log
# weights exceed the threshold. A trial has noise of its own, so that its threshold is independent of the noise of the
# actual draw.
Trial = Callable[[jax.Array], jax.Array]


def keys_of(
    ranks: Ranks, state: Any, salts: Salts, ids: jax.Array, *, trial: Trial, picked_share: float | jax.Array
) -> jax.Array:
    """Returns the keys by which prompts are ranked, float32 [P].

    Args:
      ranks: score and options.
      state: state of these P prompts alone, of the predictor of `from_predictor`.
      salts: salts of this selection.
      ids: ids of the prompts, int32 [P].
      trial: function that estimates the threshold of the draw, which the option `explore` needs.
      picked_share: share of the prompts that is picked, B / N or B / M.
    """
    wanted = ranks.wanted
    keys = jnp.broadcast_to(ranks.score(state, lambda: _ranking.bits(salts.draws, ids), ids.size), ids.shape)
    if wanted.expected_tokens is not None:
        keys = keys / state.expected_tokens
    if wanted.temperature:
        log_weights = jnp.log(jnp.maximum(keys, _SMALLEST_SCORE)) / wanted.temperature_among(1 / picked_share)
        if wanted.explore:
            # A prompt of small weight is drawn with probability weight / exp(lowest perturbed log weight of a pick).
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
    """Returns the lowest log weight of a pick in a trial among every n-th prompt, the same on every shard.

    The result is the larger of two numbers: the lowest perturbed log weight of picks with noise, and the lowest log
    weight of picks without noise. If at most B prompts have large weights, noise does not replace any of them, and the
    lowest of their perturbed log weights would be too low a threshold.

    Args:
      first_id: id of the first prompt of the shard.
      salts: salts of the trial, uint32 [4].
      shards: layout of the prompts on devices.
      batch_size: number of prompts to pick, B.
      log_weights: log weights of the shard's prompts, [size].
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
    """Returns the lowest log weight of a pick in a trial among all candidates; see `trial_among_all`.

    Args:
      is_mine: whether a candidate belongs to this shard, bool [M].
      candidates: ids of the candidates, int32 [M].
      salts: salts of the trial, uint32 [4].
      shards: layout of the prompts on devices.
      batch_size: number of prompts to pick, B.
      log_weights: log weights of the candidates, [M]; undefined for candidates of other shards.
    """
    whole = jnp.where(candidates >= 0, shards.of_owners(is_mine, log_weights), -jnp.inf)
    both = jnp.stack([whole, whole + _ranking.gumbels(salts, candidates)])
    return lax.top_k(both, batch_size)[0].min(axis=1).max()
