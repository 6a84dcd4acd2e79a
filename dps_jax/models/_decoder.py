"""The decoder of Qwen2, Qwen3 and Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Activations are [B, G, S, ...]: S tokens of each of G completions of B prompts. The keys and values of a prompt, which
its completions share, are computed once and not copied. For plain sequences, G is 1.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from dps_jax import _checks
from dps_jax.models import _rope
from dps_jax.models._attention import ATTENTIONS, AttentionFn
from dps_jax.models._config import DecoderConfig
from dps_jax.models._key_values import KeyValues, Seen
from dps_jax.models._placing import Placing, keeps_no_weights, split_rows, whole, whole_module

# From this number of layers on, a scan over layers is compiled, which takes as long for many layers as for one.
_MIN_SCANNED_LAYERS = 9
# Largest activations per device that are kept for the backward pass; larger ones are computed again.
_MAX_KEPT_BYTES = 1.5 * 2**30


def rotary(positions: jax.Array, config: DecoderConfig) -> tuple[jax.Array, jax.Array]:
    """Returns the cosines and sines of the rotations at positions [...], each [..., head_dim / 2]."""
    frequencies, scale = _rope.frequencies(config.head_dim, config.rope_theta, config.rope)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if scale == 1 else (cos * scale, sin * scale)


def _rotate(heads: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns heads [B, G, S, H, head_dim] rotated by (cosines, sines), each [B, 1 or G, S, head_dim / 2]."""
    cos, sin = (part[..., None, :].astype(heads.dtype) for part in rotation)
    first, second = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Block(nnx.Module):
    """One layer: attention and gated MLP, each on the normalised residual stream."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        """Draws random weights."""
        self.config = config
        heads = config.num_heads * config.head_dim
        kv_heads = config.num_kv_heads * config.head_dim
        # Output matrices get smaller initial weights, so that the residual stream does not grow with depth.
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


class _OfAllLayers(NamedTuple):
    """The inputs that are the same for every layer.

    Attributes:
      graphdef: graph definition of a `Block`.
      attend: one of `ATTENTIONS`.
      placing: see `Decoder`.
      rotation: cosines and sines for the positions of the tokens.
      is_token: see `Decoder.extend`.
      is_prompt_token: False for padding of the prompt, bool [B, 1, P]; None without a prompt.
    """

    graphdef: Any
    attend: AttentionFn
    placing: Placing | None
    rotation: tuple[jax.Array, jax.Array]
    is_token: jax.Array | None
    is_prompt_token: jax.Array | None


def _run_layer(
    of_all: _OfAllLayers, hidden: jax.Array, of_layer: tuple[Any, KeyValues | None]
) -> tuple[jax.Array, KeyValues]:
    """Returns the residual stream after a layer, and its keys and values.

    Args:
      of_all: inputs that are the same for every layer.
      hidden: residual stream before the layer, [B, G, S, hidden_size].
      of_layer: the weights of the `Block`, and the keys and values of the prompt, or None.
    """
    state, prompt = of_layer
    block = nnx.merge(of_all.graphdef, whole(of_all.placing, state))
    queries, cache = block.project(hidden, of_all.rotation)
    seen = [Seen(cache, of_all.is_token, is_causal=True)]
    if prompt is not None:
        seen.insert(0, Seen(prompt, of_all.is_prompt_token, is_causal=False))
    return split_rows(of_all.placing, (block.finish(hidden, of_all.attend(queries, seen)), cache))


class Decoder(nnx.Module):
    """A decoder-only transformer.

    Attributes:
      config: shape of the decoder.
      placing: how the weights and the rows of a batch are split over the devices of a mesh; None, the default, adds no
        sharding constraints.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from dps_jax import models
      >>> config = models.DecoderConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
      ...                               head_dim=8, mlp_size=16)
      >>> model = models.Decoder(config, rngs=nnx.Rngs(0))
      >>> model(jnp.array([[3, 1, 4]])).shape  # logits of the next token, [B, L, V]
      (1, 3, 16)
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        """Builds a decoder with random weights."""
        self.config = config
        self.placing: Placing | None = None
        init = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(config.vocab_size, config.hidden_size, embedding_init=init, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, rngs=rngs)
        if not config.is_tied:
            self.output = nnx.Linear(config.hidden_size, config.vocab_size, use_bias=False, kernel_init=init, rngs=rngs)
        if config.patch_bits:
            self.patches = nnx.Linear(config.patch_bits, config.hidden_size, kernel_init=init, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the residual stream before the first layer, [..., hidden_size], in the dtype of the weights.

        Token ids from V on are image patches; see `DecoderConfig.patch_bits`.
        """
        # `nnx.Embed` would compute in float32, the dtype it was created with, whatever the dtype of its weights.
        table = whole(self.placing, self.embedding.embedding[...])
        if not self.config.patch_bits:
            return jnp.take(table, tokens, axis=0)
        patches = tokens - self.config.vocab_size
        is_patch = patches >= 0
        bits = (patches[..., None] >> jnp.arange(self.config.patch_bits)) & 1
        found = jnp.take(table, jnp.where(is_patch, 0, tokens), axis=0)
        return jnp.where(is_patch[..., None], whole_module(self.placing, self.patches)(bits.astype(table.dtype)), found)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns the logits of the next token, float32 [..., V], from a residual stream [..., hidden_size]."""
        hidden = split_rows(self.placing, whole_module(self.placing, self.norm)(hidden))
        if self.config.is_tied:
            found = hidden @ whole(self.placing, self.embedding.embedding[...]).T
        else:
            found = whole_module(self.placing, self.output)(hidden)
        return found.astype(jnp.float32)

    @property
    def num_row_devices(self) -> int:
        """The number of devices that the rows of a batch are split over."""
        return 1 if self.placing is None else self.placing.num_row_devices

    def _num_kept(self, num_tokens: int) -> int:
        """Returns about how many numbers all layers together keep for the backward pass, for `num_tokens` tokens."""
        config = self.config
        heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        return num_tokens * config.num_layers * (6 * config.hidden_size + heads + 4 * config.mlp_size)

    def extend(
        self,
        tokens: jax.Array,
        is_token: jax.Array | None,
        prompt: KeyValues | None = None,
        is_prompt_token: jax.Array | None = None,
        *,
        attention: str = "blockwise",
        is_rematerialised: bool | None = False,
    ) -> tuple[jax.Array, KeyValues]:
        """Returns the residual stream of tokens, and their keys and values.

        Args:
          tokens: token ids, int [B, G, S].
          is_token: False for padding, which no token attends to, bool [B, G, S]; None if there is no padding.
          prompt: keys and values [layers, B, 1, P, ...] of the prompt that all G completions follow; None without a
            prompt.
          is_prompt_token: False for padding of the prompt, bool [B, P]; needed with a prompt.
          attention: how attention is computed: "plain"; "blockwise", which needs less memory; or with the fused kernels
            "cudnn" (NVIDIA GPUs) or "splash" (TPUs).
          is_rematerialised: whether the backward pass keeps only the input of each layer and computes the rest again;
            None does so where the activations would otherwise take more than 1.5 GiB of a device.

        Returns:
          The residual stream after the last layer, [B, G, S, hidden_size], and keys and values
          [layers, B, G, S, ...].
        """
        _checks.check_choice("attention", attention, ATTENTIONS)
        if is_token is None:
            positions = jnp.arange(tokens.shape[-1], dtype=jnp.int32)[None, None]
        else:
            positions = jnp.cumsum(is_token, axis=-1) - 1
        if is_prompt_token is not None:
            positions = positions + jnp.sum(is_prompt_token, axis=-1)[:, None, None]
        graphdefs, states = zip(*(nnx.split(block) for block in self.blocks), strict=True)
        run = functools.partial(
            _run_layer,
            _OfAllLayers(
                graphdef=graphdefs[0],
                attend=functools.partial(ATTENTIONS[attention], num_devices=self.num_row_devices),
                placing=self.placing,
                rotation=rotary(positions, self.config),
                is_token=is_token,
                is_prompt_token=None if is_prompt_token is None else is_prompt_token[:, None],
            ),
        )
        hidden = split_rows(self.placing, self.embed(tokens))
        if is_rematerialised is None:
            kept_bytes = self._num_kept(tokens.size) * hidden.dtype.itemsize
            is_rematerialised = kept_bytes > _MAX_KEPT_BYTES * self.num_row_devices
        if is_rematerialised:
            run = jax.checkpoint(run)
        elif self.placing is not None:
            run = jax.checkpoint(run, policy=keeps_no_weights)
        stack = lambda *leaves: jnp.stack(leaves)
        # Without a loop, XLA might compute several layers again at the same time, which takes more memory.
        if is_rematerialised or len(states) >= _MIN_SCANNED_LAYERS:
            return lax.scan(run, hidden, (jax.tree.map(stack, *states), prompt))
        caches = []
        for index, state in enumerate(states):
            hidden, cache = run(hidden, (state, jax.tree.map(operator.itemgetter(index), prompt)))
            caches.append(cache)
        return hidden, jax.tree.map(stack, *caches)

    def __call__(self, tokens: jax.Array, is_token: jax.Array | None = None) -> jax.Array:
        """Returns the logits of the token after each position, float32 [B, L, V].

        Args:
          tokens: token ids, int [B, L].
          is_token: False for padding on either side, bool [B, L]; None if there is no padding.
        """
        is_token = jnp.ones(tokens.shape, bool) if is_token is None else is_token
        return self.logits(self.extend(tokens[:, None], is_token[:, None])[0][:, 0])
