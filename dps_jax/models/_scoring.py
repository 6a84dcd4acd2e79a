"""Differentiable log-probs of given completions, for the update."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.models._decoder import Decoder
from dps_jax.models._placing import split_rows
from dps_jax.models._prompts import leading_padding

# Largest number of float32 logits in the memory of a device at once; above it, they are computed in pieces.
_MAX_LOGITS = 2**25


class _Head(NamedTuple):
    """How the residual stream is turned into distributions over tokens: arguments of `completion_log_probs`."""

    model: Decoder
    num_tokens: int | None
    temperature: float


def completion_log_probs(
    model: Decoder,
    prompts: jax.Array,
    completions: jax.Array,
    *,
    pad_id: int,
    is_prompt_token: jax.Array | None = None,
    num_tokens: int | None = None,
    temperature: float = 1.0,
    attention: str = "blockwise",
    is_rematerialised: bool | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-prob of every token of the completions, and the entropy of the distribution at its position.

    Both arrays are in nats, float32 [B, G, T]. A prompt goes through the model once for all of its G completions, so
    B P + B G (T - 1) positions are computed. Entries after the end of a completion are meaningless; mask them. Logits
    are computed for a few positions at a time (at least one), which limits the memory for them.

    Args:
      model: the policy.
      prompts: prompt tokens, int [B, P], padded on the left.
      completions: completion tokens, int [B, G, T], padded on the right.
      pad_id: the padding token.
      is_prompt_token: False for padding of the prompts, bool [B, P]; see `sample`.
      num_tokens: number of token ids, from 0 on, that can be sampled; see `sample`. None is the whole vocabulary.
      temperature: divisor (> 0) of the logits.
      attention: see `Decoder.extend`.
      is_rematerialised: see `Decoder.extend`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from dps_jax import models
      >>> config = models.DecoderConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
      ...                               head_dim=8, mlp_size=16)
      >>> model = models.Decoder(config, rngs=nnx.Rngs(0))
      >>> prompts, completions = jnp.array([[3, 5]]), jnp.array([[[7, 2, 1], [4, 1, 0]]])
      >>> log_probs, entropies = models.completion_log_probs(model, prompts, completions, pad_id=0)
      >>> log_probs.shape, bool((log_probs < 0).all())
      ((1, 2, 3), True)
    """
    if is_prompt_token is None:
        is_prompt_token = ~leading_padding(prompts, pad_id)
    prompts, completions = split_rows(model.placing, (prompts, completions))
    options: Any = {"attention": attention, "is_rematerialised": is_rematerialised}
    hidden, prompt = model.extend(prompts[:, None], is_prompt_token[:, None], **options)
    first = jnp.broadcast_to(hidden[:, :, -1:], (*completions.shape[:2], 1, hidden.shape[-1]))
    inputs = completions[..., :-1]
    # Padding comes after the end of a completion, and no token before the end attends to it, so it needs no mask.
    rest, _ = model.extend(inputs, None, prompt, is_prompt_token, **options)
    return _in_pieces(_Head(model, num_tokens, temperature), jnp.concatenate([first, rest], axis=2), completions)


def _in_pieces(head: _Head, hidden: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log-probs and entropies of tokens [B, G, T], computed for a piece of the T positions at a time."""
    length = tokens.shape[2]
    num_logits = tokens.size * head.model.config.vocab_size
    num_pieces = min(-(-num_logits // (_MAX_LOGITS * head.model.num_row_devices)), length)
    if num_pieces == 1:
        return _scored(head, hidden, tokens)
    # Cut along T, so that prompts stay on their devices.
    size = -(-length // num_pieces)
    num_pieces = -(-length // size)

    def split(leaf: jax.Array) -> jax.Array:
        """Returns pieces [pieces, B, G, size, ...] of an array [B, G, T, ...]."""
        padding = [(0, 0)] * leaf.ndim
        padding[2] = (0, num_pieces * size - length)
        padded = jnp.pad(leaf, padding)
        return jnp.moveaxis(padded.reshape(*leaf.shape[:2], num_pieces, size, *leaf.shape[3:]), 2, 0)

    # The logits of all pieces would not fit into memory, so they are computed again in the backward pass.
    score = jax.checkpoint(functools.partial(_scored, head))
    found = lax.map(lambda piece: score(*piece), (split(hidden), split(tokens)))
    join = lambda leaf: jnp.moveaxis(leaf, 0, 2).reshape(*tokens.shape[:2], -1)[..., :length]
    return join(found[0]), join(found[1])


def _scored(head: _Head, hidden: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log-probs and entropies of tokens [B, G, S].

    Args:
      head: how the residual stream is turned into distributions.
      hidden: residual stream at the position before each token, [B, G, S, hidden_size].
      tokens: the tokens, int [B, G, S].
    """
    logits = head.model.logits(hidden)[..., : head.num_tokens] / head.temperature
    all_log_probs = jax.nn.log_softmax(logits, axis=-1)
    log_probs = jnp.take_along_axis(all_log_probs, tokens[..., None], axis=-1)[..., 0]
    entropies = -jnp.sum(jnp.exp(all_log_probs) * all_log_probs, axis=-1)
    return log_probs, entropies
