"""The gradient of a minibatch, computed in chunks, and only for the completion groups that have a gradient.

Shapes are fixed: the groups with a signal are moved to the front, and a loop over chunks stops after the last of them.
If a third of a batch is partially solved, and chunks are small, the update costs about a third of the work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from dps_jax._documented import documented
from dps_jax.rl._losses import LossSums, ObjectiveFn, WeightFn
from dps_jax.rl._partly_trained import PartlyTrained
from dps_jax.rl._rollout import Batch

LogProbsFn = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

# Completions per step on a CPU: enough for efficient matrix products, and few enough for activations to stay in caches.
_CPU_ROWS_PER_STEP = 32
# Fields of a batch with an entry for each completion.
_OF_ROWS = ("completions", "mask", "old_log_probs", "rewards", "is_correct")


@documented
class UpdateInfo(NamedTuple):
    """Metrics of an update. Entries are float32 scalars, means over the optimiser steps, unless stated otherwise.

    Attributes:
      loss: the objective that is minimised.
      policy_loss: first term of `loss`, the clipped policy loss.
      kl: mean KL estimate per token of the groups that were not left out; 0 where `kl_coef` is 0.
      entropy: mean entropy per token of the same groups.
      sampled_entropy: mean of -old_log_probs over the tokens of all groups, left out or not, which estimates the mean
        entropy.
      grad_norm: norm of the gradient before clipping.
      clip_fraction: share of the tokens with an advantage whose gradient was removed by clipping.
      num_rows: number of completions of the groups that were not left out, per epoch, int32.
      is_finite: whether loss, gradient and parameter change of every step were finite, bool.
      num_skipped: number of steps that were skipped because they were not finite, int32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl
      >>> def log_probs_fn(params, prompts, completions):  # a policy that ignores its prompt
      ...     all_log_probs = jax.nn.log_softmax(params)
      ...     entropy = -jnp.sum(jnp.exp(all_log_probs) * all_log_probs)
      ...     return all_log_probs[completions], jnp.full(completions.shape, entropy)
      >>> learner = rl.learner(log_probs_fn, learning_rate=0.1)
      >>> tokens = jnp.array([[[0], [1]], [[2], [3]]])  # both completions of the second prompt are wrong
      >>> batch = rl.Batch(
      ...     ids=jnp.arange(2), prompts=jnp.ones((2, 5), jnp.int32), completions=tokens,
      ...     mask=jnp.ones((2, 2, 1), bool), old_log_probs=jnp.log(jnp.full((2, 2, 1), 0.25)),
      ...     rewards=jnp.array([[1.0, 0.0], [0.0, 0.0]]), is_correct=tokens[..., 0] == 0, is_used=jnp.ones(2, bool))
      >>> _, _, info = learner.update(jnp.zeros(4), learner.init(jnp.zeros(4)), batch, jax.random.key(0))
      >>> int(info.num_rows), bool(info.is_finite)  # the group without an advantage was left out
      (2, True)
    """

    loss: jax.Array
    policy_loss: jax.Array
    kl: jax.Array
    entropy: jax.Array
    sampled_entropy: jax.Array
    grad_norm: jax.Array
    clip_fraction: jax.Array
    num_rows: jax.Array
    is_finite: jax.Array
    num_skipped: jax.Array


class _Fixed(NamedTuple):
    """The arguments of `policy_gradient`, which are the same for all batches."""

    log_probs_fn: LogProbsFn
    objective: ObjectiveFn
    weight_fn: WeightFn
    skips_zero_advantage: bool
    rows_per_step: int | None
    is_mean_of_signals: bool
    num_devices: int
    num_lengths: int


class _Work(NamedTuple):
    """The groups of a minibatch, whose gradient is to be computed.

    Attributes:
      batch: the batch that they are part of, B groups.
      advantages: advantages of the batch, [B, G].
      ref_log_probs: reference log-probs of the batch, [B, G, T], or None.
      group_ids: positions of the groups in the batch, int32 [M].
      weights: weights of their tokens in the loss, [M, G, T].
      has_signal: which of them have a gradient, bool [M].
    """

    batch: Batch
    advantages: jax.Array
    ref_log_probs: jax.Array | None
    group_ids: jax.Array
    weights: jax.Array
    has_signal: jax.Array


def _accumulator(leaf: jax.Array) -> jax.Array:
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))


def _sum_of_chunks(
    chunk: Callable[[Any, jax.Array], tuple[Any, LossSums]], params: Any, num_needed: jax.Array, num_chunks: int
) -> tuple[Any, LossSums]:
    """Returns the sum of chunk(params, 0), ..., chunk(params, num_needed - 1)."""
    scalar = jnp.zeros((), jnp.float32)
    no_sums = LossSums(*(scalar for _ in LossSums._fields))
    if num_chunks == 1:
        # No accumulator, which would be a second copy of the gradient.
        nothing = lambda: (jax.tree.map(jnp.zeros_like, params), no_sums)
        return lax.cond(num_needed > 0, lambda: chunk(params, jnp.zeros((), jnp.int32)), nothing)
    add = lambda total, more: total + more.astype(total.dtype)
    step = lambda index, total: jax.tree.map(add, total, chunk(params, index))
    grads, sums = lax.fori_loop(0, num_needed, step, (jax.tree.map(_accumulator, params), no_sums))
    return jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params), sums


def _info(grads: Any, sums: LossSums, batch: Batch, group_ids: jax.Array, num_rows: jax.Array) -> UpdateInfo:
    is_sampled = batch.mask[group_ids] & batch.is_used[group_ids][:, None, None]
    sampled = jnp.where(is_sampled, -batch.old_log_probs[group_ids], 0.0)
    per = lambda total, count: total / jnp.maximum(count, 1.0)
    grad_norm = optax.tree.norm(grads)
    return UpdateInfo(
        loss=sums.loss,
        policy_loss=sums.policy_loss,
        kl=per(sums.kl, sums.num_tokens),
        entropy=per(sums.entropy, sums.num_tokens),
        sampled_entropy=per(sampled.sum(), jnp.sum(is_sampled, dtype=jnp.float32)),
        grad_norm=grad_norm,
        clip_fraction=per(sums.num_clipped, sums.num_clippable),
        num_rows=num_rows,
        is_finite=jnp.isfinite(sums.loss) & jnp.isfinite(grad_norm),
        num_skipped=jnp.zeros((), jnp.int32),
    )


def policy_gradient(
    log_probs_fn: LogProbsFn,
    objective: ObjectiveFn,
    weight_fn: WeightFn,
    *,
    skips_zero_advantage: bool,
    rows_per_step: int | None,
    is_mean_of_signals: bool = False,
    num_devices: int = 1,
    num_lengths: int = 1,
) -> Callable[..., tuple[Any, UpdateInfo]]:
    """Returns the function (params, batch, advantages, group_ids, ref_log_probs) -> (gradient, `UpdateInfo`).

    An optional last argument group_weights [B] multiplies the objective of each group of the batch; None stands for
    weights of 1. For `PartlyTrained` parameters, the gradient is taken with respect to their trained part.

    Args:
      log_probs_fn: (params, prompts [C, P], completions [C, G, T]) -> (log_probs, entropies), each [C, G, T].
      objective: the function that `_losses.objective` returned.
      weight_fn: one of `LOSSES`.
      skips_zero_advantage: whether groups whose advantages are all 0 are left out. Unused groups always are.
      rows_per_step: number of completions that go through the model together, in whole groups or, below G, in equal
        parts of a group. None is 32 on a CPU (at least a group), and the whole minibatch on other devices.
      is_mean_of_signals: whether groups whose advantages are all 0 have no weight and do not count in the mean.
      num_devices: number of devices that groups are split over; the number of groups of a step is a multiple of it.
        Above 1, `rows_per_step` None is the whole minibatch.
      num_lengths: number of lengths that completions are cut to: the multiples of T / num_lengths up to T.
    """
    fixed = _Fixed(
        log_probs_fn=log_probs_fn,
        objective=objective,
        weight_fn=weight_fn,
        skips_zero_advantage=skips_zero_advantage,
        rows_per_step=rows_per_step,
        is_mean_of_signals=is_mean_of_signals,
        num_devices=num_devices,
        num_lengths=num_lengths,
    )
    return functools.partial(_gradient, fixed)


def _num_parts(rows_per_step: int | None, group_size: int) -> int:
    """Returns the number of equal parts that groups are cut into, so that a part fits into the rows of a step."""
    if rows_per_step is None:
        return 1
    divisors = (count for count in range(1, group_size + 1) if group_size % count == 0)
    return next(count for count in divisors if group_size // count <= rows_per_step)


def _in_parts(num_parts: int, rows: jax.Array) -> jax.Array:
    """Returns rows of groups [B, G, ...] as rows of parts of groups, [B num_parts, G / num_parts, ...]."""
    return rows.reshape(rows.shape[0] * num_parts, rows.shape[1] // num_parts, *rows.shape[2:])


def _split(batch: Batch, num_parts: int) -> Batch:
    """Returns the batch whose groups are equal parts of the groups of another batch."""
    each = lambda name: jnp.repeat(getattr(batch, name), num_parts, axis=0)
    return batch._replace(
        **{name: each(name) for name in ("ids", "prompts", "is_used")},
        **{name: _in_parts(num_parts, getattr(batch, name)) for name in _OF_ROWS},
        inclusion_probs=None,  # already in the weights of the groups
    )


def _log_probs_of_trained(
    log_probs_fn: LogProbsFn, frozen: Any, trained: Any, prompts: jax.Array, completions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the result of `log_probs_fn`, as a function of the trained part of the parameters."""
    return log_probs_fn(PartlyTrained(trained, frozen), prompts, completions)


