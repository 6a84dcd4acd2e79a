"""Segments of keys and values that queries attend to; the segment of a prompt is shared by its completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class KeyValues(NamedTuple):
    """Keys and values of one layer. `_decoding` orders their axes differently; see `Prompts` and `Loop` there.

    Attributes:
      keys: keys, [B, 1 or G, S, num_kv_heads, head_dim]; 1 if all completions of a prompt share them.
      values: values, of the same shape.
    """

    keys: jax.Array
    values: jax.Array


class Seen(NamedTuple):
    """A segment of keys and values that queries attend to.

    Attributes:
      cache: keys and values of one layer.
      is_token: False for padding, which no query attends to, bool [B, 1 or G, positions]; None if there is no padding.
      is_causal: whether the queries have the same positions as the keys, and attend to no later ones.
    """

    cache: KeyValues
    is_token: jax.Array | None
    is_causal: bool


class Joined(NamedTuple):
    """All segments in one, with a row for each of the R = B G completions. A causal segment is the last.

    Attributes:
      keys: keys, [R, L, num_kv_heads, head_dim].
      values: values, of the same shape.
      is_token: False for padding, which no query attends to, bool [R, L]; None if there is no padding.
      num_before: number of positions before the causal segment; None if no segment is causal.
    """

    keys: jax.Array
    values: jax.Array
    is_token: jax.Array | None
    num_before: int | None


def joined(seen: Sequence[Seen], num_prompts: int, group_size: int) -> Joined:
    """Returns the segments joined into one. Segments that completions share are copied for each completion.

    Raises:
      ValueError: if several segments are causal.
    """
    causal = [one for one in seen if one.is_causal]
    if len(causal) > 1:
        raise ValueError(f"seen: expected at most one causal segment, got {len(causal)}; join them, or use 'plain'")
    ordered = [one for one in seen if not one.is_causal] + causal

    def in_rows(leaves: list[jax.Array]) -> jax.Array:
        """Returns arrays [B, 1 or G, positions, ...] concatenated to [R, L, ...]."""
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
