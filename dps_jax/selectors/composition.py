"""A selector from the parts it is made of: something that observes, and scores to rank.

The only place that knows about meshes. With one, every array over prompts is split along its last axis; `observe`
needs no communication but one scalar, and `select` exchanges the few best prompts of every shard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dps_jax import _checks
from dps_jax.selectors import ranking
from dps_jax.types import Predictor, SelectInfo, Selector

ScoreFn = Callable[[Any], jax.Array]

_REPLICATED = PartitionSpec()


class _Shards(NamedTuple):
    """How N prompts lie on the devices of a mesh; one shard without a mesh.

    Attributes:
      num_prompts: N.
      size: prompts of one shard, the same for all; the last shards may end in padding.
      num_padding: entries of padding.
      mesh: of one axis, or None.
      axis_name: of that axis, or None.
    """

    num_prompts: int
    size: int
    num_padding: int
    mesh: Mesh | None
    axis_name: str | None

    def run(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Returns a function of global arrays that runs fn(first_id, ...) on every shard."""
        if self.mesh is None:
            return functools.partial(fn, 0)
        local = lambda *arrays: fn(lax.axis_index(self.axis_name) * self.size, *arrays)
        return jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def positions(self, first_id: Any, ids: jax.Array) -> jax.Array:
        """Returns positions in one shard; `size` for ids of other shards and for padding."""
        is_mine = (ids >= first_id) & (ids < first_id + self.size) & (ids < self.num_prompts)
        return jnp.where(is_mine, ids - first_id, self.size)


