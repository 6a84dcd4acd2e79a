"""Rollouts with grading on the host: while a chunk of prompts is sampled, the one before it is graded.

The three steps of `rl.rollout` are separate here: sampling, which is compiled once per length of prompts; grading, by
processes on the host; and assembling the batch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import rl, text
from dps_jax.models._placing import Placing
from dps_jax.rl import _dynamic
from dps_jax.rl._collection import batch_keys
from dps_jax.training._mesh import fetch, put_whole
from dps_jax.training._phases import CollectFn
from dps_jax.training._round import TrainState, round_keys
from dps_jax.types import Selector

# Stands for padding in prompts: no token has this id.
PADDING = -1


class Score(NamedTuple):
    """The scores of completions, [B, G] each, and the number of failed gradings by kind."""

    is_correct: np.ndarray
    rewards: np.ndarray
    failures: dict[str, int]


class PendingScore(Protocol):
    """A chunk whose completions are being graded."""

    def result(self) -> Score:
        """Returns the score when it is known."""
        ...


class Trimmed(NamedTuple):
    """Completions that are cut where a stop text ends; NumPy arrays with the names of `models.Completions`."""

    tokens: np.ndarray
    mask: np.ndarray


# (ids [C], tokens [C, G, T], mask [C, G, T]) -> (completions cut at stop texts, their pending score).
GradeFn = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[Trimmed, PendingScore]]


class HostRollout(NamedTuple):
    """The functions and sizes of a rollout.

    Attributes:
      sample_fn: (params, prompts [C, P], keys [C]) -> `models.Completions`; called on the host.
      prompts: tokens of each of N prompts, without padding.
      buckets: lengths that prompts are padded to, increasing.
      chunk_size: number of prompts that are sampled together.
      grade: function that grades completions; see `GradeFn`.
      placing: how the policy is split over a mesh, or None.
    """

    sample_fn: Callable[..., Any]
    prompts: Sequence[np.ndarray]
    buckets: tuple[int, ...]
    chunk_size: int
    grade: GradeFn
    placing: Placing | None = None


class _Chunk(NamedTuple):
    """A chunk that was sampled: its positions in the batch, its completions as NumPy arrays, and its pending score."""

    places: np.ndarray
    completions: Trimmed
    log_probs: np.ndarray
    score: PendingScore


def padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Returns prompts with `PADDING` on the left, int32 [B, width]."""
    tokens, is_token = text.pad_left(rows, width, 0)
    return np.where(is_token, tokens, np.int32(PADDING))


def roll_out(
    how: HostRollout, params: Any, ids: np.ndarray, key: jax.Array, *, width: int | None = None
) -> tuple[rl.Batch, dict[str, Any]]:
    """Returns the batch of some prompts with graded completions, and entries for the record of the round.

    The completions of a prompt depend on its position in `ids` and on the key, not on chunks and buckets.

    Args:
      how: functions and sizes of the rollout.
      params: parameters of the policy.
      ids: prompt ids, int [B], in [0, N).
      key: key for sampling.
      width: length that the prompts of the batch are padded to; None is the bucket of the longest.
    """
    ids = np.asarray(ids)
    lengths = np.array([how.prompts[index].size for index in ids])
    keys = jax.random.split(key, ids.size)
    order = np.argsort(lengths, kind="stable")
    starts = range(0, ids.size, how.chunk_size)
    chunks = [_sample(how, params, ids, keys, order[start : start + how.chunk_size]) for start in starts]
    clock = time.perf_counter()
    scores = [chunk.score.result() for chunk in chunks]
    waited = time.perf_counter() - clock
    width = int(how.buckets[text.bucket_of([lengths.max()], how.buckets)[0]]) if width is None else width
    tokens = padded([how.prompts[index] for index in ids], width)
    places = np.concatenate([chunk.places for chunk in chunks])
    in_order = lambda parts: np.concatenate(parts)[np.argsort(places)]
    arrays = (
        ids.astype(np.int32),
        tokens,
        in_order([chunk.completions.tokens for chunk in chunks]),
        in_order([chunk.completions.mask for chunk in chunks]),
        in_order([chunk.log_probs for chunk in chunks]),
    )
    sampled = rl.Sampled(*put_whole(how.placing, arrays))
    is_correct, rewards = (in_order([one[field] for one in scores]) for field in (0, 1))
    failures = {name: sum(one.failures[name] for one in scores) for name in scores[0].failures}
    scores_there = put_whole(how.placing, (is_correct, rewards))
    return _assemble(sampled, *scores_there), {**failures, "grade_wait_s": waited}


