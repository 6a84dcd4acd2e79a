"""Attention by kernels that never have all scores: cuDNN's on NVIDIA GPUs, "splash" of JAX's Pallas library on TPUs.

Both take stretches as one, `key_values.joined`: keys and values of a prompt are copied for each of its completions,
which is little with grouped queries. What a query of padding gets is finite and means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.models._key_values import Seen, joined

# Lengths are padded to multiples of it, and head_dim too: a TPU's registers have as many columns.
_LANES = 128
# Queries or keys that the splash kernel takes at a time, at most.
_MAX_BLOCK = 512


class _Needs(NamedTuple):
    """What a kernel needs: a backend of JAX, its name in words, and types of numbers."""

    backend: str
    device: str
    dtypes: tuple[str, ...]


_NEEDS = {
    "cudnn": _Needs("gpu", "an NVIDIA GPU", ("float16", "bfloat16")),
    "splash": _Needs("tpu", "a TPU", ("float32", "bfloat16")),
}


def check_fits(attention: str, dtype: str, num_devices: int = 1, *, name: str = "attention") -> None:
    """Checks that an attention computes in a type, and over so many devices; those of no kernel always do.

    Raises:
      ValueError: if it does not.
    """
    needs = _NEEDS.get(attention)
    if needs is None:
        return
    if dtype not in needs.dtypes:
        raise ValueError(
            f"{name}: expected 'blockwise' or 'plain' in {dtype}, got {attention!r}, which computes in "
            f"{' or '.join(needs.dtypes)}; compute in bfloat16, or take 'blockwise'"
        )
    if num_devices > 1:
        raise ValueError(
            f"{name}: expected 'blockwise' or 'plain' where rows are split over {num_devices} devices, got "
            f"{attention!r}; take 'blockwise', or one device"
        )


def check_backend(attention: str, *, name: str = "attention") -> None:
    """Checks that there is the device that an attention needs.

    Raises:
      ValueError: if JAX computes on another.
    """
    needs, backend = _NEEDS.get(attention), jax.default_backend()
    if needs is not None and backend != needs.backend:
        raise ValueError(
            f"{name}: expected 'blockwise' or 'plain' on the backend {backend!r}, got {attention!r}, which needs "
            f"{needs.device}; take 'blockwise', or see why JAX finds no such device (jax.devices())"
        )


def cudnn(queries: jax.Array, seen: Sequence[Seen], *, num_devices: int = 1) -> jax.Array:
    """Returns what `attention.plain` does, by cuDNN's fused kernels, forward and backward, on one NVIDIA GPU.

    JAX takes a head_dim that is a multiple of 8, at most 128, or 256 from Hopper on. Lowered for CUDA with JAX 0.8.0
    and 0.10.2, and run on no GPU yet.

    Raises:
      ValueError: on another device or on several, or if numbers are neither float16 nor bfloat16.
    """
    check_fits("cudnn", queries.dtype.name, num_devices)
    check_backend("cudnn")
    return attend_by_lengths(queries, seen, implementation="cudnn")


def attend_by_lengths(
    queries: jax.Array, seen: Sequence[Seen], *, implementation: Literal["xla", "cudnn"]
) -> jax.Array:
    """Returns the attention of queries [B, G, S, H, head_dim] by `jax.nn.dot_product_attention`.

    There is no mask [S, L], which cuDNN would read as a bias, with a gradient of its own. The tokens of each row are
    moved to its front, so that a length is enough; queries of zeros are put at the positions before the causal stretch,
    so that a triangle is all that is masked. Their part is small: P P / 2 pairs of (P + S) (P + S) / 2.

    Args:
      queries: as of `attention.plain`.
      seen: of these, at most one is causal.
      implementation: of `jax.nn.dot_product_attention`.
    """
    batch, group, length, num_heads, head_dim = queries.shape
    whole = joined(seen, batch, group)
    is_causal, before = whole.num_before is not None, whole.num_before or 0
    rows = queries.reshape(batch * group, length, num_heads, head_dim)
    rows = jnp.pad(rows, ((0, 0), (before, 0), (0, 0), (0, 0)))
    keys, values, places, lengths = whole.keys, whole.values, None, None
    if whole.is_token is not None:
        places, order = _tokens_first(whole.is_token)
        keys, values = _in_order(keys, order), _in_order(values, order)
        rows = _in_order(rows, order) if is_causal else rows
        # A row of padding has one position that can be seen.
        lengths = jnp.maximum(jnp.sum(whole.is_token, axis=1, dtype=jnp.int32), 1)
    elif not is_causal:
        lengths = jnp.full(batch * group, keys.shape[1], jnp.int32)
    mixed = jax.nn.dot_product_attention(
        _even(rows),
        _even(keys),
        _even(values),
        is_causal=is_causal,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    if is_causal:
        mixed = mixed[:, before : before + length] if places is None else _in_order(mixed, places[:, before:])
    return mixed[:, :length].reshape(queries.shape)


def _even(leaf: jax.Array) -> jax.Array:
    """Returns an array [R, L, heads, head_dim] with one more position at the end if L is odd.

    JAX takes no odd L for a gradient of cuDNN, although what cuDNN cannot do with one is a bias.
    """
    return jnp.pad(leaf, ((0, 0), (0, leaf.shape[1] % 2), (0, 0), (0, 0)))


def _tokens_first(is_token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns where every position goes, and which position comes to every place, if tokens come first, [R, L]."""
    num_rows, length = is_token.shape
    before = jnp.cumsum(is_token, axis=1, dtype=jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), is_token.shape)
    # Tokens keep their order, and so does padding.
    places = jnp.where(is_token, before - 1, before[:, -1:] + positions - before)
    row_ids = jnp.arange(num_rows)[:, None]
    return places, jnp.zeros_like(places).at[row_ids, places].set(positions, unique_indices=True)


