"""The ranked lists of the best prompts overall, among candidates and in groups, from which picks are taken.

The lists are the same on every shard. Shards exchange only their few best prompts, or the keys of candidates.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.selectors import _keys, _ranking
from dps_jax.selectors._keys import Ranks, Salts
from dps_jax.selectors._sharding import Shards, of_some

# Candidates are padded to a multiple of this number, or of the number of all prompts if that is smaller. Rounding by
# XLA for CPU depends on the shape of an array, and a candidate must have the same score as in a ranking of all prompts.
_LANES = 128


class Wanted(NamedTuple):
    """The lists to compute.

    Attributes:
      ranks: score and options by which prompts are ranked; None ranks at random.
      shards: layout of the prompts on devices.
      specs: partition specs of the state, from `_sharding.state_specs`.
      batch_size: number of prompts to pick, B.
      sizes: length of the list of all prompts (key None) and of each group.
    """

    ranks: Ranks | None
    shards: Shards
    specs: Any
    batch_size: int
    sizes: dict[int | None, int]


def of_all(wanted: Wanted, first_id: Any, state: Any, salts: Salts) -> list[_ranking.Ranking]:
    """Returns the best prompts overall and of each group, in the order of `wanted.sizes`; `state` is of one shard."""
    shards, ranks = wanted.shards, wanted.ranks
    if ranks is None:
        return [_best(shards, first_id, salts, None, size) for size in wanted.sizes.values()]
    ids = first_id + jnp.arange(shards.size, dtype=jnp.int32)
    trial = functools.partial(_keys.trial_among_all, first_id, salts.trial, shards, wanted.batch_size)
    share = wanted.batch_size / shards.num_prompts
    scores = _keys.keys_of(ranks, state, salts, ids, trial=trial, picked_share=share)
    of_group = lambda group: scores if group is None else jnp.where(state.group == group, scores, -jnp.inf)
    return [_best(shards, first_id, salts, of_group(group), size) for group, size in wanted.sizes.items()]


def _best(shards: Shards, first_id: Any, salts: Salts, scores: jax.Array | None, size: int) -> _ranking.Ranking:
    """Returns the best prompts of all shards, by the scores [size] of the prompts of each shard, or at random."""
    # The padding of a shard takes at most num_padding places.
    num_local = min(size + shards.num_padding, shards.size)
    if scores is None:
        local = _ranking.random_b(salts.ties, num_local, shards.size, first_id=first_id)
    else:
        local = _ranking.top_b(scores, salts.ties, num_local, first_id=first_id)
    if shards.axis_name is None:
        return local
    local = local._replace(scores=jnp.where(local.ids < shards.num_prompts, local.scores, -jnp.inf))
    return _ranking.rank(shards.gathered(local), size)


def of_candidates(
    wanted: Wanted, first_id: Any, state: Any, salts: Salts, candidates: jax.Array
) -> list[_ranking.Ranking]:
    """Returns the best candidates, overall and of each group; candidates are int [M], and negative ids are left out."""
    shards, ranks, batch_size = wanted.shards, wanted.ranks, wanted.batch_size
    candidates = candidates.astype(jnp.int32)
    num_candidates = candidates.shape[0]
    scores, groups = jnp.zeros(num_candidates, jnp.float32), None
    if ranks is not None:
        padded = jnp.pad(candidates, (0, -num_candidates % min(_LANES, shards.size)))
        positions = shards.positions(first_id, padded)
        some = of_some(state, wanted.specs, jnp.minimum(positions, shards.size - 1))
        is_mine = positions[:num_candidates] < shards.size
        among = functools.partial(_keys.trial_among_candidates, is_mine, candidates, salts.trial, shards, batch_size)
        trial = lambda log_weights: among(log_weights[:num_candidates])
        share = batch_size / jnp.sum(candidates >= 0)
        local = _keys.keys_of(ranks, some, salts, padded, trial=trial, picked_share=share)
        # Without the barrier, XLA would omit the padding, and arrays of another shape are rounded differently.
        scores = shards.of_owners(is_mine, lax.optimization_barrier(local)[:num_candidates])
        if len(wanted.sizes) > 1:
            groups = shards.of_owners(is_mine, some.group[:num_candidates])
    scores = jnp.where(candidates >= 0, scores, -jnp.inf)
    ties = _ranking.tie_keys(salts.ties, candidates)
    of_group = lambda group: scores if group is None else jnp.where(groups == group, scores, -jnp.inf)
    return [
        _ranking.rank(_ranking.Ranking(candidates, of_group(group), ties), size) for group, size in wanted.sizes.items()
    ]