def _shards(num_prompts: int, mesh: Mesh | None) -> _Shards:
    _checks.check_int("num_prompts", num_prompts, at_least=1, at_most=ranking.MAX_NUM_PROMPTS)
    if mesh is None:
        return _Shards(num_prompts, num_prompts, 0, None, None)
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh: expected one axis, got {mesh.axis_names}")
    size = -(-num_prompts // mesh.size)
    return _Shards(num_prompts, size, size * mesh.size - num_prompts, mesh, mesh.axis_names[0])


def _state_specs(predictor: Predictor, shards: _Shards) -> Any:
    """Returns how each leaf of a state is laid out: what grows with the number of prompts is split on its last axis."""
    sizes = (shards.size, shards.size + 1)
    shapes, larger = (jax.eval_shape(functools.partial(predictor.init, size)) for size in sizes)

    def spec(leaf, larger):
        is_split = leaf.shape != larger.shape
        return PartitionSpec(*(None,) * (leaf.ndim - 1), shards.axis_name) if is_split else _REPLICATED

    return jax.tree.map(spec, shapes, larger)


# Scores below this count as this where their logarithm is taken.
_SMALLEST_SCORE = 1e-6


def _perturb(scores: jax.Array, salts: jax.Array, ids: jax.Array, temperature: float) -> jax.Array:
    """Returns scores to rank: as they are, or with Gumbel noise, so that picks are proportional to powers of scores."""
    if not temperature:
        return scores
    return jnp.log(jnp.maximum(scores, _SMALLEST_SCORE)) / temperature + ranking.gumbels(_noise_salts(salts), ids)


def _noise_salts(salts: jax.Array) -> jax.Array:
    # Ties are broken by the salts themselves.
    return ~salts


def _inclusion_probs(ranked: ranking.Ranking, salts: jax.Array, num_picked: int) -> jax.Array:
    """Returns the probability that each of the first B keys exceeds the one after them, [B]; 1 if there is none.

    Source: Kool et al., arXiv 1903.06059, appendix on importance weights.
    """
    logits = ranked.scores - ranking.gumbels(_noise_salts(salts), ranked.ids)
    if ranked.ids.shape[0] == num_picked:
        return jnp.ones(num_picked, jnp.float32)
    return -jnp.expm1(-jnp.exp(logits[:num_picked] - ranked.scores[num_picked]))


def _rank_all(
    first_id: Any,
    state: Any,
    salts: jax.Array,
    *,
    shards: _Shards,
    score: ScoreFn | None,
    num_ranked: int,
    temperature: float,
) -> ranking.Ranking:
    """Returns the best `num_ranked` prompts of all shards, the same on every shard."""
    # The padding of a shard takes no more than num_padding places.
    num_local = min(num_ranked + shards.num_padding, shards.size)
    if score is None:
        local = ranking.random_b(salts, num_local, shards.size, first_id=first_id)
    else:
        ids = first_id + jnp.arange(shards.size, dtype=jnp.int32)
        scores = _perturb(score(state), salts, ids, temperature)
        local = ranking.top_b(scores, salts, num_local, first_id=first_id)
    if shards.axis_name is None:
        return local
    local = local._replace(scores=jnp.where(local.ids < shards.num_prompts, local.scores, -jnp.inf))
    gathered = jax.tree.map(lambda leaf: lax.all_gather(leaf, shards.axis_name, tiled=True), local)
    return ranking.rank(gathered, num_ranked)


def _rank_candidates(
    first_id: Any,
    state: Any,
    salts: jax.Array,
    candidates: jax.Array,
    *,
    shards: _Shards,
    score: ScoreFn | None,
    num_ranked: int,
    temperature: float,
) -> ranking.Ranking:
    """Returns the best `num_ranked` of some prompts, the same on every shard."""
    if score is None:
        scores = jnp.zeros(candidates.shape, jnp.float32)
    else:
        positions = shards.positions(first_id, candidates)
        scores = jnp.where(positions < shards.size, score(state)[jnp.minimum(positions, shards.size - 1)], 0.0)
        if shards.axis_name is not None:
            scores = lax.psum(scores, shards.axis_name)  # every candidate belongs to one shard
        scores = _perturb(scores, salts, candidates, temperature)
    candidates = candidates.astype(jnp.int32)
    return ranking.rank(ranking.Ranking(candidates, scores, ranking.tie_keys(salts, candidates)), num_ranked)


def from_predictor(
    num_prompts: int,
    predictor: Predictor,
    score: ScoreFn | None = None,
    *,
    temperature: float = 0.0,
    mesh: Mesh | None = None,
) -> Selector:
    """Returns the selector that ranks prompts by a score of the predictor's state.

    Args:
      num_prompts: N, at most 2**30.
      predictor: what observes.
      score: state -> float32 [N] without NaN, larger first; None where all prompts are alike.
      temperature: 0 takes the best. Above, scores must be positive, and prompts are drawn without replacement in
        proportion to score ** (1 / temperature), by Gumbel noise; `SelectInfo` then has inclusion_probs.
      mesh: of one axis, to shard the prompts along; None keeps them on one device.

    Raises:
      ValueError: for a bad `num_prompts`, a negative temperature or a mesh of several axes. `select` raises it for a
        batch larger than N or than the candidates.
    """
    shards = _shards(num_prompts, mesh)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: expected a finite number >= 0, got {temperature}")
    specs = _state_specs(predictor, shards)

    def init(key: jax.Array) -> Any:
        del key
        build = shards.run(lambda first_id: predictor.init(shards.size, first_id), (), specs)
        if mesh is None:
            return build()
        shardings = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
        return jax.jit(build, out_shardings=shardings)()

    def observe(state: Any, ids: jax.Array, successes: jax.Array, counts: jax.Array) -> Any:
        def observe_local(first_id, state, ids, successes, counts):
            return predictor.observe(state, shards.positions(first_id, ids), successes, counts, shards.axis_name)

        run = shards.run(observe_local, (specs, _REPLICATED, _REPLICATED, _REPLICATED), specs)
        return run(state, jnp.asarray(ids), jnp.asarray(successes), jnp.asarray(counts))

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
        # One more than is picked, where that decides with what probability they were.
        num_picked = min(batch_size + 1, pool_size) if temperature else batch_size
        num_ranked = num_picked if exclude is None else min(num_picked + jnp.shape(exclude)[0], pool_size)
        salts = jax.random.bits(key, (4,), jnp.uint32)
        how = {"shards": shards, "score": score, "num_ranked": num_ranked, "temperature": temperature}
        if candidates is None:
            local = functools.partial(_rank_all, **how)
            ranked = shards.run(local, (specs, _REPLICATED), _REPLICATED)(state, salts)
        else:
            local = functools.partial(_rank_candidates, **how)
            run = shards.run(local, (specs, _REPLICATED, _REPLICATED), _REPLICATED)
            ranked = run(state, salts, jnp.asarray(candidates))
        if exclude is not None:
            # Excluded prompts go to the end; at most that many more were ranked, so the rest is exact.
            is_excluded = jnp.isin(ranked.ids, jnp.asarray(exclude))
            order = jnp.argsort(is_excluded, stable=True)[:num_picked]
            ranked = jax.tree.map(lambda leaf: leaf[order], ranked)
        probs = _inclusion_probs(ranked, salts, batch_size) if temperature else None
        return ranked.ids[:batch_size], SelectInfo(ranked.scores[:batch_size], probs)

    def over_prompts(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns fn(state) for every prompt: without the padding of the last shard, and scalars repeated."""
        whole = lambda leaf: leaf[..., :num_prompts] if leaf.ndim else jnp.full(num_prompts, leaf)
        return lambda state: jax.tree.map(whole, fn(state))

    def over_shards(fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Returns fn(state, replicated) -> state for the state of every shard."""
        return shards.run(lambda _, *arrays: fn(*arrays), (specs, _REPLICATED), specs)

    return Selector(
        init=init,
        select=select,
        observe=observe,
        predict=over_prompts(predictor.predict),
        predicted_probs=None if predictor.predicted_probs is None else over_prompts(predictor.predicted_probs),
        num_impossible=predictor.num_impossible,
        with_prior=None if predictor.with_prior is None else over_shards(predictor.with_prior),
    )
