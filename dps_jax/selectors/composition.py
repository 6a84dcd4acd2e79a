"""A selector from the parts it is made of: something that observes, and scores to rank.

The only place that knows about meshes. With one, every array over prompts is split along its last axis; `observe`
needs no communication but one scalar, and `select` exchanges the few best prompts of every shard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dps_jax import _checks
from dps_jax.selectors import ranking
from dps_jax.types import Prediction, Predictor, SelectInfo, Selector

ScoreFn = Callable[[Any], jax.Array | None]


def from_predictor(num_prompts: int, predictor: Predictor, score: ScoreFn, *, mesh: Mesh | None = None) -> Selector:
    """Returns the selector that ranks prompts by a score of the predictor's state.

    Args:
      num_prompts: N, at most 2**30.
      predictor: what observes.
      score: state -> float32 [N] without NaN, larger first, or None where all prompts are alike.
      mesh: of one axis, to shard the prompts along; None keeps them on one device.

    Raises:
      ValueError: for a bad `num_prompts` or a mesh of several axes. `select` raises it for a batch larger than N or
        than the candidates.
    """
    _checks.check_int("num_prompts", num_prompts, at_least=1, at_most=ranking.MAX_NUM_PROMPTS)
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"mesh: expected one axis, got {mesh.axis_names}")
    num_shards = 1 if mesh is None else mesh.size
    axis_name = None if mesh is None else mesh.axis_names[0]
    shard_size = -(-num_prompts // num_shards)
    num_padding = shard_size * num_shards - num_prompts
    specs = jax.tree.map(
        lambda leaf: PartitionSpec(*(None,) * (leaf.ndim - 1), axis_name) if leaf.ndim else PartitionSpec(),
        jax.eval_shape(lambda: predictor.init(shard_size)),
    )
    replicated = PartitionSpec()

    def on_shards(fn, in_specs, out_specs):
        """Returns fn(first_id, ...) run on every shard, with the id of the shard's first prompt."""
        if mesh is None:
            return lambda *arrays: fn(0, *arrays)

        def local(*arrays):
            return fn(lax.axis_index(axis_name) * shard_size, *arrays)

        return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def init(key: jax.Array) -> Any:
        del key
        build = on_shards(lambda _: predictor.init(shard_size), (), specs)
        if mesh is None:
            return build()
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        return jax.jit(build, out_shardings=shardings)()

    def local_ids(first_id, ids):
        """Returns positions in the shard; ids of other shards, and padding, become out of range."""
        is_mine = (ids >= first_id) & (ids < first_id + shard_size) & (ids >= 0) & (ids < num_prompts)
        return jnp.where(is_mine, ids - first_id, shard_size)

    def observe(state: Any, ids: jax.Array, successes: jax.Array, counts: jax.Array) -> Any:
        def observe_local(first_id, state, ids, successes, counts):
            return predictor.observe(state, local_ids(first_id, ids), successes, counts, axis_name)

        run = on_shards(observe_local, (specs, replicated, replicated, replicated), specs)
        return run(state, jnp.asarray(ids), jnp.asarray(successes), jnp.asarray(counts))

    def rank_all(first_id, state, salts, num_ranked):
        """Returns the best `num_ranked` prompts of all shards, the same on every shard."""
        # Padding at the end of the last shard takes no more than num_padding places.
        num_local = min(num_ranked + num_padding, shard_size)
        local = ranking.top_b(score(state), salts, num_local, size=shard_size, first_id=first_id)
        local = local._replace(scores=jnp.where(local.ids < num_prompts, local.scores, -jnp.inf))
        if axis_name is not None:
            local = jax.tree.map(lambda leaf: lax.all_gather(leaf, axis_name, tiled=True), local)
        return ranking.rank(local, num_ranked)

    def rank_candidates(first_id, state, salts, candidates, num_ranked):
        positions = local_ids(first_id, candidates)
        scores = score(state)
        if scores is None:
            found = jnp.zeros(candidates.shape, jnp.float32)
        else:
            found = jnp.where(positions < shard_size, scores[jnp.minimum(positions, shard_size - 1)], 0.0)
            if axis_name is not None:
                found = lax.psum(found, axis_name)  # every candidate belongs to one shard
        candidates = candidates.astype(jnp.int32)
        return ranking.rank(ranking.Ranking(candidates, found, ranking.tie_keys(salts, candidates)), num_ranked)

    def select(
        state: Any,
        key: jax.Array,
        batch_size: int,
        candidates: jax.Array | None = None,
        exclude: jax.Array | None = None,
    ) -> tuple[jax.Array, SelectInfo]:
        pool_size = num_prompts if candidates is None else jnp.shape(candidates)[0]
        pool = "num_prompts" if candidates is None else "the number of candidates"
        if not 1 <= batch_size <= pool_size:
            raise ValueError(f"batch_size: expected 1 to {pool_size} ({pool}), got {batch_size}")
        num_ranked = batch_size if exclude is None else min(batch_size + jnp.shape(exclude)[0], pool_size)
        salts = jax.random.bits(key, (4,), jnp.uint32)
        if candidates is None:
            run = on_shards(lambda *arrays: rank_all(*arrays, num_ranked), (specs, replicated), replicated)
            ranked = run(state, salts)
        else:
            rank_some = lambda *arrays: rank_candidates(*arrays, num_ranked)
            run = on_shards(rank_some, (specs, replicated, replicated), replicated)
            ranked = run(state, salts, jnp.asarray(candidates))
        if exclude is not None:
            # Excluded prompts go to the end; at most that many more were ranked, so the rest is exact.
            is_excluded = jnp.isin(ranked.ids, jnp.asarray(exclude))
            order = jnp.argsort(is_excluded, stable=True)[:batch_size]
            ranked = jax.tree.map(lambda leaf: leaf[order], ranked)
        return ranked.ids, SelectInfo(scores=ranked.scores)

    def over_prompts(fn):
        """Returns fn(state) for every prompt: without the padding of the last shard, and scalars repeated."""
        whole = lambda leaf: leaf[..., :num_prompts] if leaf.ndim else jnp.full(num_prompts, leaf)
        return lambda state: jax.tree.map(whole, fn(state))

    predicted_probs = None if predictor.predicted_probs is None else over_prompts(predictor.predicted_probs)
    predict: Callable[[Any], Prediction] = over_prompts(predictor.predict)
    return Selector(init, select, observe, predict, predicted_probs, predictor.num_impossible)