def _gradient(
    fixed: _Fixed,
    params: Any,
    batch: Batch,
    advantages: jax.Array,
    group_ids: jax.Array,
    ref_log_probs: jax.Array | None,
    group_weights: jax.Array | None = None,
) -> tuple[Any, UpdateInfo]:
    if isinstance(params, PartlyTrained):
        of_trained = functools.partial(_log_probs_of_trained, fixed.log_probs_fn, params.frozen)
        fixed, params = fixed._replace(log_probs_fn=of_trained), params.trained
    has_advantage = jnp.any(advantages[group_ids] != 0, axis=1)
    is_counted = batch.is_used[group_ids]
    if fixed.is_mean_of_signals:
        is_counted = is_counted & has_advantage
    weights = fixed.weight_fn(batch.mask[group_ids], is_counted)
    if group_weights is not None:
        weights = weights * group_weights[group_ids][:, None, None]
    has_signal = is_counted
    if fixed.skips_zero_advantage:
        has_signal = has_signal & has_advantage
    work = _in_parts_of_groups(fixed, _Work(batch, advantages, ref_log_probs, group_ids, weights, has_signal))
    num_devices, num_rows = fixed.num_devices, fixed.rows_per_step
    num_groups, group_size = work.group_ids.shape[0], work.advantages.shape[1]
    if num_rows is None:
        is_in_pieces = jax.default_backend() == "cpu" and num_devices == 1
        num_rows = _CPU_ROWS_PER_STEP if is_in_pieces else num_groups * group_size
    chunk_size = min(max(num_rows // group_size // num_devices, 1) * num_devices, num_groups)
    num_chunks = -(-num_groups // chunk_size)
    num_signals = jnp.sum(work.has_signal, dtype=jnp.int32)
    # Short groups come first, so that the groups of a chunk have about the same length.
    order = jnp.argsort(jnp.where(work.has_signal, _lengths_of(fixed, work), jnp.iinfo(jnp.int32).max), stable=True)
    slots = jnp.arange(num_chunks * chunk_size, dtype=jnp.int32)
    # The last chunk is filled up with copies of a group with a signal, at weight 0. Copies of padding would not do: the
    # model may return NaN for them, and 0 times NaN is NaN.
    places = jnp.where(slots < num_signals, order[jnp.minimum(slots, num_groups - 1)], order[0])

    def chunk(params: Any, index: jax.Array) -> tuple[Any, LossSums]:
        take = lambda values: lax.dynamic_slice_in_dim(values, index * chunk_size, chunk_size)
        return _chunk_gradient(fixed, params, work, take(places), take(slots) < num_signals)

    num_needed = (num_signals + chunk_size - 1) // chunk_size
    grads, sums = _sum_of_chunks(chunk, params, num_needed, num_chunks)
    return grads, _info(grads, sums, batch, group_ids, num_signals * group_size)


def _in_parts_of_groups(fixed: _Fixed, work: _Work) -> _Work:
    """Returns the work split into parts of groups, if a whole group is more than the rows of a step."""
    # The number of rows of a step on each device.
    of_device = None if fixed.rows_per_step is None else max(fixed.rows_per_step // fixed.num_devices, 1)
    num_parts = _num_parts(of_device, work.advantages.shape[1])
    if num_parts == 1:
        return work
    if fixed.num_lengths > 1:
        work = _by_length(work)
    split = functools.partial(_in_parts, num_parts)
    parts = jnp.arange(num_parts, dtype=work.group_ids.dtype)
    return _Work(
        batch=_split(work.batch, num_parts),
        advantages=split(work.advantages),
        ref_log_probs=jax.tree.map(split, work.ref_log_probs),
        group_ids=(work.group_ids[:, None] * num_parts + parts).ravel(),
        weights=split(work.weights),
        has_signal=jnp.repeat(work.has_signal, num_parts),
    )


def _by_length(work: _Work) -> _Work:
    """Returns the work with the completions of every group sorted by their length."""
    batch = work.batch
    order = jnp.argsort(_lengths(batch.mask), axis=1)

    def put(leaf: jax.Array, order: jax.Array = order) -> jax.Array:
        return jnp.take_along_axis(leaf, order.reshape(*order.shape, *(1,) * (leaf.ndim - 2)), axis=1)

    return work._replace(
        batch=batch._replace(**{name: put(getattr(batch, name)) for name in _OF_ROWS}),
        advantages=put(work.advantages),
        ref_log_probs=jax.tree.map(put, work.ref_log_probs),
        weights=put(work.weights, order[work.group_ids]),
    )


def _lengths(mask: jax.Array) -> jax.Array:
    """Returns the number of tokens up to the last unmasked one of each completion, int32 [...]."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[-1] + 1, dtype=jnp.int32), 0), axis=-1)


def _lengths_of(fixed: _Fixed, work: _Work) -> jax.Array:
    """Returns the length of the longest completion of every group, int32 [M]; T for all if there is only one length."""
    if fixed.num_lengths == 1:
        return jnp.full(work.group_ids.shape, work.batch.mask.shape[2], jnp.int32)
    return jnp.max(_lengths(work.batch.mask), axis=1)[work.group_ids]


def _chunk_gradient(
    fixed: _Fixed, params: Any, work: _Work, places: jax.Array, is_filled: jax.Array
) -> tuple[Any, LossSums]:
    """Returns the contribution of the groups at some places of the work to the gradient, and their sums.

    Places that are not filled contribute nothing.
    """
    length = work.batch.mask.shape[2]
    widths = sorted({-(-length * step // fixed.num_lengths) for step in range(1, fixed.num_lengths + 1)})
    at_width = [functools.partial(_cut_gradient, fixed, work, width) for width in widths]
    if len(widths) == 1:
        return at_width[0](params, places, is_filled)
    longest = jnp.max(_lengths_of(fixed, work)[places])
    index = jnp.searchsorted(jnp.asarray(widths, jnp.int32), longest)
    return lax.switch(index, at_width, params, places, is_filled)


def _cut_gradient(
    fixed: _Fixed, work: _Work, width: int, params: Any, places: jax.Array, is_filled: jax.Array
) -> tuple[Any, LossSums]:
    """Returns the same as `_chunk_gradient`, for completions whose unmasked tokens are all among the first `width`."""
    ids, weights = work.group_ids[places], work.weights[places]
    cut = lambda leaf: leaf[..., :width]
    take = lambda leaf: cut(leaf[ids])
    batch, is_there = work.batch, is_filled[:, None, None]

    def loss_fn(params: Any) -> tuple[jax.Array, LossSums]:
        log_probs, entropies = fixed.log_probs_fn(params, batch.prompts[ids], take(batch.completions))
        return fixed.objective(
            log_probs,
            entropies,
            take(batch.old_log_probs),
            take(batch.mask) & is_there,
            jnp.where(is_there, cut(weights), 0.0),
            work.advantages[ids],
            None if work.ref_log_probs is None else take(work.ref_log_probs),
        )

    (_, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, sums
