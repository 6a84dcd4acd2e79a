"""Sampling: each prompt is read once, and its G completions are decoded together in one compiled program."""

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

# Number of tokens that rows have room for at first; it is doubled whenever they are full. A step reads the whole room,
# so a small one is faster.
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
    """Returns G sampled completions of each prompt; decoding stops when all of them have ended.

    Args:
      model: the policy.
      prompts: prompt tokens, int [B, P], padded on the left.
      key: one random key for the whole batch, []; or one per prompt, [B]. With one key per prompt, the completions of a
        prompt do not depend on the other prompts of the batch.
      group_size: number of completions per prompt, G.
      completion_length: T, the number of tokens after which a completion is cut off.
      end_id: the token that ends a completion.
      end_ids: the tokens that each end a completion, in place of `end_id`; empty if no token does.
      pad_id: the token that completions are padded with. This token may also be an end token.
      is_prompt_token: False for padding of the prompts, bool [B, P]; None treats leading `pad_id` tokens as padding.
      num_tokens: number of token ids, from 0 on, that can be sampled; all other ids have probability 0. Use this option
        if the embedding has more rows than the tokenizer has tokens. None samples from the whole vocabulary.
      temperature: divisor (>= 0) of the logits. At 0 the most likely token is taken, and `log_probs` are those at
        temperature 1.
      top_p: probability mass of the nucleus to sample from, in (0, 1]. `log_probs` are those of the full distribution,
        like the log-probs that the update computes.
      top_k: number (>= 1) of most likely tokens to sample from, applied before `top_p`; None keeps all tokens.

    Raises:
      ValueError: for an option out of range, an array of the wrong shape, a token outside the vocabulary, or a prompt
        with padding after a token. The tokens of traced prompts are not checked.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from dps_jax import models
      >>> config = models.DecoderConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
      ...                               head_dim=8, mlp_size=16)
      >>> model = models.Decoder(config, rngs=nnx.Rngs(0))
      >>> prompts = jnp.array([[0, 3, 5], [2, 7, 4]])  # the first is padded on the left with token 0
      >>> options = {"group_size": 4, "completion_length": 6, "end_id": 1, "pad_id": 0}
      >>> found = models.sample(model, prompts, jax.random.key(0), **options)
      >>> found.tokens.shape  # [B, G, T]
      (2, 4, 6)
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
    # The weights are gathered once, not for every token.
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
      ValueError: for an option out of range, or an end token outside the vocabulary.
    """
    num_tokens = vocab_size if num_tokens is None else num_tokens
    _checks.check_int("num_tokens", num_tokens, at_least=1, at_most=vocab_size)
    if not _checks.is_traced(temperature) and not temperature >= 0:
        raise ValueError(f"temperature: expected a number >= 0, got {temperature}; 0 takes the most likely token")
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
    """Returns the numbers of tokens that rows have room for, in increasing order; the last is T."""
    rooms, room = [], _FIRST_ROOM
    while room < completion_length:
        rooms.append(room)
        room *= 2
    return [*rooms, completion_length]
