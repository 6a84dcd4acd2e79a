"""Builds a selector from a predictor and a score.

With a mesh, `observe` communicates only the statistics over all prompts, and `select` exchanges the few best prompts of
every shard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dps_jax.predictors import _outcomes
from dps_jax.selectors import _acquisition, _lists, _picking, _ranking, _sharding
from dps_jax.selectors._acquisition import Acquisition
from dps_jax.selectors._keys import Ranks, salts_of
from dps_jax.selectors._options import AcquisitionOptions, checks_options
from dps_jax.selectors._remembering import remembering
from dps_jax.selectors._sharding import REPLICATED, Shards
from dps_jax.types import Prediction, Predictor, PromptScore, SelectInfo, Selector


class _Parts(NamedTuple):
    """Constants of the selector.

    Attributes:
      predictor: predictor, wrapped by `remembering` if the acquisition needs it.
      ranks: score and options by which prompts are ranked; None picks at random.
      wanted: options of acquisition.
      shards: layout of the prompts on devices.
      specs: function () -> partition specs of the state.
    """

    predictor: Predictor
    ranks: Ranks | None
    wanted: Acquisition
    shards: Shards
    specs: Callable[[], Any]


@checks_options
def from_predictor(
    num_prompts: int,
    predictor: Predictor,
    score: PromptScore | None = None,
    *,
    is_ordinal: bool = False,
    drawn_value: str = "informative",
    is_blind: bool = False,
    mesh: Mesh | None = None,
    **options: Unpack[AcquisitionOptions],
) -> Selector:
    """Returns the selector that ranks prompts by a score that is computed from the state of a predictor.

    With `register`, a selector of your own becomes a method that `build` and `PromptSelector(method="lucky")` accept::

        def lucky_predictor(group_size: int = 8) -> types.Predictor: ...

        @selectors.register
        def lucky(num_prompts, *, group_size=8, mesh=None, **acquisition: Unpack[AcquisitionOptions]):
            return selectors.from_predictor(num_prompts, lucky_predictor(group_size), mesh=mesh, **acquisition)

    Args:
      num_prompts: number of prompts, N, at most 2**30.
      predictor: predictor whose state is ranked; `types.Predictor` describes its functions.
      score: function from the state to the score of each prompt, float32 [N], without NaN; prompts with the largest
        scores are picked. None ranks by the predicted P(0 < m < G).
      is_ordinal: whether only the order of the scores is meaningful. If so, the options `temperature` and
        `expected_tokens` require another score, set with the option `value`, `hardness` or `thompson`.
      drawn_value: quantity of a drawn state by which the option `thompson` ranks prompts if the option `value` is None:
        "informative" or "variance".
      is_blind: whether all prompts have the same score, so that picks are uniformly random.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **options: any of the options that `AcquisitionOptions` describes.

    Raises:
      ValueError: for a bad `num_prompts`, an option that is unknown or out of range, or a mesh of several axes. The
        function `select` of the selector raises it for a batch that is larger than N or than the number of candidates,
        or, if no candidates are passed, too small for `max_wait`.

    Example:
      >>> import jax
      >>> from dps_jax import predictors, selectors
      >>> selector = selectors.from_predictor(5, predictors.mopps(), temperature=0.5)
      >>> state = selector.init(jax.random.key(0))
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 2)
      >>> info.inclusion_probs.shape
      (2,)
    """
    shards = _sharding.shards_of(num_prompts, mesh)
    wanted = _acquisition.checked(num_prompts, options)
    score_of = _acquisition.score_of(predictor, wanted, score, is_ordinal=is_ordinal, drawn_value=drawn_value)
    is_remembering = any(option is not None for option in (wanted.max_wait, wanted.groups, wanted.expected_tokens))
    if is_remembering:
        predictor, inner = remembering(predictor, wanted), score_of
        score_of = lambda state, bits, num_prompts: inner(state.predictor, bits, num_prompts)
    ranks = Ranks(score_of, wanted) if is_remembering or not is_blind else None
    # Computed on first use, so that a configuration can be checked without running JAX.
    specs = functools.cache(functools.partial(_sharding.state_specs, predictor, shards))
    parts = _Parts(predictor, ranks, wanted, shards, specs)
    bound = lambda function: functools.partial(function, parts)
    return Selector(
        init=bound(_init),
        select=bound(_select),
        observe=bound(_observe),
        predict=bound(_predict),
        to_portable=bound(_to_portable),
        from_portable=bound(_from_portable),
        layout=bound(_layout),
        predicted_probs=None if predictor.predicted_probs is None else bound(_predicted_probs),
        num_impossible=predictor.num_impossible,
        with_prior=None if predictor.with_prior is None else bound(_with_prior),
    )


def _init(parts: _Parts, key: jax.Array) -> Any:
    del key
    return _sharding.placed_init(parts.predictor, parts.shards, parts.specs())


def _observe(parts: _Parts, state: Any, ids: ArrayLike, successes: ArrayLike, counts: ArrayLike) -> Any:
    shards = parts.shards
    ids, successes, counts = (jnp.asarray(array) for array in (ids, successes, counts))
    # Predictors that count all outcomes cannot distinguish padding from prompts of other shards by positions.
    counts = jnp.where((ids >= 0) & (ids < shards.num_prompts), counts, 0)

    def observe_local(first_id: Any, state: Any, ids: jax.Array, successes: jax.Array, counts: jax.Array) -> Any:
        return parts.predictor.observe(state, shards.positions(first_id, ids), successes, counts, shards.axis_name)

    run = shards.run(observe_local, (parts.specs(), REPLICATED, REPLICATED, REPLICATED), parts.specs())
    return run(state, ids, successes, counts)


def _list_sizes(wanted: Acquisition, batch_size: int, pool_size: int, num_excluded: int) -> dict[int | None, int]:
    """Returns the number of prompts to rank among all prompts (key None) and in each group with a quota."""
    # One more prompt than is picked, if inclusion probabilities depend on the first prompt that is not picked.
    spare = int(wanted.is_random) + num_excluded
    sizes: dict[int | None, int] = {None: min(batch_size + spare, pool_size)}
    return sizes | {group: min(n + spare, pool_size) for group, n in wanted.quota_sizes(batch_size).items()}


def _select(
    parts: _Parts,
    state: Any,
    key: jax.Array,
    batch_size: int,
    candidates: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    is_firm: ArrayLike | None = None,
) -> tuple[jax.Array, SelectInfo]:
    wanted, shards = parts.wanted, parts.shards
    candidates, exclude, is_firm = (
        None if part is None else jnp.asarray(part) for part in (candidates, exclude, is_firm)
    )
    pool_size = shards.num_prompts if candidates is None else candidates.shape[0]
    pool = "num_prompts" if candidates is None else "the number of candidates"
    if not 1 <= batch_size <= pool_size:
        raise ValueError(f"batch_size: expected 1 to {pool_size} ({pool}), got {batch_size}")
    if wanted.max_wait is not None and candidates is None:
        _acquisition.check_max_wait(wanted.max_wait, shards.num_prompts, batch_size)
    salts = salts_of(key)
    sizes = _list_sizes(wanted, batch_size, pool_size, 0 if exclude is None else exclude.shape[0])
    which = _lists.Wanted(parts.ranks, shards, parts.specs(), batch_size, sizes)
    if candidates is None:
        run = shards.run(functools.partial(_lists.of_all, which), (parts.specs(), REPLICATED), REPLICATED)
        best, *of_groups = run(state, salts)
    else:
        local = functools.partial(_lists.of_candidates, which)
        run = shards.run(local, (parts.specs(), REPLICATED, REPLICATED), REPLICATED)
        best, *of_groups = run(state, salts, candidates)
    quotas = list(zip(of_groups, wanted.quota_sizes(batch_size).values(), strict=True))
    picks = _picking.pick(best, quotas, batch_size, exclude, is_firm)
    probs = None
    if wanted.is_random:
        probs = _picking.inclusion_probs(picks, _ranking.gumbels(salts.noise, picks.ids))
    return picks.ids, SelectInfo(picks.scores, probs)


def _to_portable(parts: _Parts, state: Any) -> Any:
    return _sharding.to_portable(parts.shards, parts.specs(), state)


def _from_portable(parts: _Parts, arrays: Any) -> Any:
    return _sharding.from_portable(parts.shards, parts.specs(), _layout(parts), arrays)


def _layout(parts: _Parts) -> Any:
    return _sharding.layout(parts.predictor, parts.shards, parts.specs())


def _of_ids(parts: _Parts, fn: Any, state: Any, ids: ArrayLike) -> Any:
    """Returns fn(state, positions) for the prompts with some ids, replicated to every shard; 0 for padding."""
    shards = parts.shards

    def local(first_id: Any, state: Any, ids: jax.Array) -> Any:
        positions = shards.positions(first_id, ids.astype(jnp.int32))
        found = fn(state, jnp.minimum(positions, shards.size - 1))
        return shards.of_owners(positions < shards.size, found)

    return shards.run(local, (parts.specs(), REPLICATED), REPLICATED)(state, jnp.asarray(ids))


def _predict(parts: _Parts, state: Any, ids: ArrayLike | None = None) -> Prediction:
    if ids is None:
        return _sharding.over_all(parts.predictor.predict, parts.shards, parts.specs(), ndim=1)(state)
    of_some = lambda state, positions: _outcomes.summarise(parts.predictor.outcome_probs(state, positions))
    return _of_ids(parts, of_some, state, ids)


def _predicted_probs(parts: _Parts, state: Any, ids: ArrayLike | None = None) -> jax.Array:
    beliefs = parts.predictor.predicted_probs
    assert beliefs is not None
    if ids is None:
        return _sharding.over_all(beliefs, parts.shards, parts.specs(), ndim=2)(state)
    return _of_ids(parts, beliefs, state, ids)


def _with_prior(parts: _Parts, state: Any, prior: Any) -> Any:
    change = parts.predictor.with_prior
    assert change is not None
    run = parts.shards.run(lambda _, state, prior: change(state, prior), (parts.specs(), REPLICATED), parts.specs())
    return run(state, prior)