def _in_order(leaf: jax.Array, order: jax.Array) -> jax.Array:
    """Returns entries of an array [R, L, ...] in another order, [R, places, ...], none of them twice."""
    row_ids = jnp.arange(leaf.shape[0])[:, None]
    return leaf.at[row_ids, order].get(unique_indices=True, mode="promise_in_bounds")


def splash(
    queries: jax.Array, seen: Sequence[Seen], *, num_devices: int = 1, is_interpreted: bool = False
) -> jax.Array:
    """Returns what `attention.plain` does, by the splash kernels of JAX, forward and backward, on one TPU.

    Blocks of keys that no query of a block sees are not computed. Tried with JAX 0.8.0 and 0.10.2, interpreted and
    lowered for a TPU, and on none.

    Args:
      queries: as of `attention.plain`.
      seen: of these, at most one is causal.
      num_devices: 1.
      is_interpreted: run the kernels on any device, very slowly, to test them.

    Raises:
      ValueError: on another device or on several.
    """
    check_fits("splash", queries.dtype.name, num_devices)
    if not is_interpreted:
        check_backend("splash")
    batch, group, length, num_heads, head_dim = queries.shape
    whole = joined(seen, batch, group)
    num_rows, num_keys = whole.keys.shape[:2]
    blocks = _block_of(length), _block_of(num_keys)
    rows = _heads_first(queries.reshape(num_rows, length, num_heads, head_dim) * head_dim**-0.5, blocks[0])
    keys, values = (_heads_first(leaf, blocks[1]) for leaf in (whole.keys, whole.values))
    kernel, segment_ids = _splash_kernel(
        (rows.shape[2], keys.shape[2]), blocks, num_heads, whole.num_before, is_interpreted=is_interpreted
    )
    segments = None
    # Causal, no query of a row sees the padding of its length, which is behind it.
    if whole.is_token is not None or whole.num_before is None:
        is_token = jnp.ones((num_rows, num_keys), bool) if whole.is_token is None else whole.is_token
        segments = segment_ids(
            q=jnp.ones((num_rows, rows.shape[2]), jnp.int32),
            kv=jnp.pad(is_token, ((0, 0), (0, keys.shape[2] - num_keys))).astype(jnp.int32),
        )
    mixed = jax.vmap(kernel)(rows, keys, values, segments)
    return jnp.swapaxes(mixed, 1, 2)[:, :length, :, :head_dim].reshape(queries.shape)


def _splash_kernel(
    shape: tuple[int, int], blocks: tuple[int, int], num_heads: int, num_before: int | None, *, is_interpreted: bool
) -> tuple[Callable[..., jax.Array], Callable[..., Any]]:
    """Returns the kernel of one row, and what makes its segments, between which nothing is seen.

    Args:
      shape: numbers of queries and keys.
      blocks: how many of each are taken at a time.
      num_heads: H.
      num_before: keys that all queries see, before those of a triangle; None where all see all.
      is_interpreted: see `splash`.
    """
    # Only where they are used: nothing else needs the TPU part of Pallas.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    mask = masks.FullMask(shape) if num_before is None else masks.CausalMask(shape, offset=num_before)
    fields = ("block_q", "block_q_dkv", "block_q_dq"), ("block_kv", "block_kv_dkv", "block_kv_dq")
    sizes: dict[str, Any] = {field: block for names, block in zip(fields, blocks, strict=True) for field in names}
    made: Any = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * num_heads),
        block_sizes=kernels.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        interpret=is_interpreted,
    )
    return made, kernels.SegmentIds


def _block_of(length: int) -> int:
    """Returns how many of some positions the kernel takes at a time."""
    return min(-(-length // _LANES) * _LANES, _MAX_BLOCK)


def _heads_first(leaf: jax.Array, block: int) -> jax.Array:
    """Returns an array [R, S, heads, head_dim] as [R, heads, S, head_dim], padded to blocks and columns."""
    padding = (0, 0), (0, -leaf.shape[1] % block), (0, 0), (0, -leaf.shape[3] % _LANES)
    return jnp.swapaxes(jnp.pad(leaf, padding), 1, 2)
