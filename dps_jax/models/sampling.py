"""Cached sampling: a prompt is read once, its G completions are written together, token by token, in one loop."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax.models.decoder import Decoder, KeyValues, rotary


class Completions(NamedTuple):
    """G completions of each of B prompts.

    Attributes:
      tokens: int32 [B, G, T]; behind the end token, padding.
      log_probs: of the tokens at the temperature they were sampled at, float32 [B, G, T]; 0 for padding.
      mask: the tokens that were sampled, the end token included, bool [B, G, T].
    """

    tokens: jax.Array
    log_probs: jax.Array
    mask: jax.Array


class _Fixed(NamedTuple):
    """What is the same for all tokens: arguments of `sample`, and what follows from the prompts.

    Attributes:
      model: the policy.
      key: for all tokens.
      is_prompt_token: which entries of the prompts are no padding, bool [B, P].
      lengths: of the prompts without padding, int32 [B].
      completion_length: T.
      end_id: see `sample`, as for the others.
    """

    model: Decoder
    key: jax.Array
    is_prompt_token: jax.Array
    lengths: jax.Array
    completion_length: int
    end_id: int
    pad_id: int
    temperature: Any
    top_p: float


class _Loop(NamedTuple):
    """Sampling between two tokens.

    Attributes:
      step: tokens sampled so far, int32.
      logits: of the next token, [B, G, V].
      is_open: which completions have not ended, bool [B, G].
      written: so far.
      caches: keys and values of the prompt and of the tokens so far, [B, G, num_kv_heads, P + T, head_dim] per layer.
    """

    step: jax.Array
    logits: jax.Array
    is_open: jax.Array
    written: Completions
    caches: list[KeyValues]


def _decode_attention(queries: jax.Array, cache: KeyValues, is_seen: jax.Array) -> jax.Array:
    """Returns the attention of one query each, [B, G, H, head_dim].

    Args:
      queries: [B, G, H, head_dim].
      cache: of one layer, [B, G, num_kv_heads, S, head_dim]: slots before the last axis, so that scores and mixtures
        are batched products of a contiguous matrix and a vector.
      is_seen: which slots hold what the query may look at, bool [B, S].
    """
    num_kv_heads, head_dim = cache.keys.shape[2], cache.keys.shape[-1]
    split = queries.reshape(*queries.shape[:2], num_kv_heads, -1, head_dim) * (1 / math.sqrt(head_dim))
    scores = jnp.einsum("bgnrd,bgnsd->bgnrs", split, cache.keys).astype(jnp.float32)
    probs = jax.nn.softmax(jnp.where(is_seen[:, None, None, None], scores, -jnp.inf), axis=-1).astype(queries.dtype)
    return jnp.einsum("bgnrs,bgnsd->bgnrd", probs, cache.values).reshape(queries.shape)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Returns logits [..., V] of the smallest set of likeliest tokens with probability >= top_p, -inf elsewhere."""
    ordered = jnp.sort(jax.nn.softmax(logits, axis=-1), axis=-1, descending=True)
    # A token belongs to it if those before it do not reach top_p.
    num_kept = jnp.sum(jnp.cumsum(ordered, axis=-1) - ordered < top_p, axis=-1, keepdims=True)
    smallest = jnp.take_along_axis(ordered, num_kept - 1, axis=-1)
    return jnp.where(jax.nn.softmax(logits, axis=-1) >= smallest, logits, -jnp.inf)


def _check_prompts(model: Decoder, prompts: Any, pad_id: int) -> None:
    """Raises ValueError for prompts that mean nothing; tracers pass unchecked."""
    if jnp.ndim(prompts) != 2 or 0 in jnp.shape(prompts):
        raise ValueError(f"prompts: expected tokens of shape [B, P], got shape {list(jnp.shape(prompts))}")
    if _checks.is_traced(prompts):
        return
    # NumPy: prompts that a jitted function closes over are concrete, but what jnp makes of them there is not.
    tokens = np.asarray(prompts)
    num_ids = model.config.num_prompt_ids
    if np.any((tokens < 0) | (tokens >= num_ids)):
        bad = int(tokens[(tokens < 0) | (tokens >= num_ids)][0])
        raise ValueError(
            f"prompts: expected tokens in [0, {num_ids}), got {bad}; the model has another vocabulary, or patches of "
            "other sizes"
        )
    if np.any(tokens[:, -1] == pad_id):
        row = int(np.argmax(tokens[:, -1] == pad_id))
        raise ValueError(f"prompts: expected padding on the left only, got a prompt that ends in padding in row {row}")


