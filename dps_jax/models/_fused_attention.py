"""Attention by fused kernels: cuDNN's on NVIDIA GPUs, and "splash" of JAX's Pallas library on TPUs.

The kernels never hold all scores. Both need all keys and values in one array (`_key_values.joined`), so those of a
prompt are copied for each of its completions, which takes little memory with grouped-query attention. The attention of
a query of padding is finite and meaningless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.models._key_values import Seen, joined

# Lengths and head_dim are padded to multiples of this, the number of columns of a TPU's vector registers.
_LANES = 128
# Largest number of queries, and of keys, in a block of the splash kernel.
_MAX_BLOCK = 512


class _Needs(NamedTuple):
    """The requirements of a kernel: the backend of JAX, the name of the device in messages, and the possible dtypes."""

    backend: str
    device: str
    dtypes: tuple[str, ...]


_NEEDS = {
    "cudnn": _Needs("gpu", "an NVIDIA GPU", ("float16", "bfloat16")),
    "splash": _Needs("tpu", "a TPU", ("float32", "bfloat16")),
}


def check_fits(attention: str, dtype: str, num_devices: int = 1, *, name: str = "attention") -> None:
    """Checks that an attention supports a dtype and a number of devices; "plain" and "blockwise" support all.

    Args:
      attention: a name of `ATTENTIONS`.
      dtype: name of the dtype to compute in.
      num_devices: number of devices that rows are split over.
      name: name of the option, which the message begins with.

    Raises:
      ValueError: if the attention does not support them.
    """
    needs = _NEEDS.get(attention)
    if needs is None:
        return
    if dtype not in needs.dtypes:
        raise ValueError(
            f"{name}: expected 'blockwise' or 'plain' in {dtype}, got {attention!r}, which computes in "
            f"{' or '.join(needs.dtypes)}; compute in bfloat16, or use 'blockwise'"
        )
    if num_devices > 1:
        raise ValueError(
            f"{name}: expected 'blockwise' or 'plain' where rows are split over {num_devices} devices, got "
            f"{attention!r}; use 'blockwise', or one device"
        )


def check_backend(attention: str, *, name: str = "attention") -> None:
    """Checks that JAX's default backend is the one that an attention needs.

    Args:
      attention: a name of `ATTENTIONS`.
      name: name of the option, which the message begins with.

    Raises:
      ValueError: if it is another backend.
    """
    needs, backend = _NEEDS.get(attention), jax.default_backend()
    if needs is not None and backend != needs.backend:
        raise ValueError(
            f"{name}: expected 'blockwise' or 'plain' on the backend {backend!r}, got {attention!r}, which needs "
            f"{needs.device}; use 'blockwise', or check why JAX finds no such device (jax.devices())"
        )


def cudnn(queries: jax.Array, seen: Sequence[Seen], *, num_devices: int = 1) -> jax.Array:
    """Returns the same as `_attention.plain`, by cuDNN's fused kernels, forward and backward, on one NVIDIA GPU.

    `head_dim` must be a multiple of 8, and at most 128 (256 from Hopper GPUs on). The function was lowered for
    CUDA with JAX 0.8.0 and 0.10.2, but has not yet been run on a GPU.

    Raises:
      ValueError: on another kind of device or on several devices, or if the queries are neither float16 nor bfloat16.
    """
    check_fits("cudnn", queries.dtype.name, num_devices)
    check_backend("cudnn")
    return attend_by_lengths(queries, seen, implementation="cudnn")


def attend_by_lengths(
    queries: jax.Array, seen: Sequence[Seen], *, implementation: Literal["xla", "cudnn"]
) -> jax.Array:
    """Returns the attention of queries [B, G, S, H, head_dim] by `jax.nn.dot_product_attention`.

    No mask [S, positions] is passed: cuDNN would treat it as a bias and compute its gradient. Instead, the tokens of
    each row are moved to its front, so that the number of tokens describes the padding. Queries of zeros are put before
    the queries, one for each of the P positions of the prompt, so that the causal mask is a plain triangle. Of its
    (P + S)^2 / 2 pairs of a query and a key, P^2 / 2 are those of the added queries.

    Args:
      queries: queries, as for `_attention.plain`.
      seen: segments of keys and values; at most one is causal.
      implementation: implementation of `jax.nn.dot_product_attention`.
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
        # A row without tokens attends to one position.
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

    JAX refuses an odd L for the gradient of cuDNN's attention.
    """
    return jnp.pad(leaf, ((0, 0), (0, leaf.shape[1] % 2), (0, 0), (0, 0)))


def _tokens_first(is_token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the permutation that moves the tokens of every row before its padding, and its inverse, int32 [R, L].

    The first array has the new place of every position, the second the position that comes to every place.
    """
    num_rows, length = is_token.shape
    before = jnp.cumsum(is_token, axis=1, dtype=jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), is_token.shape)
    # Tokens keep their order, and padding keeps its order.
    places = jnp.where(is_token, before - 1, before[:, -1:] + positions - before)
    row_ids = jnp.arange(num_rows)[:, None]
    return places, jnp.zeros_like(places).at[row_ids, places].set(positions, unique_indices=True)


def _in_order(leaf: jax.Array, order: jax.Array) -> jax.Array:
    """Returns leaf[r, order[r]] of an array [R, L, ...] for every row r, [R, places, ...]; no entry occurs twice."""
    row_ids = jnp.arange(leaf.shape[0])[:, None]
    return leaf.at[row_ids, order].get(unique_indices=True, mode="promise_in_bounds")


def splash(
    queries: jax.Array, seen: Sequence[Seen], *, num_devices: int = 1, is_interpreted: bool = False
) -> jax.Array:
    """Returns the same as `_attention.plain`, by JAX's splash kernels, forward and backward, on one TPU.

    Blocks of keys that are masked for all queries of a block are skipped. With JAX 0.8.0 and 0.10.2, the function was
    run in interpreted mode and lowered for a TPU, but it has not yet been run on a TPU.

    Args:
      queries: queries, as for `_attention.plain`.
      seen: segments of keys and values; at most one is causal.
      num_devices: number of devices that rows are split over; only 1 is supported.
      is_interpreted: whether to interpret the kernels, very slowly, on any device; for tests.

    Raises:
      ValueError: on another kind of device or on several devices.
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
    # With a causal mask, no query attends to the padding to a whole block, which comes after all queries.
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
    """Returns the kernel for one row, and the class of its segment ids; queries attend to keys with their own id.

    Args:
      shape: numbers of queries and keys, padded to whole blocks.
      blocks: numbers of queries and keys in a block.
      num_heads: number of query heads, H.
      num_before: number of keys before the causal ones, which all queries attend to; None if no keys are causal.
      is_interpreted: see `splash`.
    """
    # Imported here, since nothing else needs the TPU part of Pallas.
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
    """Returns the size of the blocks into which `length` positions are cut."""
    return min(-(-length // _LANES) * _LANES, _MAX_BLOCK)


def _heads_first(leaf: jax.Array, block: int) -> jax.Array:
    """Returns an array [R, S, heads, head_dim] as [R, heads, S, head_dim].

    S is padded to a multiple of `block`, and head_dim to a multiple of 128.
    """
    padding = (0, 0), (0, -leaf.shape[1] % block), (0, 0), (0, -leaf.shape[3] % _LANES)
    return jnp.swapaxes(jnp.pad(leaf, padding), 1, 2)
