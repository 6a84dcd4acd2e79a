"""Decoding token by token with key-value caches.

A loop holds rows [B, G]: G completions of each of B prompts. The keys and values of a prompt are stored once. Those of
its completions are in caches with room for a number of tokens, which are enlarged when they are full.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.models import _drawing
from dps_jax.models._decoder import Decoder, rotary
from dps_jax.models._key_values import KeyValues
from dps_jax.models._placing import split_rows


@documented
class Completions(NamedTuple):
    """G completions of each of B prompts.

    Attributes:
      tokens: the sampled tokens, int32 [B, G, T]; padding after the end token.
      log_probs: log-probs of the tokens at the temperature of sampling (at 1 if that is 0), float32 [B, G, T]; 0 for
        padding.
      mask: True for sampled tokens, the end token included, bool [B, G, T].

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import models
      >>> completions = models.Completions(
      ...     tokens=jnp.array([[[5, 1, 0]]]),  # 1 ends a completion, 0 is padding
      ...     log_probs=jnp.array([[[-0.5, -0.1, 0.0]]]),
      ...     mask=jnp.array([[[True, True, False]]]),
      ... )
      >>> completions.mask.sum(axis=2)  # length of each completion, [B, G]
      Array([[2]], dtype=int32)
    """

    tokens: jax.Array
    log_probs: jax.Array
    mask: jax.Array


class Drawing(NamedTuple):
    """How tokens are drawn: arguments of `sample`, which describes them.

    Attributes:
      temperature: divisor of the logits.
      top_p: probability mass of the nucleus.
      top_k: number of most likely tokens to sample from, or None.
      end_ids: the tokens that end a completion, int32 [number of them].
      num_tokens: number of token ids, from 0 on, that can be drawn.
      pad_id: the padding token.
    """

    temperature: Any
    top_p: float
    top_k: int | None
    end_ids: np.ndarray
    num_tokens: int
    pad_id: int


class Prompts(NamedTuple):
    """Prompts after their forward pass.

    Attributes:
      caches: keys and values of every layer, [B, num_kv_heads, P, head_dim].
      is_token: False for padding, bool [B, P].
    """

    caches: list[KeyValues]
    is_token: jax.Array


class Loop(NamedTuple):
    """State of the decoding loop between two tokens.

    Attributes:
      step: number of tokens sampled so far, int32.
      keys: one random key for all rows, [], or one for each row, [B, G].
      hidden: residual stream from which the next token is predicted, [B, G, hidden_size].
      is_open: which completions have not ended, bool [B, G].
      written: the completions so far, [B, G, room].
      caches: keys and values of every layer, [B, G, num_kv_heads, room, head_dim].
    """

    step: jax.Array
    keys: jax.Array
    hidden: jax.Array
    is_open: jax.Array
    written: Completions
    caches: list[KeyValues]


def start(
    model: Decoder, prompts: jax.Array, is_token: jax.Array, keys: jax.Array, *, group_size: int, room: int, pad_id: int
) -> tuple[Prompts, Loop]:
    """Returns the prompts after their forward pass, and the loop before the first token.

    Args:
      model: the policy.
      prompts: prompt tokens, int [B, P], padded on the left.
      is_token: False for padding, bool [B, P].
      keys: one random key for all rows, [], or one for each prompt, [B].
      group_size: number of completions per prompt, G.
      room: number of tokens that rows have room for.
      pad_id: the padding token.
    """
    hidden, read = model.extend(prompts[:, None], is_token[:, None])
    by_layer = zip(*(jnp.swapaxes(leaf[:, :, 0], 2, 3) for leaf in read), strict=True)
    caches = [KeyValues(*layer) for layer in by_layer]
    shape = (prompts.shape[0], group_size)
    if keys.ndim:
        split = lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(group_size))
        keys = jax.vmap(split)(keys)
    empty = lambda leaf: jnp.zeros((*shape, leaf.shape[1], room, leaf.shape[3]), leaf.dtype)
    loop = Loop(
        step=jnp.zeros((), jnp.int32),
        keys=keys,
        hidden=jnp.broadcast_to(hidden[:, :, -1], (*shape, hidden.shape[-1])),
        is_open=jnp.ones(shape, bool),
        written=Completions(
            jnp.full((*shape, room), pad_id, jnp.int32),
            jnp.zeros((*shape, room), jnp.float32),
            jnp.zeros((*shape, room), bool),
        ),
        caches=jax.tree.map(empty, caches),
    )
    return split_rows(model.placing, (Prompts(caches, is_token), loop))


def with_room(loop: Loop, room: int, pad_id: int) -> Loop:
    """Returns the loop with its rows padded to `room` tokens."""
    written = loop.written.mask.shape[-1]

    def grown(leaf: jax.Array, axis: int, value: Any = 0) -> jax.Array:
        padding = [(0, 0)] * leaf.ndim
        padding[axis] = (0, room - written)
        return jnp.pad(leaf, padding, constant_values=value)

    tokens, log_probs, mask = loop.written
    return loop._replace(
        written=Completions(grown(tokens, 2, pad_id), grown(log_probs, 2), grown(mask, 2)),
        caches=jax.tree.map(lambda leaf: grown(leaf, 3), loop.caches),
    )


def run(model: Decoder, drawing_of: Drawing, prompts: Prompts, loop: Loop, until: Any) -> Loop:
    """Returns the loop after `until` tokens (at most the room of its rows), or after all completions have ended."""
    is_unfinished = lambda loop: (loop.step < until) & jnp.any(loop.is_open)
    return lax.while_loop(is_unfinished, functools.partial(_advance, model, drawing_of, prompts), loop)


def _advance(model: Decoder, how: Drawing, prompts: Prompts, loop: Loop) -> Loop:
    """Returns the loop after one more token."""
    tokens, log_probs = _choose(how, loop, model.logits(loop.hidden)[..., : how.num_tokens])
    tokens = jnp.where(loop.is_open, tokens, how.pad_id)
    entries = Completions(tokens, jnp.where(loop.is_open, log_probs, 0.0), loop.is_open)
    write = lambda leaf, entry: lax.dynamic_update_index_in_dim(leaf, entry, loop.step, 2)
    hidden, caches = _read(model, prompts, tokens, loop.step, loop.caches)
    after = loop._replace(
        step=loop.step + 1,
        hidden=hidden,
        is_open=loop.is_open & ~jnp.isin(tokens, how.end_ids),
        written=jax.tree.map(write, loop.written, entries),
        caches=caches,
    )
    return split_rows(model.placing, after)


def _choose(how: Drawing, loop: Loop, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the next token of every row and its log-prob, [B, G]."""
    temperature = how.temperature
    if not _checks.is_traced(temperature) and temperature == 0:
        scaled, tokens = logits, _drawing.highest(logits)
    elif _checks.is_traced(temperature):
        scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
        tokens = jnp.where(temperature > 0, _draw(how, loop, scaled), _drawing.highest(logits))
    else:
        scaled = logits / temperature
        tokens = _draw(how, loop, scaled)
    log_probs = jax.nn.log_softmax(scaled, axis=-1)
    return tokens, jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def _draw(how: Drawing, loop: Loop, scaled: jax.Array) -> jax.Array:
    """Returns a random token for every row, [B, G], from logits that were divided by the temperature."""
    kept = scaled if how.top_k is None else _drawing.likeliest(scaled, how.top_k)
    kept = kept if how.top_p == 1 else _drawing.nucleus(kept, how.top_p)
    if loop.keys.ndim == 0:
        return _drawing.categorical(jax.random.fold_in(loop.keys, loop.step), kept)
    draw = lambda key, row: _drawing.categorical(jax.random.fold_in(key, loop.step), row)
    return jax.vmap(jax.vmap(draw))(loop.keys, kept)


