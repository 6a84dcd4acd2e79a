"""Sampling in stages: between two stages, completions that have ended are removed from the batch.

A stage decodes a few tokens of all rows (completions), by a program that is compiled for the number of rows and the
length of their caches. Between two stages, the rows that have not ended are packed into a smaller batch if that saves
enough. The completions are the same as those of `sample` with one key per prompt, up to rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.models import _decoding
from dps_jax.models._decoder import Decoder
from dps_jax.models._decoding import Completions, Drawing, Loop, Prompts
from dps_jax.models._sampling import drawing_of, rooms_for

# A stage decodes T / _STAGES tokens, but at least _MIN_STAGE; then the host checks which rows have ended.
_STAGES = 16
_MIN_STAGE = 16
# Sizes of the smaller batches, as shares of all rows; a program is compiled for each size that occurs.
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625)
# Cost of a row in a step, besides its cache, in units of one cached token.
_ROW_COST = 512


class _Programs(NamedTuple):
    """Jitted functions, each compiled once for every number of rows and every room.

    Attributes:
      start: (params, prompts [B, P], is_token [B, P], keys [B]) -> (`Prompts`, `Loop`).
      run: (params, prompts, loop, until) -> loop; the argument `loop` is donated.
      move: (prompts, loop, slots [S], members [S, M]) -> (prompts, loop) of some of the rows; see `_move`.
      grow: (loop, room) -> loop whose rows have room for more tokens.
    """

    start: Callable[..., tuple[Prompts, Loop]]
    run: Callable[..., Loop]
    move: Callable[..., tuple[Prompts, Loop]]
    grow: Callable[..., Loop]


class _Plan(NamedTuple):
    """Fixed values of a sampler: G, T, and the padding token."""

    group_size: int
    completion_length: int
    pad_id: int


def staged_sampler(
    model_fn: Callable[[Any], Decoder],
    *,
    group_size: int,
    completion_length: int,
    end_ids: Sequence[int],
    pad_id: int,
    num_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
) -> Callable[..., Completions]:
    """Returns the function (params, prompts [B, P], is_prompt_token [B, P], keys [B]) -> `Completions` of NumPy arrays.

    The function samples like `sample`, but removes completions from the batch after they have ended. If lengths differ
    much, this saves much of the work. The function must be called on the host, not inside a compiled function.

    Args:
      model_fn: function from parameters to the policy. Every stage calls it, so do expensive work on the parameters
        beforehand.
      group_size: number of completions per prompt, G.
      completion_length: T, the number of tokens after which a completion is cut off.
      end_ids: the tokens that end a completion.
      pad_id: the padding token.
      num_tokens: number of token ids, from 0 on, that can be sampled; see `sample`.
      temperature: divisor of the logits; see `sample`.
      top_p: probability mass of the nucleus; see `sample`.
      top_k: number of most likely tokens to sample from; see `sample`.

    Raises:
      ValueError: for an option out of range, or an end token that is not below `num_tokens`. Prompts are not checked.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from dps_jax import models
      >>> config = models.DecoderConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
      ...                               head_dim=8, mlp_size=16)
      >>> graphdef, params = nnx.split(models.Decoder(config, rngs=nnx.Rngs(0)))
      >>> sampler = models.staged_sampler(functools.partial(nnx.merge, graphdef), group_size=4, completion_length=6,
      ...                                 end_ids=(1,), pad_id=0, num_tokens=16)
      >>> prompts, keys = jnp.array([[3, 5], [7, 4]]), jax.random.split(jax.random.key(0), 2)
      >>> sampler(params, prompts, prompts != 0, keys).tokens.shape  # [B, G, T]
      (2, 4, 6)
    """
    plan = _Plan(
        group_size=_checks.check_int("group_size", group_size, at_least=1),
        completion_length=_checks.check_int("completion_length", completion_length, at_least=1),
        pad_id=pad_id,
    )
    how = drawing_of(
        num_tokens,
        end_id=None,
        end_ids=end_ids,
        pad_id=pad_id,
        num_tokens=num_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )
    programs = _Programs(
        start=jax.jit(functools.partial(_start, model_fn, plan)),
        run=jax.jit(functools.partial(_run, model_fn, how), donate_argnums=2),
        move=jax.jit(_move),
        grow=jax.jit(functools.partial(_grow, pad_id), static_argnums=1),
    )
    return functools.partial(_sample, plan, programs)


def _start(
    model_fn: Callable[[Any], Decoder], plan: _Plan, params: Any, prompts: Any, is_token: Any, keys: Any
) -> tuple[Prompts, Loop]:
    room = rooms_for(plan.completion_length)[0]
    return _decoding.start(
        model_fn(params), prompts, is_token, keys, group_size=plan.group_size, room=room, pad_id=plan.pad_id
    )


def _run(
    model_fn: Callable[[Any], Decoder], how: Drawing, params: Any, prompts: Prompts, loop: Loop, until: Any
) -> Loop:
    return _decoding.run(model_fn(params), how, prompts, loop, until)


def _grow(pad_id: int, loop: Loop, room: int) -> Loop:
    return _decoding.with_room(loop, room, pad_id)


def _move(prompts: Prompts, loop: Loop, slots: jax.Array, members: jax.Array) -> tuple[Prompts, Loop]:
    """Returns a loop with some of the rows of `loop`, and its prompts.

    Args:
      prompts: the B prompts of `loop`.
      loop: rows [B, G].
      slots: index in `prompts` of each prompt of the returned loop, int32 [S].
      members: index among the G rows of that prompt of each returned row, int32 [S, M]; -1 for padding.
    """
    take = lambda leaf: leaf[slots[:, None], jnp.maximum(members, 0)]
    moved = loop._replace(
        keys=take(loop.keys),
        hidden=take(loop.hidden),
        is_open=take(loop.is_open) & (members >= 0),
        written=jax.tree.map(take, loop.written),
        caches=jax.tree.map(take, loop.caches),
    )
    return Prompts(jax.tree.map(lambda leaf: leaf[slots], prompts.caches), prompts.is_token[slots]), moved


def _sample(plan: _Plan, programs: _Programs, params: Any, prompts: Any, is_token: Any, keys: Any) -> Completions:
    """Returns the completions; see `staged_sampler`."""
    num_rows, length = prompts.shape[0] * plan.group_size, plan.completion_length
    stage = max(_MIN_STAGE, -(-length // _STAGES))
    rooms = rooms_for(length)
    room = rooms.pop(0)
    read, loop = programs.start(params, prompts, is_token, keys)
    rows = np.arange(num_rows).reshape(-1, plan.group_size)
    shape = (num_rows, length)
    blank: Any = (np.full(shape, plan.pad_id, np.int32), np.zeros(shape, np.float32), np.zeros(shape, bool))
    found = Completions(*blank)
    step = 0
    while True:
        until = min(step + stage, room)
        loop = programs.run(params, read, loop, np.int32(until))
        step, is_open = until, np.asarray(loop.is_open)
        if step == length or not is_open.any():
            break
        placing = place(is_open, num_rows, room, prompts.shape[1])
        if placing is not None:
            _store(found, rows, loop.written)
            slots, members = placing
            rows = np.where(members >= 0, rows[slots[:, None], members], -1)
            read, loop = programs.move(read, loop, slots, members)
        if step == room:
            room = rooms.pop(0)
            loop = programs.grow(loop, room)
    _store(found, rows, loop.written)
    return Completions(*(leaf.reshape(-1, plan.group_size, length) for leaf in found))


def _store(found: Completions, rows: np.ndarray, written: Completions) -> None:
    """Copies the tokens of rows into the result.

    Args:
      found: the result, arrays [all rows, T].
      rows: index in `found` of every row, int [S, M]; -1 for padding.
      written: the tokens of the rows so far, arrays [S, M, room].
    """
    is_row = rows >= 0
    for all_rows, leaf in zip(found, jax.device_get(written), strict=True):
        all_rows[rows[is_row], : leaf.shape[-1]] = leaf[is_row]


def place(is_open: np.ndarray, num_rows: int, room: int, prompt_length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns a smaller batch for the open rows, or None if no batch makes a step at least a fifth cheaper.

    In a batch with fewer rows per prompt, fewer rows are padding, but the caches of prompts are read more often.

    Args:
      is_open: which rows have not ended, bool [B, G].
      num_rows: number of rows in the first stage.
      room: number of tokens that the rows have room for.
      prompt_length: P.

    Returns:
      Slots [S] and members [S, M]; see `_move`.
    """
    cost = lambda slots, members: slots * (members * (_ROW_COST + room) + prompt_length)
    counts = is_open.sum(axis=1)
    best, least = None, 0.8 * cost(*is_open.shape)
    for size in (size for size in range(1, is_open.shape[1] + 1) if is_open.shape[1] % size == 0):
        needed = int(np.ceil(counts / size).sum())
        sizes = (math.ceil(share * num_rows / size) for share in _SHARES)
        for num_slots in (slots for slots in sizes if slots >= needed and cost(slots, size) <= least):
            best, least = (num_slots, size), cost(num_slots, size)
    if best is None:
        return None
    num_slots, size = best
    slots, members = np.zeros(num_slots, np.int32), np.full((num_slots, size), -1, np.int32)
    parts = [(slot, part) for slot, row in enumerate(is_open) for part in _parts(np.flatnonzero(row), size)]
    for index, (slot, part) in enumerate(parts):
        slots[index] = slot
        members[index, : part.size] = part
    return slots, members


def _parts(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[start : start + size] for start in range(0, values.size, size)]