@jax.jit
def _assemble(sampled: rl.Sampled, is_correct: jax.Array, rewards: jax.Array) -> rl.Batch:
    return rl.assemble(sampled, _OnDevice(is_correct, rewards))


class _OnDevice(NamedTuple):
    """A score in the form that `rl.assemble` takes."""

    is_correct: jax.Array
    rewards: jax.Array


def _sample(how: HostRollout, params: Any, ids: np.ndarray, keys: jax.Array, places: np.ndarray) -> _Chunk:
    """Samples completions of the prompts at some positions of a batch, and starts grading them."""
    rows = [how.prompts[index] for index in ids[places]]
    width = int(how.buckets[text.bucket_of([max(row.size for row in rows)], how.buckets)[0]])
    # The last chunk is filled up with copies of its rows, so that all chunks have the same shape.
    filled = np.resize(np.arange(len(rows)), how.chunk_size)
    tokens = padded(rows, width)
    found = fetch(how.sample_fn(params, tokens[filled], keys[places[filled]]))
    found = jax.tree.map(lambda leaf: leaf[: len(rows)], found)
    trimmed, score = how.grade(ids[places], found.tokens, found.mask)
    return _Chunk(places, trimmed, np.where(trimmed.mask, found.log_probs, 0), score)


def collector(
    selector: Selector, how: HostRollout, *, batch_size: int, num_prompts: int, max_batches: int | None
) -> CollectFn:
    """Returns the function that collects the batch of a round with completions that are graded on the host.

    Args:
      selector: selector over the N prompts.
      how: functions and sizes of the rollout.
      batch_size: number of prompts per round, B.
      num_prompts: number of prompts, N.
      max_batches: largest number of batches of dynamic collection; None collects the selected prompts.
    """
    if max_batches is None:
        return functools.partial(_collect_plain, jax.jit(rl.plain_collection), how)
    parts = _Dynamic(
        how=how,
        select=jax.jit(selector.select, static_argnums=2),
        add=jax.jit(_dynamic.add_batch),
        finish=jax.jit(_dynamic.finish),
        batch_size=batch_size,
        num_batches=_dynamic.most_batches(max_batches, num_prompts, batch_size),
    )
    return functools.partial(_collect_dynamic, parts)


def _collect_plain(
    collect: Callable[..., rl.Collection], how: HostRollout, state: TrainState, selection: rl.Selection | None
) -> tuple[rl.Collection, dict[str, Any]]:
    if selection is None:
        raise ValueError("selection: expected the prompts of the round, got None")
    keys = batch_keys(round_keys(state).collect)
    batch, facts = roll_out(how, state.params, np.asarray(selection.ids), keys.rollout)
    return collect(batch, selection), facts


class _Dynamic(NamedTuple):
    """The compiled functions and sizes of dynamic collection on the host."""

    how: HostRollout
    select: Callable[..., tuple[jax.Array, Any]]
    add: Callable[..., _dynamic.Progress]
    finish: Callable[..., rl.Collection]
    batch_size: int
    num_batches: int


def _collect_dynamic(
    parts: _Dynamic, state: TrainState, selection: rl.Selection | None
) -> tuple[rl.Collection, dict[str, Any]]:
    del selection  # it is None
    key, totals = round_keys(state).collect, {}
    progress, tried = None, jnp.full(parts.num_batches * parts.batch_size, -1, jnp.int32)
    for index in range(parts.num_batches):
        keys = batch_keys(jax.random.fold_in(key, index))
        ids, info = parts.select(state.selector, keys.select, parts.batch_size, exclude=tried)
        batch, facts = roll_out(parts.how, state.params, np.asarray(ids), keys.rollout, width=parts.how.buckets[-1])
        progress = _dynamic.begin(batch, parts.num_batches) if progress is None else progress
        progress = parts.add(progress, batch, info.scores)
        tried = progress.ids
        totals = {name: totals.get(name, 0) + value for name, value in facts.items()}
        if not _dynamic.is_short(parts.num_batches, progress):
            break
    return parts.finish(progress), totals