def _read(
    model: Decoder, prompts: Prompts, tokens: jax.Array, step: jax.Array, caches: list[KeyValues]
) -> tuple[jax.Array, list[KeyValues]]:
    """Returns the residual stream after one more token per row, [B, G, hidden_size], and the caches with that token."""
    lengths = jnp.sum(prompts.is_token, axis=1)
    rotation = rotary((lengths + step)[:, None, None], model.config)
    hidden, grown = model.embed(tokens[:, :, None]), []
    for block, prompt, cache in zip(model.blocks, prompts.caches, caches, strict=True):
        queries, added = block.project(hidden, rotation)
        put = lambda leaf, more: lax.dynamic_update_index_in_dim(leaf, more[:, :, 0], step, 3)
        cache = KeyValues(*(put(*pair) for pair in zip(cache, added, strict=True)))
        mixed = _attend(queries[:, :, 0], prompt, prompts.is_token, cache, step)
        hidden = block.finish(hidden, mixed[:, :, None])
        grown.append(cache)
    return hidden[:, :, 0], grown


def _attend(
    queries: jax.Array, prompt: KeyValues, is_prompt_token: jax.Array, own: KeyValues, step: jax.Array
) -> jax.Array:
    """Returns the attention of one query per row, [B, G, H, head_dim].

    Positions are the second-to-last axis of the caches, so that scores and weighted sums of values are batched products
    of contiguous matrices. The product with the keys of a prompt is one for all of its G rows.

    Args:
      queries: one query per row and head, [B, G, H, head_dim].
      prompt: keys and values of the prompts in one layer, [B, num_kv_heads, P, head_dim].
      is_prompt_token: False for padding of the prompts, bool [B, P].
      own: keys and values of the completions in the same layer, [B, G, num_kv_heads, room, head_dim].
      step: position of the query in `own`; later positions are empty.
    """
    num_kv_heads, room, head_dim = own.keys.shape[2:]
    split = queries.reshape(*queries.shape[:2], num_kv_heads, -1, head_dim) * (1 / math.sqrt(head_dim))
    of_prompt = jnp.einsum("bgnrd,bnpd->bngrp", split, prompt.keys).astype(jnp.float32)
    of_own = jnp.einsum("bgnrd,bgnsd->bgnrs", split, own.keys).astype(jnp.float32)
    of_prompt = jnp.where(is_prompt_token[:, None, None, None], of_prompt, -jnp.inf)
    of_own = jnp.where(jnp.arange(room) <= step, of_own, -jnp.inf)
    # One softmax over both sets of scores, without concatenating them.
    turned = lambda leaf: jnp.swapaxes(leaf, 1, 2)
    highest = jnp.maximum(turned(of_prompt.max(axis=-1)), of_own.max(axis=-1))
    of_prompt, of_own = jnp.exp(of_prompt - turned(highest)[..., None]), jnp.exp(of_own - highest[..., None])
    total = turned(of_prompt.sum(axis=-1)) + of_own.sum(axis=-1)
    mixed = turned(jnp.einsum("bngrp,bnpd->bngrd", of_prompt.astype(queries.dtype), prompt.values))
    mixed = mixed + jnp.einsum("bgnrs,bgnsd->bgnrd", of_own.astype(queries.dtype), own.values)
    return (mixed.astype(jnp.float32) / total[..., None]).astype(queries.dtype).reshape(queries.shape)