def sample(
    model: Decoder,
    prompts: jax.Array,
    key: jax.Array,
    *,
    group_size: int,
    completion_length: int,
    end_id: int,
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Completions:
    """Returns G completions of each prompt; stops when all have ended.

    Args:
      model: the policy.
      prompts: int [B, P], padded on the left.
      key: for all tokens.
      group_size: G.
      completion_length: T, after which a completion is cut off.
      end_id: the token that ends a completion.
      pad_id: the token of padding.
      temperature: logits are divided by it, > 0.
      top_p: sample from the nucleus of this probability, in (0, 1]. `log_probs` are those of the whole distribution all
        the same: that is what an update computes again.

    Raises:
      ValueError: for an option out of range, a token that the model does not know, or padding on the right.
    """
    _checks.check_int("group_size", group_size, at_least=1)
    _checks.check_int("completion_length", completion_length, at_least=1)
    if not _checks.is_traced(temperature) and not temperature > 0:
        raise ValueError(f"temperature: expected a number > 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
    _check_prompts(model, prompts, pad_id)
    is_prompt_token = prompts != pad_id
    fixed = _Fixed(
        model=model,
        key=key,
        is_prompt_token=is_prompt_token,
        lengths=jnp.sum(is_prompt_token, axis=1),
        completion_length=completion_length,
        end_id=end_id,
        pad_id=pad_id,
        temperature=temperature,
        top_p=top_p,
    )
    is_unfinished = lambda loop: (loop.step < completion_length) & jnp.any(loop.is_open)
    start = _start(fixed, prompts, group_size)
    return lax.while_loop(is_unfinished, functools.partial(_advance, fixed), start).written


def _start(fixed: _Fixed, prompts: jax.Array, group_size: int) -> _Loop:
    """Returns the loop before the first token: the prompts are read, and there is room for G completions of each."""
    model, completion_length = fixed.model, fixed.completion_length
    batch_size = prompts.shape[0]
    hidden, caches = model.extend(prompts[:, None], fixed.is_prompt_token[:, None])

    def make_room(leaf: jax.Array) -> jax.Array:
        """Returns keys or values of the prompts [B, 1, P, num_kv_heads, head_dim] as the start of a cache."""
        repeated = jnp.repeat(jnp.swapaxes(leaf, 2, 3), group_size, axis=1)
        return jnp.pad(repeated, ((0, 0), (0, 0), (0, 0), (0, completion_length), (0, 0)))

    shape = (batch_size, group_size, completion_length)
    logits = model.logits(hidden[:, :, -1])
    return _Loop(
        step=jnp.zeros((), jnp.int32),
        logits=jnp.broadcast_to(logits, (batch_size, group_size, model.config.vocab_size)),
        is_open=jnp.ones((batch_size, group_size), bool),
        written=Completions(
            jnp.full(shape, fixed.pad_id, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)
        ),
        caches=[KeyValues(make_room(cache.keys), make_room(cache.values)) for cache in caches],
    )


def _choose(fixed: _Fixed, loop: _Loop) -> tuple[jax.Array, jax.Array]:
    """Returns the next token of every completion and its log-prob, [B, G]."""
    scaled = loop.logits / fixed.temperature
    kept = scaled if fixed.top_p == 1 else nucleus(scaled, fixed.top_p)
    tokens = jax.random.categorical(jax.random.fold_in(fixed.key, loop.step), kept).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(scaled, axis=-1)
    return tokens, jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def _read(
    fixed: _Fixed, tokens: jax.Array, step: jax.Array, caches: list[KeyValues]
) -> tuple[jax.Array, list[KeyValues]]:
    """Returns the logits after one more token each, [B, G, V], and the caches with it."""
    model = fixed.model
    batch_size, prompt_length = fixed.is_prompt_token.shape
    rotation = rotary((fixed.lengths + step)[:, None, None], model.config)
    is_own = jnp.arange(fixed.completion_length) <= step
    is_own = jnp.broadcast_to(is_own, (batch_size, fixed.completion_length))
    is_seen = jnp.concatenate([fixed.is_prompt_token, is_own], axis=1)
    hidden, grown = model.embed(tokens[:, :, None]), []
    for block, cache in zip(model.blocks, caches, strict=True):
        queries, added = block.project(hidden, rotation)
        put = lambda leaf, more: lax.dynamic_update_index_in_dim(leaf, more[:, :, 0], prompt_length + step, 3)
        cache = KeyValues(*(put(*pair) for pair in zip(cache, added, strict=True)))
        mixed = _decode_attention(queries[:, :, 0], cache, is_seen)
        hidden = block.finish(hidden, mixed[:, :, None])
        grown.append(cache)
    return model.logits(hidden[:, :, 0]), grown


def _advance(fixed: _Fixed, loop: _Loop) -> _Loop:
    """Returns the loop one token later."""
    tokens, log_probs = _choose(fixed, loop)
    tokens = jnp.where(loop.is_open, tokens, fixed.pad_id)
    entries = Completions(tokens, jnp.where(loop.is_open, log_probs, 0.0), loop.is_open)
    write = lambda leaf, entry: lax.dynamic_update_index_in_dim(leaf, entry, loop.step, 2)
    is_open = loop.is_open & (tokens != fixed.end_id)
    logits, caches = _read(fixed, tokens, loop.step, loop.caches)
    return _Loop(
        step=loop.step + 1,
        logits=logits,
        is_open=is_open,
        written=jax.tree.map(write, loop.written, entries),
        caches=caches,
    )
