"""The decoder of Qwen2, Qwen3 and Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Activations are [B, G, S, ...]: S tokens of each of G completions of B prompts. What all completions of a prompt share,
its keys and values, is computed once and never copied. Plain sequences are the case G = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dps_jax.models import rope
from dps_jax.models.config import DecoderConfig

# Added to the scores of what must not be seen. Finite: a row that sees nothing (padding) is then no NaN.
_MASKED = -1e30


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
      mask: which of them, bool, broadcast against [B, G, S, positions].
    """

    cache: KeyValues
    mask: jax.Array


def rotary(positions: jax.Array, config: DecoderConfig) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines of the rotations at some positions [...], each [..., head_dim / 2]."""
    frequencies, scale = rope.frequencies(config.head_dim, config.rope_theta, config.rope)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if scale == 1 else (cos * scale, sin * scale)


def _rotate(heads: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns heads [B, G, S, H, head_dim] turned by rotations [B, 1 or G, S, head_dim / 2]."""
    cos, sin = (part[..., None, :].astype(heads.dtype) for part in rotation)
    first, second = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(queries: jax.Array, seen: Sequence[Seen]) -> jax.Array:
    """Returns the attention of queries [B, G, S, H, head_dim] over one or more stretches, of the same shape."""
    batch, group, length, num_heads, head_dim = queries.shape
    num_kv_heads = seen[0].cache.keys.shape[3]
    split = queries.reshape(batch, group, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    split = split * (1 / math.sqrt(head_dim))
    scores = []
    for cache, mask in seen:
        if cache.keys.shape[1] == 1:
            found = jnp.einsum("bgsnrd,btnd->bgnrst", split, cache.keys[:, 0])
        else:
            found = jnp.einsum("bgsnrd,bgtnd->bgnrst", split, cache.keys)
        scores.append(jnp.where(mask[:, :, None, None], found.astype(jnp.float32), _MASKED))
    probs = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(queries.dtype)
    ends = [sum(score.shape[-1] for score in scores[: index + 1]) for index in range(len(scores) - 1)]
    mixed = jnp.zeros((), queries.dtype)
    for (cache, _), part in zip(seen, jnp.split(probs, ends, axis=-1), strict=True):
        if cache.values.shape[1] == 1:
            mixed = mixed + jnp.einsum("bgnrst,btnd->bgsnrd", part, cache.values[:, 0])
        else:
            mixed = mixed + jnp.einsum("bgnrst,bgtnd->bgsnrd", part, cache.values)
    return mixed.reshape(queries.shape)


class Block(nnx.Module):
    """One layer: attention and gated MLP, each on the normalised residual stream."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        """Draws the weights of a block."""
        self.config = config
        heads = config.num_heads * config.head_dim
        kv_heads = config.num_kv_heads * config.head_dim
        # Output matrices are drawn smaller, so that the residual stream does not grow with depth.
        init, out_init = nnx.initializers.normal(0.02), nnx.initializers.normal(0.02 / math.sqrt(2 * config.num_layers))
        linear = lambda size_in, size_out, kernel_init, use_bias=False: nnx.Linear(
            size_in, size_out, use_bias=use_bias, kernel_init=kernel_init, rngs=rngs
        )
        norm = lambda size: nnx.RMSNorm(size, epsilon=config.norm_epsilon, rngs=rngs)
        self.attention_norm = norm(config.hidden_size)
        self.qkv = linear(config.hidden_size, heads + 2 * kv_heads, init, config.has_qkv_bias)
        self.attention_out = linear(heads, config.hidden_size, out_init)
        if config.has_qk_norm:
            self.query_norm, self.key_norm = norm(config.head_dim), norm(config.head_dim)
        self.mlp_norm = norm(config.hidden_size)
        self.gate_up = linear(config.hidden_size, 2 * config.mlp_size, init)
        self.mlp_out = linear(config.mlp_size, config.hidden_size, out_init)

    def project(self, hidden: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, KeyValues]:
        """Returns queries [B, G, S, H, head_dim], and the keys and values of the same tokens."""
        config = self.config
        qkv = self.qkv(self.attention_norm(hidden))
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = jnp.split(qkv, [heads, heads + kv_heads], axis=-1)
        queries, keys, values = (part.reshape(*part.shape[:-1], -1, config.head_dim) for part in parts)
        if config.has_qk_norm:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        return _rotate(queries, rotation), KeyValues(keys=_rotate(keys, rotation), values=values)

    def finish(self, hidden: jax.Array, mixed: jax.Array) -> jax.Array:
        """Returns the residual stream after the layer, from its attention [B, G, S, H, head_dim]."""
        hidden = hidden + self.attention_out(mixed.reshape(*mixed.shape[:-2], -1))
        gate, up = jnp.split(self.gate_up(self.mlp_norm(hidden)), 2, axis=-1)
        return hidden + self.mlp_out(jax.nn.silu(gate) * up)


class Decoder(nnx.Module):
    """A decoder-only transformer."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.config = config
        init = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(config.vocab_size, config.hidden_size, embedding_init=init, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, rngs=rngs)
        if not config.is_tied:
            self.output = nnx.Linear(config.hidden_size, config.vocab_size, use_bias=False, kernel_init=init, rngs=rngs)
        if config.patch_bits:
            self.patches = nnx.Linear(config.patch_bits, config.hidden_size, kernel_init=init, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the residual stream before the first layer, [..., hidden_size], in the type of the weights.

        Ids from V on are patches of a raster; see `DecoderConfig.patch_bits`.
        """
        # nnx.Embed would compute in the type it was made with, float32, whatever its weights are now.
        table = self.embedding.embedding[...]
        if not self.config.patch_bits:
            return jnp.take(table, tokens, axis=0)
        patches = tokens - self.config.vocab_size
        is_patch = patches >= 0
        bits = (patches[..., None] >> jnp.arange(self.config.patch_bits)) & 1
        found = jnp.take(table, jnp.where(is_patch, 0, tokens), axis=0)
        return jnp.where(is_patch[..., None], self.patches(bits.astype(table.dtype)), found)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns logits of the next token, float32 [..., V]."""
        hidden = self.norm(hidden)
        found = hidden @ self.embedding.embedding[...].T if self.config.is_tied else self.output(hidden)
        return found.astype(jnp.float32)

    def extend(
        self,
        tokens: jax.Array,
        is_token: jax.Array,
        prompt: Sequence[KeyValues] = (),
        is_prompt_token: jax.Array | None = None,
    ) -> tuple[jax.Array, list[KeyValues]]:
        """Returns the residual stream of tokens that follow a prompt, or nothing, and their keys and values.

        Args:
          tokens: int [B, G, S].
          is_token: False for padding, which no token attends to, bool [B, G, S].
          prompt: what all G completions follow, a `KeyValues` [B, 1, P, ...] per layer; none without a prompt.
          is_prompt_token: False for padding, bool [B, P].

        Returns:
          [B, G, S, hidden_size]; and a `KeyValues` [B, G, S, ...] per layer.
        """
        length = tokens.shape[-1]
        positions = jnp.cumsum(is_token, axis=-1) - 1
        if is_prompt_token is not None:
            positions = positions + jnp.sum(is_prompt_token, axis=-1)[:, None, None]
        rotation = rotary(positions, self.config)
        mask = jnp.tril(jnp.ones((length, length), bool)) & is_token[:, :, None, :]
        hidden, caches = self.embed(tokens), []
        for index, block in enumerate(self.blocks):
            queries, cache = block.project(hidden, rotation)
            seen = [Seen(cache, mask)]
            if is_prompt_token is not None:
                seen.insert(0, Seen(prompt[index], is_prompt_token[:, None, None, :]))
            hidden = block.finish(hidden, attend(queries, seen))
            caches.append(cache)
        return hidden, caches

    def __call__(self, tokens: jax.Array, is_token: jax.Array | None = None) -> jax.Array:
        """Returns logits of the token after each, float32 [B, L, V].

        Args:
          tokens: int [B, L].
          is_token: False for padding on either side, bool [B, L]; None where there is none.
        """
        is_token = jnp.ones(tokens.shape, bool) if is_token is None else is_token
        return self.logits(self.extend(tokens[:, None], is_token[:, None])[0][:, 0])
