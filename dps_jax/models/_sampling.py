"""Sampling: a prompt is read once, its G completions are written together, token by token, in one program."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.models import _decoding
from dps_jax.models import _prompts as prompt_checks
from dps_jax.models._decoder import Decoder
from dps_jax.models._decoding import Completions, Drawing
from dps_jax.models._placing import split_rows, whole_module

# Rows get room for so many tokens, and for twice as many whenever it is full: a step reads the room that there is.
_FIRST_ROOM = 64


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
    how = drawing_of(
        model.config.vocab_size,
        end_id=end_id,
        end_ids=end_ids,
        pad_id=pad_id,
        num_tokens=num_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )
    prompt_checks.check_prompts(model.config.num_prompt_ids, prompts, is_prompt_token, pad_id)
    if is_prompt_token is None:
        is_prompt_token = ~prompt_checks.leading_padding(prompts, pad_id)
    if jnp.shape(key) not in ((), (prompts.shape[0],)):
        raise ValueError(
            f"key: expected one key, or one for each of {prompts.shape[0]} prompts, got shape {list(jnp.shape(key))}"
        )
    placing = model.placing
    # Gathered once, and not again for every token.
    model, prompts = whole_module(placing, model), split_rows(placing, prompts)
    rooms = rooms_for(completion_length)
    read, loop = _decoding.start(
        model, prompts, is_prompt_token, key, group_size=group_size, room=rooms[0], pad_id=pad_id
    )
    for room in rooms:
        loop = _decoding.run(model, how, read, _decoding.with_room(loop, room, pad_id), room)
    return loop.written


def drawing_of(
    vocab_size: int,
    *,
    end_id: int | None,
    end_ids: Sequence[int] | None,
    pad_id: int,
    num_tokens: int | None,
    temperature: float,
    top_p: float,
    top_k: int | None,
) -> Drawing:
    """Returns how tokens are drawn from a model; see `sample` for the arguments.

    Raises:
      ValueError: for an option out of range, or an end token that the model does not know.
    """
    num_tokens = vocab_size if num_tokens is None else num_tokens
    _checks.check_int("num_tokens", num_tokens, at_least=1, at_most=vocab_size)
    if not _checks.is_traced(temperature) and not temperature >= 0:
        raise ValueError(f"temperature: expected a number >= 0, got {temperature}; 0 takes the likeliest token")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
    if top_k is not None:
        _checks.check_int("top_k", top_k, at_least=1)
    return Drawing(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        end_ids=prompt_checks.check_ends(end_id, end_ids, vocab_size),
        num_tokens=num_tokens,
        pad_id=pad_id,
    )


def rooms_for(completion_length: int) -> list[int]:
    """Returns the tokens that rows get room for, one after the other; the last is T."""
    rooms, room = [], _FIRST_ROOM
    while room < completion_length:
        rooms.append(room)
        room *= 2
    return [*rooms, completion_length]
