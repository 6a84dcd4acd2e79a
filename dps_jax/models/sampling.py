"""Cached sampling: a prompt is read once, its G completions are written together, token by token, in one loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax.models import drawing
from dps_jax.models import prompts as prompt_checks
from dps_jax.models.attention import KeyValues
from dps_jax.models.decoder import Decoder, rotary


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
      key: for all tokens, or one for each prompt.
      is_prompt_token: which entries of the prompts are no padding, bool [B, P].
      lengths: of the prompts without padding, int32 [B].
      completion_length: T.
      end_ids: the tokens that end a completion, int32 [E].
      num_tokens: how many of the vocabulary can be drawn.
      pad_id: see `sample`, as for the others.
    """

    model: Decoder
    key: jax.Array
    is_prompt_token: jax.Array
    lengths: jax.Array
    completion_length: int
    end_ids: np.ndarray
    num_tokens: int
    pad_id: int
    temperature: Any
    top_p: float
    top_k: int | None


class _Loop(NamedTuple):
    """Sampling between two tokens.

    Attributes:
      step: tokens sampled so far, int32.
      logits: of the next token, [B, G, num_tokens].
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


def sample(
    model: Decoder,
    prompts: jax.Array,
    key: jax.Array,
    *,
    group_size: int,
    completion_length: int,
    end_id: int | None = None,
    end_ids: Sequence[int] | None = None,
    pad_id: int,
    is_prompt_token: jax.Array | None = None,
    num_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
) -> Completions:
    """Returns G completions of each prompt; stops when all have ended.

    Args:
      model: the policy.
      prompts: int [B, P], padded on the left.
      key: for all tokens; or one key per prompt, [B], and then the completions of a prompt depend on its key and not
        on the prompts beside it.
      group_size: G.
      completion_length: T, after which a completion is cut off.
      end_id: the token that ends a completion.
      end_ids: the tokens that do, in place of `end_id`, where there are several or none.
      pad_id: the token that completions are padded with. It may be one that ends them.
      is_prompt_token: which entries of the prompts are no padding, bool [B, P]; None is all from the first on that is
        not `pad_id`.
      num_tokens: ids from it on are never drawn and not part of any distribution, as of rows of an embedding that the
        tokenizer does not use; None draws from all.
      temperature: logits are divided by it, >= 0. At 0 the likeliest token is taken, and `log_probs` are those at
        temperature 1.
      top_p: sample from the nucleus of this probability, in (0, 1]. `log_probs` are those of the whole distribution all
        the same: that is what an update computes again.
      top_k: sample from this many likeliest tokens, >= 1, before `top_p`; None is all.

    Raises:
      ValueError: for an option out of range, a token that the model does not know, or padding on the right.
    """
    _checks.check_int("group_size", group_size, at_least=1)
    _checks.check_int("completion_length", completion_length, at_least=1)
    vocab_size = model.config.vocab_size
    num_tokens = vocab_size if num_tokens is None else num_tokens
    _checks.check_int("num_tokens", num_tokens, at_least=1, at_most=vocab_size)
    if not _checks.is_traced(temperature) and not temperature >= 0:
        raise ValueError(f"temperature: expected a number >= 0, got {temperature}; 0 takes the likeliest token")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
    if top_k is not None:
        _checks.check_int("top_k", top_k, at_least=1)
    prompt_checks.check_prompts(model.config.num_prompt_ids, prompts, is_prompt_token, pad_id)
    if is_prompt_token is None:
        is_prompt_token = ~prompt_checks.leading_padding(prompts, pad_id)
    if jnp.shape(key) not in ((), (prompts.shape[0],)):
        raise ValueError(
            f"key: expected one key, or one for each of {prompts.shape[0]} prompts, got shape {list(jnp.shape(key))}"
        )
    fixed = _Fixed(
        model=model,
        key=key,
        is_prompt_token=is_prompt_token,
        lengths=jnp.sum(is_prompt_token, axis=1),
        completion_length=completion_length,
        end_ids=prompt_checks.check_ends(end_id, end_ids, vocab_size),
        num_tokens=num_tokens,
        pad_id=pad_id,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
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
    logits = model.logits(hidden[:, :, -1])[..., : fixed.num_tokens]
    return _Loop(
        step=jnp.zeros((), jnp.int32),
        logits=jnp.broadcast_to(logits, (batch_size, group_size, fixed.num_tokens)),
        is_open=jnp.ones((batch_size, group_size), bool),
        written=Completions(
            jnp.full(shape, fixed.pad_id, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)
        ),
        caches=[
            KeyValues(make_room(caches.keys[index]), make_room(caches.values[index]))
            for index in range(model.config.num_layers)
        ],
    )


def _draw(fixed: _Fixed, scaled: jax.Array, step: jax.Array) -> jax.Array:
    """Returns a token for every completion, [B, G], from its logits at the temperature of sampling."""
    kept = scaled if fixed.top_k is None else drawing.likeliest(scaled, fixed.top_k)
    kept = kept if fixed.top_p == 1 else drawing.nucleus(kept, fixed.top_p)
    if fixed.key.ndim == 0:
        return jax.random.categorical(jax.random.fold_in(fixed.key, step), kept)
    return jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))(fixed.key, kept)


def _choose(fixed: _Fixed, loop: _Loop) -> tuple[jax.Array, jax.Array]:
    """Returns the next token of every completion and its log-prob, [B, G]."""
    temperature = fixed.temperature
    if not _checks.is_traced(temperature) and temperature == 0:
        scaled, tokens = loop.logits, jnp.argmax(loop.logits, axis=-1)
    elif _checks.is_traced(temperature):
        scaled = loop.logits / jnp.where(temperature > 0, temperature, 1.0)
        tokens = jnp.where(temperature > 0, _draw(fixed, scaled, loop.step), jnp.argmax(loop.logits, axis=-1))
    else:
        scaled = loop.logits / temperature
        tokens = _draw(fixed, scaled, loop.step)
    tokens = tokens.astype(jnp.int32)
    log_probs = jax.nn.log_softmax(scaled, axis=-1)
    return tokens, jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def _read(
    fixed: _Fixed, tokens: jax.Array, step: jax.Array, caches: list[KeyValues]
) -> tuple[jax.Array, list[KeyValues]]:
    """Returns the logits after one more token each, [B, G, num_tokens], and the caches with it."""
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
    return model.logits(hidden[:, :, 0])[..., : fixed.num_tokens], grown


def _advance(fixed: _Fixed, loop: _Loop) -> _Loop:
    """Returns the loop one token later."""
    tokens, log_probs = _choose(fixed, loop)
    tokens = jnp.where(loop.is_open, tokens, fixed.pad_id)
    entries = Completions(tokens, jnp.where(loop.is_open, log_probs, 0.0), loop.is_open)
    write = lambda leaf, entry: lax.dynamic_update_index_in_dim(leaf, entry, loop.step, 2)
    is_open = loop.is_open & ~jnp.isin(tokens, fixed.end_ids)
    logits, caches = _read(fixed, tokens, loop.step, loop.caches)
    return _Loop(
        step=loop.step + 1,
        logits=logits,
        is_open=is_open,
        written=jax.tree.map(write, loop.written, entries),
        caches=caches,
    )
