"""Uniform sampling without replacement within a batch: the baseline without predictions."""

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
    """Returns the inclusion probability of each of B picks, if excluded prompts are picked last, [B]."""
    # Sorted, so that an id that appears twice counts once.
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
    num_prompts: int,
    *,
    group_size: int = 8,
    max_wait: int | None = None,
    quotas: Any = None,
    groups: Any = None,
    mesh: Mesh | None = None,
) -> Selector:
    r"""Returns the selector that draws B prompts uniformly at random, without replacement within a batch.

    B is the batch size. Every candidate has the same inclusion probability,

    $$P(\text{picked}) = B / M,$$

    with M candidates, or M = N without candidates. `SelectInfo` reports this probability unless the option `max_wait`
    or `quotas` is set.

    Uniform selection is the baseline of every comparison, and the right choice where about half of the prompts are
    informative (some of their G completions are correct, and some are wrong): no method then has an advantage over
    uniform selection; see docs/when-selection-pays.md. Where few prompts are informative, most of the rollouts of this
    method have no gradient.

    Args:
      num_prompts: number of prompts, N.
      group_size: number of completions per prompt, G. `predict` uses the distribution of outcomes over all prompts for
        groups of this size. The picks do not depend on this option.
      max_wait: largest number of rounds between two visits of a prompt; None sets no limit. `AcquisitionOptions`
        describes this option and the next two.
      quotas: minimum share of a batch for each prompt group, [L], with a sum of at most 1, or None.
      groups: group of each prompt, int [N] in [-1, L), used by `quotas`.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.uniform(100)
      >>> state = selector.init(jax.random.key(0))
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 25)
      >>> len(set(ids.tolist())), float(info.inclusion_probs[0])
      (25, 0.25)
    """
    selector = from_predictor(
        num_prompts,
        constant(group_size=group_size),
        is_blind=True,
        max_wait=max_wait,
        quotas=quotas,
        groups=groups,
        mesh=mesh,
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
        candidates, exclude = (None if part is None else jnp.asarray(part) for part in (candidates, exclude))
        ids, info = selector.select(state, key, batch_size, candidates, exclude, is_firm)
        pool_size = num_prompts if candidates is None else jnp.sum(candidates >= 0)
        if exclude is None:
            probs = jnp.full(batch_size, batch_size / pool_size, jnp.float32)
        else:
            probs = _inclusion_probs(ids, pool_size, candidates, exclude)
        return ids, info._replace(inclusion_probs=probs)

    return selector._replace(select=select)
