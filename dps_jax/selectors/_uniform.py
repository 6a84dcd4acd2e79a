"""Uniform sampling without replacement within a batch: the baseline that predicts nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dps_jax.predictors._constant import constant
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._registry import register
from dps_jax.types import SelectInfo, Selector


def _inclusion_probs(
    ids: jax.Array, pool_size: int | jax.Array, candidates: ArrayLike | None, exclude: ArrayLike
) -> jax.Array:
    """Returns the probability of each of B picks where excluded prompts come last, [B]."""
    # Sorted, so that an id that is given twice counts once.
    known = jnp.sort(jnp.asarray(exclude).astype(jnp.int32))
    is_first = jnp.concatenate([jnp.ones(1, bool), known[1:] != known[:-1]])[: known.size]
    is_in_pool = (known >= 0) & ((known < pool_size) if candidates is None else jnp.isin(known, candidates))
    num_last = jnp.sum(is_first & is_in_pool, dtype=jnp.float32)
    num_first = pool_size - num_last
    num_picked = ids.shape[0]
    prob_first = jnp.minimum(num_picked / jnp.maximum(num_first, 1.0), 1.0)
    prob_last = (num_picked - num_first) / jnp.maximum(num_last, 1.0)
    return jnp.where(jnp.isin(ids, known), prob_last, prob_first)


@register
def uniform(
    num_prompts: int, *, max_wait: int | None = None, quotas: Any = None, groups: Any = None, mesh: Mesh | None = None
) -> Selector:
    """Returns the selector of B prompts at random; inclusion_probs are B over the number of candidates.

    There are none with turns or quotas.

    Args:
      num_prompts: N.
      max_wait: rounds after which a prompt is tested again; for this and the next two see
        `options.AcquisitionOptions`.
      quotas: least share of a batch for each group, [L].
      groups: of prompts, for the quotas, int [N].
      mesh: of one axis of any type, to shard the prompts along.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    selector = from_predictor(
        num_prompts, constant(), is_blind=True, max_wait=max_wait, quotas=quotas, groups=groups, mesh=mesh
    )
    if max_wait is not None or quotas is not None:
        return selector

    def select(
        state: Any,
        key: jax.Array,
        batch_size: int,
        candidates: ArrayLike | None = None,
        exclude: ArrayLike | None = None,
        is_firm: ArrayLike | None = None,
    ) -> tuple[jax.Array, SelectInfo]:
        ids, info = selector.select(state, key, batch_size, candidates, exclude, is_firm)
        pool_size = num_prompts if candidates is None else jnp.sum(jnp.asarray(candidates) >= 0)
        if exclude is None:
            probs = jnp.full(batch_size, batch_size / pool_size, jnp.float32)
        else:
            probs = _inclusion_probs(ids, pool_size, candidates, exclude)
        return ids, info._replace(inclusion_probs=probs)

    return selector._replace(select=select)
