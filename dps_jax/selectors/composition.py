"""A selector from the parts it is made of: something that observes, and scores to rank.

The only place that knows about meshes. With one, every array over prompts is split along its last axis; `observe`
needs no communication but one scalar, and `select` exchanges the few best prompts of every shard.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dps_jax import _checks
from dps_jax.predictors import outcomes
from dps_jax.selectors import acquisition, picking, ranking
from dps_jax.selectors.acquisition import Acquisition, ScoreFn
from dps_jax.selectors.remembering import remembering
from dps_jax.types import Predictor, SelectInfo, Selector

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


class _Salts(NamedTuple):
    """Of one selection, uint32 [4] each: of ties, of noise in scores, of draws from beliefs, of noise in a trial."""

    ties: jax.Array
    noise: jax.Array
    draws: jax.Array
    trial: jax.Array


def _salts(key: jax.Array) -> _Salts:
    ties, draws = jax.random.bits(key, (2, 4), jnp.uint32)
    return _Salts(ties=ties, noise=~ties, draws=draws, trial=~draws)


# Where there are more prompts, a trial draws from about so many.
_TRIAL_SIZE = 2**17
# Log weights of a shard's prompts -> what a trial finds a perturbed one has to exceed to be picked, scalar. A trial has
# noise of its own: what follows from it says nothing about the noise of the real draw.
_Trial = Callable[[jax.Array], jax.Array]


def _keys(
    score: Callable[..., jax.Array],
    wanted: Acquisition,
    state: Any,
    salts: _Salts,
    ids: jax.Array,
    trial: _Trial,
    picked_share: float,
) -> jax.Array:
    """Returns what to rank the prompts of a shard by, float32 [size].

    Args:
      score: of `acquisition.score_fn`.
      wanted: how to choose.
      state: of the predictor of `from_predictor`.
      salts: of this selection.
      ids: of the prompts, int32 [size].
      trial: for the share that explores.
      picked_share: of the prompts to choose from, B / N.
    """
    keys = jnp.broadcast_to(score(state, lambda: ranking.bits(salts.draws, ids), ids.size), ids.shape)
    if wanted.expected_tokens is not None:
        keys = keys / state.expected_tokens
    if wanted.temperature:
        log_weights = jnp.log(jnp.maximum(keys, _SMALLEST_SCORE)) / wanted.temperature_among(1 / picked_share)
        if wanted.explore:
            # A small weight is drawn with a chance of weight / exp(lowest perturbed log weight that is picked).
            least = trial(log_weights) + math.log(wanted.explore * picked_share)
            log_weights = jnp.logaddexp(log_weights, least)
        keys = log_weights + ranking.gumbels(salts.noise, ids)
    if wanted.max_wait is not None:
        num_late = state.round - state.last_round - wanted.max_wait
        keys = jnp.where(num_late >= 0, picking.TURN_SCORE * (1.0 + num_late.astype(jnp.float32)), keys)
    return keys


def _trial_cutoff(
    first_id: Any, salts: jax.Array, shards: _Shards, batch_size: int, log_weights: jax.Array
) -> jax.Array:
    """Returns the lowest log weight that is picked from every n-th prompt, the same on every shard.

    Perturbed or not, whichever is higher: where there are no more good prompts than places, noise brings in no others,
    and the lowest perturbed weight of the good ones says little.
    """
    stride = max(1, shards.num_prompts // _TRIAL_SIZE)
    num_picked = max(1, round(batch_size / stride))
    positions = -first_id % stride + stride * jnp.arange(-(-shards.size // stride), dtype=jnp.int32)
    ids = first_id + positions
    sampled = log_weights[jnp.minimum(positions, shards.size - 1)]
    is_mine = (positions < shards.size) & (ids < shards.num_prompts)
    both = jnp.where(is_mine, jnp.stack([sampled, sampled + ranking.gumbels(salts, ids)]), -jnp.inf)
    best = lax.top_k(both, min(num_picked, positions.size))[0]
    if shards.axis_name is not None:
        best = lax.top_k(lax.all_gather(best, shards.axis_name, axis=1, tiled=True), num_picked)[0]
    return best.min(axis=1).max()


# Lists that are wanted: of all prompts (None) and of groups, and how many of each.
_Sizes = dict[int | None, int]


def _rank_all(
    first_id: Any,
    state: Any,
    salts: _Salts,
    *,
    keys_fn: Callable[..., jax.Array] | None,
    shards: _Shards,
    batch_size: int,
    sizes: _Sizes,
) -> list[ranking.Ranking]:
    """Returns the best of all prompts and of groups, the same on every shard."""

    def best(keys: jax.Array | None, size: int) -> ranking.Ranking:
        # The padding of a shard takes no more than num_padding places.
        num_local = min(size + shards.num_padding, shards.size)
        if keys is None:
            local = ranking.random_b(salts.ties, num_local, shards.size, first_id=first_id)
        else:
            local = ranking.top_b(keys, salts.ties, num_local, first_id=first_id)
        if shards.axis_name is None:
            return local
        local = local._replace(scores=jnp.where(local.ids < shards.num_prompts, local.scores, -jnp.inf))
        gathered = jax.tree.map(lambda leaf: lax.all_gather(leaf, shards.axis_name, tiled=True), local)
        return ranking.rank(gathered, size)

    if keys_fn is None:
        return [best(None, size) for size in sizes.values()]
    ids = first_id + jnp.arange(shards.size, dtype=jnp.int32)
    trial = functools.partial(_trial_cutoff, first_id, salts.trial, shards, batch_size)
    keys = keys_fn(state, salts, ids, trial, batch_size / shards.num_prompts)
    of_group = lambda group: keys if group is None else jnp.where(state.group == group, keys, -jnp.inf)
    return [best(of_group(group), size) for group, size in sizes.items()]


def _rank_candidates(
    first_id: Any,
    state: Any,
    salts: _Salts,
    candidates: jax.Array,
    *,
    keys_fn: Callable[..., jax.Array] | None,
    shards: _Shards,
    batch_size: int,
    sizes: _Sizes,
) -> list[ranking.Ranking]:
    """Returns the same among some prompts."""
    candidates = candidates.astype(jnp.int32)
    positions = shards.positions(first_id, candidates)
    is_mine, places = positions < shards.size, jnp.minimum(positions, shards.size - 1)

    def of_candidates(values: jax.Array) -> jax.Array:
        mine = jnp.where(is_mine, values[places], 0)
        return mine if shards.axis_name is None else lax.psum(mine, shards.axis_name)  # each belongs to one shard

    scores, groups = jnp.zeros(candidates.shape, jnp.float32), None
    if keys_fn is not None:
        ids = first_id + jnp.arange(shards.size, dtype=jnp.int32)

        def trial(log_weights: jax.Array) -> jax.Array:
            of_all = of_candidates(log_weights)
            both = jnp.stack([of_all, of_all + ranking.gumbels(salts.trial, candidates)])
            return lax.top_k(both, batch_size)[0].min(axis=1).max()

        scores = of_candidates(keys_fn(state, salts, ids, trial, batch_size / candidates.shape[0]))
    if len(sizes) > 1:
        groups = of_candidates(state.group)
    ties = ranking.tie_keys(salts.ties, candidates)
    of_group = lambda group: scores if group is None else jnp.where(groups == group, scores, -jnp.inf)
    return [ranking.rank(ranking.Ranking(candidates, of_group(group), ties), size) for group, size in sizes.items()]


def _of_some(fn: Callable[[Any, jax.Array], Any], shards: _Shards, first_id: Any, state: Any, ids: jax.Array) -> Any:
    """Returns fn(state, positions) for prompts of some ids, the same on every shard; 0 for padding."""
    positions = shards.positions(first_id, ids.astype(jnp.int32))
    is_mine = positions < shards.size
    found = fn(state, jnp.minimum(positions, shards.size - 1))
    mine = jax.tree.map(lambda leaf: jnp.where(is_mine, leaf, 0), found)
    # Each prompt belongs to one shard.
    return mine if shards.axis_name is None else lax.psum(mine, shards.axis_name)


def from_predictor(
    num_prompts: int,
    predictor: Predictor,
    score: ScoreFn | None = None,
    *,
    is_ordinal: bool = False,
    drawn_value: str = "informative",
    is_blind: bool = False,
    mesh: Mesh | None = None,
    **options: Any,
) -> Selector:
    """Returns the selector that ranks prompts by a score of the predictor's state.

    Args:
      num_prompts: N, at most 2**30.
      predictor: what observes.
      score: state -> float32 [N] without NaN, larger first; None is the predicted P(0 < m < G).
      is_ordinal: only the order of `score` means anything, so that no chances can be made of it.
      drawn_value: what a drawn state is worth, for `thompson`, where `value` does not say.
      is_blind: all prompts are alike, and picked at random.
      mesh: of one axis, to shard the prompts along; None keeps them on one device.
      **options: fields of `acquisition.Acquisition`.

    Raises:
      ValueError: for a bad `num_prompts`, an unknown option or one out of range, or a mesh of several axes. `select`
        raises it for a batch larger than N or than the candidates, or too small for `max_wait`.
    """
    shards = _shards(num_prompts, mesh)
    wanted = acquisition.checked(num_prompts, options)
    score_fn = acquisition.score_fn(predictor, wanted, score, is_ordinal=is_ordinal, drawn_value=drawn_value)
    remembers = any(option is not None for option in (wanted.max_wait, wanted.groups, wanted.expected_tokens))
    if remembers:
        predictor, inner_score = remembering(predictor, wanted), score_fn
        score_fn = lambda state, bits, num_prompts: inner_score(state.predictor, bits, num_prompts)
    keys_fn = None
    if remembers or not is_blind:
        keys_fn = functools.partial(_keys, score_fn, wanted)
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

    def list_sizes(batch_size: int, pool_size: int, num_excluded: int) -> _Sizes:
        # One more than is picked, where that decides with what probability they were.
        spare = int(wanted.is_random) + num_excluded
        sizes: _Sizes = {None: min(batch_size + spare, pool_size)}
        return sizes | {g: min(n + spare, pool_size) for g, n in wanted.quota_sizes(batch_size).items()}

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
        if wanted.max_wait is not None and candidates is None:
            acquisition.check_max_wait(wanted.max_wait, num_prompts, batch_size)
        salts = _salts(key)
        sizes = list_sizes(batch_size, pool_size, 0 if exclude is None else jnp.shape(exclude)[0])
        how = {"keys_fn": keys_fn, "shards": shards, "batch_size": batch_size, "sizes": sizes}
        if candidates is None:
            local = functools.partial(_rank_all, **how)
            best, *of_groups = shards.run(local, (specs, _REPLICATED), _REPLICATED)(state, salts)
        else:
            local = functools.partial(_rank_candidates, **how)
            run = shards.run(local, (specs, _REPLICATED, _REPLICATED), _REPLICATED)
            best, *of_groups = run(state, salts, jnp.asarray(candidates))
        quotas = list(zip(of_groups, wanted.quota_sizes(batch_size).values(), strict=True))
        picks = picking.pick(best, quotas, batch_size, None if exclude is None else jnp.asarray(exclude))
        probs = None
        if wanted.is_random:
            probs = picking.inclusion_probs(picks, ranking.gumbels(salts.noise, picks.ids))
        return picks.ids, SelectInfo(picks.scores, probs)

    def over_prompts(of_all: Callable[[Any], Any], of_some: Callable[[Any, jax.Array], Any]) -> Callable[..., Any]:
        """Returns the function (state, ids=None): of all prompts, without padding and scalars repeated, or of some."""
        whole = lambda leaf: leaf[..., :num_prompts] if leaf.ndim else jnp.full(num_prompts, leaf)
        local = functools.partial(_of_some, of_some, shards)

        def of(state: Any, ids: jax.Array | None = None) -> Any:
            if ids is None:
                return jax.tree.map(whole, of_all(state))
            return shards.run(local, (specs, _REPLICATED), _REPLICATED)(state, jnp.asarray(ids))

        return of

    def over_shards(fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Returns fn(state, replicated) -> state for the state of every shard."""
        return shards.run(lambda _, *arrays: fn(*arrays), (specs, _REPLICATED), specs)

    beliefs = predictor.predicted_probs
    return Selector(
        init=init,
        select=select,
        observe=observe,
        predict=over_prompts(predictor.predict, lambda *of: outcomes.summarise(predictor.outcome_probs(*of))),
        predicted_probs=None if beliefs is None else over_prompts(beliefs, beliefs),
        num_impossible=predictor.num_impossible,
        with_prior=None if predictor.with_prior is None else over_shards(predictor.with_prior),
    )
