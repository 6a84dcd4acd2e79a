"""What queries look at: stretches of keys and values, of which those of a prompt are shared by its completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class KeyValues(NamedTuple):
    """Keys and values of one layer.

    Attributes:
      keys: [B, 1 or G, S, num_kv_heads, head_dim]; 1 where all completions of a prompt share them.
      values: of the same shape.
    """

    keys: jax.Array
    values: jax.Array


class Seen(NamedTuple):
    """A stretch of keys and values that queries look at.

    Attributes:
      cache: of one layer.
      is_token: False for those that no query looks at, bool [B, 1 or G, positions]; None where there are none.
      is_causal: the queries are at the same positions, and none looks at those behind it.
    """

    cache: KeyValues
    is_token: jax.Array | None
    is_causal: bool


class Joined(NamedTuple):
    """All stretches as one, a row for each completion, R = B G. A causal one is the last.

    Attributes:
      keys: [R, L, num_kv_heads, head_dim].
      values: of the same shape.
      is_token: False for those that no query looks at, bool [R, L]; None where there are none.
      num_before: positions before the causal stretch; None if no stretch is causal.
    """

    keys: jax.Array
    values: jax.Array
    is_token: jax.Array | None
    num_before: int | None


def joined(seen: Sequence[Seen], num_prompts: int, group_size: int) -> Joined:
    """Returns stretches as one. What completions share is copied for each.

    Raises:
      ValueError: if several stretches are causal.
    """
    causal = [one for one in seen if one.is_causal]
    if len(causal) > 1:
        raise ValueError(f"seen: expected at most one causal stretch, got {len(causal)}; join them, or take 'plain'")
    ordered = [one for one in seen if not one.is_causal] + causal

    def in_rows(leaves: list[jax.Array]) -> jax.Array:
        """Returns arrays [B, 1 or G, positions, ...] as one, [R, L, ...]."""
        each = [jnp.broadcast_to(leaf, (num_prompts, group_size, *leaf.shape[2:])) for leaf in leaves]
        whole = jnp.concatenate(each, axis=2)
        return whole.reshape(num_prompts * group_size, *whole.shape[2:])

    sizes = [one.cache.keys.shape[2] for one in ordered]
    is_token = None
    if any(one.is_token is not None for one in ordered):
        all_tokens = [jnp.ones((1, 1, size), bool) for size in sizes]
        masks = [one.is_token for one in ordered]
        is_token = in_rows([every if mask is None else mask for mask, every in zip(masks, all_tokens, strict=True)])
    return Joined(
        keys=in_rows([one.cache.keys for one in ordered]),
        values=in_rows([one.cache.values for one in ordered]),
        is_token=is_token,
        num_before=sum(sizes[:-1]) if causal else None,
    )
