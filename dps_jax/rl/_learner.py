"""The update of a policy from a batch: advantages, minibatches and epochs, clipped gradients, AdamW.

By default this is GRPO with the loss of DAPO:
* The advantage of a completion is its reward minus the mean of its group, divided by the standard deviation of the
  group.
* The loss is a mean over all tokens of a minibatch ("token-mean"), or over the tokens of its groups that have an
  advantage ("token-mean-signal"); GRPO itself averages over completions ("sequence-mean").
* Ratios of new to old probabilities are clipped to [1 - 0.2, 1 + 0.28], further above 1 than below ("clip-higher").
* There is no KL penalty. With `kl_coef` above 0, "k3" estimates the divergence from the reference policy.
* A batch is used for one optimiser step, so the step is on-policy, and all ratios are 1 up to rounding. Clipping has an
  effect only with more minibatches or epochs, whose old log-probs remain those of sampling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from dps_jax import _checks
from dps_jax._documented import documented, short_repr
from dps_jax.rl import _inclusion, _losses
from dps_jax.rl._advantages import ADVANTAGES, AdvantageFn
from dps_jax.rl._partly_trained import trained_part, with_trained_part
from dps_jax.rl._policy_gradient import LogProbsFn, UpdateInfo, policy_gradient
from dps_jax.rl._rollout import Batch, is_informative, without_unscored


@documented
class Learner(NamedTuple):
    """A learner as a triple of pure functions, which `learner` returns.

    Parameters may be `PartlyTrained`: then only their trained part is updated.

    Attributes:
      init: params -> opt_state.
      update: (params, opt_state, batch, key, ref_log_probs=None) -> (params, opt_state, `UpdateInfo`). A step on a
        minibatch without used groups changes nothing. A step whose loss, gradient or parameter change is not finite is
        skipped, and counted in the `UpdateInfo`.
      gradient: (params, batch, ref_log_probs=None) -> (gradient, `UpdateInfo`) of the whole batch, before clipping. The
        gradient is a tree like the trained parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl
      >>> def log_probs_fn(params, prompts, completions):  # a policy that ignores its prompt
      ...     all_log_probs = jax.nn.log_softmax(params)
      ...     entropy = -jnp.sum(jnp.exp(all_log_probs) * all_log_probs)
      ...     return all_log_probs[completions], jnp.full(completions.shape, entropy)
      >>> learner = rl.learner(log_probs_fn, learning_rate=0.1)
      >>> tokens = jnp.array([[[0], [1]]])  # two completions of one prompt; the first is correct
      >>> batch = rl.Batch(
      ...     ids=jnp.zeros(1, jnp.int32), prompts=jnp.ones((1, 5), jnp.int32), completions=tokens,
      ...     mask=jnp.ones((1, 2, 1), bool), old_log_probs=jnp.log(jnp.full((1, 2, 1), 0.25)),
      ...     rewards=jnp.array([[1.0, 0.0]]), is_correct=tokens[..., 0] == 0, is_used=jnp.ones(1, bool))
      >>> gradient, info = learner.gradient(jnp.zeros(4), batch)
      >>> gradient.argmin().item()  # a step against the gradient makes token 0, the correct one, more likely
      0
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any, UpdateInfo]]
    gradient: Callable[..., tuple[Any, UpdateInfo]]

    __repr__ = short_repr


class _Fixed(NamedTuple):
    """The checked arguments of `learner`, which are the same for all batches.

    Attributes:
      gradient: the function that `policy_gradient` returned.
      optimiser: the optimiser, clipping of the gradient norm included.
      advantage: one of `ADVANTAGES`.
      loss: a name of `LOSSES`.
      inclusion_weights: a name of `INCLUSION_WEIGHTS`, or None.
      num_prompts: N, where the weights need it.
      num_minibatches: minibatches per batch.
      num_epochs: passes over a batch.
      rate_by_share: exponent of the share of informative groups that scales a step.
    """

    gradient: Callable[..., tuple[Any, UpdateInfo]]
    optimiser: optax.GradientTransformation
    advantage: AdvantageFn
    loss: str
    inclusion_weights: str | None
    num_prompts: int | None
    num_minibatches: int
    num_epochs: int
    rate_by_share: Any


def _check_skip(skips_zero_advantage: bool | None, kl_coef: Any, entropy_coef: Any) -> bool:
    """Returns whether groups without an advantage are left out of the computation."""
    is_exact = _losses.is_constant_zero(kl_coef) and _losses.is_constant_zero(entropy_coef)
    if skips_zero_advantage and not is_exact:
        raise ValueError(
            f"skips_zero_advantage: expected None or False where kl_coef ({kl_coef}) or entropy_coef ({entropy_coef}) "
            "is not 0, got True; rows without advantage have a gradient then"
        )
    return is_exact if skips_zero_advantage is None else bool(skips_zero_advantage)


def _optimiser(learning_rate: Any, max_grad_norm: Any, weight_decay: Any) -> optax.GradientTransformation:
    infinity = float("inf")
    if not callable(learning_rate):
        _checks.check_in_interval("learning_rate", learning_rate, 0.0, infinity)
    _checks.check_in_interval("weight_decay", weight_decay, 0.0, infinity)
    _checks.check_in_interval("max_grad_norm", max_grad_norm, 0.0, infinity)
    if _losses.is_constant_zero(max_grad_norm):
        raise ValueError("max_grad_norm: expected a number > 0, got 0; infinity turns clipping off")
    rate: Any = learning_rate
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adamw(rate, weight_decay=weight_decay))


def minibatch_ids(key: jax.Array, is_used: jax.Array, num_minibatches: int) -> jax.Array:
    """Returns a random assignment of groups to minibatches, whose numbers of used groups differ by at most one.

    Returns:
      Positions in the batch, int32 [num_minibatches, B / num_minibatches].

    Raises:
      ValueError: if B is not a multiple of `num_minibatches`.
    """
    num_groups = is_used.shape[0]
    if num_groups % num_minibatches:
        raise ValueError(f"num_minibatches: expected a divisor of the batch of {num_groups}, got {num_minibatches}")
    shuffled = jnp.arange(num_groups, dtype=jnp.int32)
    if num_minibatches > 1:
        shuffled = jax.random.permutation(key, shuffled)
        shuffled = shuffled[jnp.argsort(~is_used[shuffled], stable=True)]
    return shuffled.reshape(-1, num_minibatches).T


def learner(
    log_probs_fn: LogProbsFn,
    *,
    learning_rate: Any,
    advantage: str = "grpo",
    loss: str = "token-mean",
    clip_low: Any = 0.2,
    clip_high: Any = 0.28,
    kl_coef: Any = 0.0,
    kl: str = "k3",
    entropy_coef: Any = 0.0,
    num_minibatches: int = 1,
    num_epochs: int = 1,
    max_grad_norm: Any = 1.0,
    weight_decay: Any = 0.0,
    rate_by_share: Any = 0.0,
    skips_zero_advantage: bool | None = None,
    rows_per_step: int | None = None,
    inclusion_weights: str | None = None,
    num_prompts: int | None = None,
    num_devices: int = 1,
    num_lengths: int = 1,
) -> Learner:
    """Returns the learner of a policy: GRPO with the loss of DAPO, unless options choose another variant.

    The numbers among the options may be traced, so that a sweep can `vmap` over them.

    Args:
      log_probs_fn: (params, prompts [C, P], completions [C, G, T]) -> (log_probs, entropies), each [C, G, T], of the
        tokens at the temperature that they were sampled at. The function is called with C <= B groups or, if
        `rows_per_step` is below G, with parts of groups, whose G is smaller.
      learning_rate: a number, or an optax schedule over the optimiser steps. A batch takes `num_epochs` *
        `num_minibatches` steps.
      advantage: a name of `ADVANTAGES`; advantages are computed once per batch.
      loss: a name of `LOSSES`, which decides how tokens are weighted within a minibatch.
      clip_low: number in [0, 1]; tokens with a negative advantage give no gradient if the ratio of their new to their
        old probability is below 1 - clip_low.
      clip_high: number >= 0; tokens with a positive advantage give no gradient if this ratio is above 1 + clip_high.
        Infinity turns this off.
      kl_coef: weight (>= 0) of the estimated KL divergence from the reference policy. Above 0, `update` needs the
        log-probs of the reference policy.
      kl: a name of `KL_ESTIMATORS`; "k1" has no expected gradient and is for comparison only.
      entropy_coef: weight (>= 0) of the entropy bonus.
      num_minibatches: number of minibatches per pass over a batch, a divisor of B. Completion groups stay whole and are
        assigned to minibatches again in every epoch.
      num_epochs: number of passes over a batch; `old_log_probs` remain those of sampling.
      max_grad_norm: norm (> 0) that the gradient of a step is clipped to; infinity turns clipping off.
      weight_decay: weight decay (>= 0) of AdamW, for all parameters.
      rate_by_share: exponent (>= 0) of the step scaling: steps are multiplied by (share of informative groups in the
        minibatch) ** rate_by_share. A step of Adam is as long with few informative groups as with many, though its
        gradient is noisier; 0.5 compensates for that. `learning_rate` then applies to minibatches in which every group
        is informative. 0 does not scale steps.
      skips_zero_advantage: whether groups whose advantages are all 0 are left out of the computation. Without a KL
        penalty and an entropy bonus the gradient is the same, since the loss still divides by the size of the whole
        minibatch. None leaves them out if `kl_coef` and `entropy_coef` are 0 and not traced.
      rows_per_step: number of completions that go through the model together; gradients are accumulated over such
        steps. Fewer completions need less memory, and steps without a signal are skipped. Below G, a group is split,
        and its prompt goes through the model once per part. None is 32, or one group if that is more, on a CPU, and the
        whole minibatch on other devices, where groups without a signal then cost as much as others.
      inclusion_weights: a name of `INCLUSION_WEIGHTS`, to weight groups by `Batch.inclusion_probs`, so that the
        gradient estimates the average over all N prompts, and not the average over the prompts that the selector
        prefers. The weights are computed once per batch, like advantages, so that minibatches share them.
        "self-normalised" works with every loss and advantage, "unbiased" neither with losses that average over tokens
        nor with the advantage "reinforce++". None uses no weights.
      num_prompts: number of prompts, N; needed by "unbiased".
      num_devices: number of devices that `log_probs_fn` splits its rows over. The number of groups of a step is a
        multiple of this number, and `rows_per_step` None is then the whole minibatch on a CPU, too.
      num_lengths: number of lengths that completions are cut to: the multiples of T / num_lengths up to T. Completions
        of similar length go through the model together, cut to the shortest of these lengths that holds them. The
        gradient is the same. A program is compiled for each length; under `vmap` all of them run.

    Raises:
      ValueError: for an option that is unknown or out of range. `update` raises it for a group baseline with G < 2, a
        batch that is not a multiple of `num_minibatches`, missing log-probs of the reference policy, or missing
        `inclusion_probs`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl
      >>> def log_probs_fn(params, prompts, completions):  # a policy that ignores its prompt
      ...     all_log_probs = jax.nn.log_softmax(params)
      ...     entropy = -jnp.sum(jnp.exp(all_log_probs) * all_log_probs)
      ...     return all_log_probs[completions], jnp.full(completions.shape, entropy)
      >>> learner = rl.learner(log_probs_fn, learning_rate=0.1, advantage="dr-grpo", loss="sequence-mean")
      >>> tokens = jnp.array([[[0], [1]]])  # two completions of one prompt; the first is correct
      >>> batch = rl.Batch(
      ...     ids=jnp.zeros(1, jnp.int32), prompts=jnp.ones((1, 5), jnp.int32), completions=tokens,
      ...     mask=jnp.ones((1, 2, 1), bool), old_log_probs=jnp.log(jnp.full((1, 2, 1), 0.25)),
      ...     rewards=jnp.array([[1.0, 0.0]]), is_correct=tokens[..., 0] == 0, is_used=jnp.ones(1, bool))
      >>> params, opt_state, info = learner.update(jnp.zeros(4), learner.init(jnp.zeros(4)), batch, jax.random.key(0))
      >>> params.argmax().item()  # token 0, the correct one, has become the most likely
      0
    """
    _checks.check_choice("advantage", advantage, ADVANTAGES)
    _checks.check_choice("loss", loss, _losses.LOSSES)
    _checks.check_int("num_minibatches", num_minibatches, at_least=1)
    _checks.check_int("num_epochs", num_epochs, at_least=1)
    _checks.check_int("num_devices", num_devices, at_least=1)
    _checks.check_int("num_lengths", num_lengths, at_least=1)
    if rows_per_step is not None:
        _checks.check_int("rows_per_step", rows_per_step, at_least=num_devices)
    if inclusion_weights is not None:
        _inclusion.check_inclusion_weights("inclusion_weights", inclusion_weights, loss, advantage)
    if inclusion_weights == "unbiased":
        if num_prompts is None:
            raise ValueError("num_prompts: expected N, which inclusion_weights 'unbiased' divide by, got None")
        _checks.check_int("num_prompts", num_prompts, at_least=1)
    _checks.check_in_interval("rate_by_share", rate_by_share, 0.0, float("inf"))
    gradient = policy_gradient(
        log_probs_fn,
        _losses.objective(clip_low=clip_low, clip_high=clip_high, kl_coef=kl_coef, kl=kl, entropy_coef=entropy_coef),
        _losses.LOSSES[loss],
        skips_zero_advantage=_check_skip(skips_zero_advantage, kl_coef, entropy_coef),
        rows_per_step=rows_per_step,
        is_mean_of_signals=loss in _losses.SIGNAL_LOSSES,
        num_devices=num_devices,
        num_lengths=num_lengths,
    )

    fixed = _Fixed(
        gradient=gradient,
        optimiser=_optimiser(learning_rate, max_grad_norm, weight_decay),
        advantage=ADVANTAGES[advantage],
        loss=loss,
        inclusion_weights=inclusion_weights,
        num_prompts=num_prompts,
        num_minibatches=num_minibatches,
        num_epochs=num_epochs,
        rate_by_share=rate_by_share,
    )
    return Learner(
        init=functools.partial(_init, fixed),
        update=functools.partial(_update, fixed),
        gradient=functools.partial(_whole_gradient, fixed),
    )


def _init(fixed: _Fixed, params: Any) -> Any:
    """Returns the optimiser state of the trained parameters."""
    return fixed.optimiser.init(trained_part(params))


def _group_weights(fixed: _Fixed, batch: Batch, advantages: jax.Array) -> jax.Array | None:
    """Returns the inclusion weights of the groups, [B]; None if the learner uses none."""
    if fixed.inclusion_weights is None:
        return None
    if batch.inclusion_probs is None:
        raise ValueError(
            f"inclusion_probs: expected an array [B] in the batch as inclusion_weights is {fixed.inclusion_weights!r}, "
            "got None; greedy selection and dynamic collection have none, 'uniform' and temperatures above 0 do"
        )
    # The weight of each group in the mean that the loss takes.
    sizes = jnp.where(batch.is_used, 1.0, 0.0)
    if fixed.loss in _losses.SIGNAL_LOSSES:
        sizes = jnp.where(jnp.any(advantages != 0, axis=1), sizes, 0.0)
    if fixed.loss in _losses.TOKEN_MEANS:
        sizes = sizes * jnp.sum(batch.mask, axis=(1, 2), dtype=jnp.float32)
    weigh = _inclusion.INCLUSION_WEIGHTS[fixed.inclusion_weights]
    return weigh(batch.inclusion_probs, sizes, fixed.num_prompts)


def _whole_gradient(
    fixed: _Fixed, params: Any, batch: Batch, ref_log_probs: jax.Array | None = None
) -> tuple[Any, UpdateInfo]:
    """Returns the gradient of a whole batch; see `Learner.gradient`."""
    batch = without_unscored(batch)
    advantages = fixed.advantage(batch.rewards, batch.is_used)
    group_ids = jnp.arange(batch.is_used.shape[0], dtype=jnp.int32)
    group_weights = _group_weights(fixed, batch, advantages)
    return fixed.gradient(params, batch, advantages, group_ids, ref_log_probs, group_weights)


class _OfBatch(NamedTuple):
    """The inputs that all steps on a batch share.

    Attributes:
      params: parameters before the first step; if they have a frozen part, all steps use it.
      batch: the batch.
      advantages: advantages of its completions, [B, G].
      ref_log_probs: log-probs under the reference policy, [B, G, T], or None.
      group_weights: inclusion weights of its groups, [B], or None.
    """

    params: Any
    batch: Batch
    advantages: jax.Array
    ref_log_probs: jax.Array | None
    group_weights: jax.Array | None


def _step(
    fixed: _Fixed, of_batch: _OfBatch, carry: tuple[Any, Any], group_ids: jax.Array
) -> tuple[tuple[Any, Any], UpdateInfo]:
    """Returns trained parameters and optimiser state after the step on a minibatch of groups, and its `UpdateInfo`."""
    trained, opt_state = carry
    params, batch = with_trained_part(of_batch.params, trained), of_batch.batch
    grads, info = fixed.gradient(
        params, batch, of_batch.advantages, group_ids, of_batch.ref_log_probs, of_batch.group_weights
    )
    updates, next_opt_state = fixed.optimiser.update(grads, opt_state, trained)
    if not _losses.is_constant_zero(fixed.rate_by_share):
        share = jnp.mean((is_informative(batch) & batch.is_used)[group_ids], dtype=jnp.float32)
        updates = jax.tree.map(lambda leaf: (leaf * share**fixed.rate_by_share).astype(leaf.dtype), updates)
    moved = optax.apply_updates(trained, updates), next_opt_state
    is_finite = info.is_finite & jnp.isfinite(optax.tree.norm(updates))
    is_taken = is_finite & jnp.any(batch.is_used[group_ids])
    info = info._replace(is_finite=is_finite, num_skipped=jnp.where(is_finite, 0, 1).astype(jnp.int32))
    return jax.tree.map(lambda after, before: jnp.where(is_taken, after, before), moved, carry), info


def _update(
    fixed: _Fixed, params: Any, opt_state: Any, batch: Batch, key: jax.Array, ref_log_probs: jax.Array | None = None
) -> tuple[Any, Any, UpdateInfo]:
    """Returns parameters and optimiser state after a batch, and the `UpdateInfo`; see `Learner.update`."""
    batch = without_unscored(batch)
    advantages = fixed.advantage(batch.rewards, batch.is_used)
    of_batch = _OfBatch(
        params=params,
        batch=batch,
        advantages=advantages,
        ref_log_probs=ref_log_probs,
        group_weights=_group_weights(fixed, batch, advantages),
    )
    keys = jax.random.split(key, fixed.num_epochs)
    group_ids = jnp.concatenate([minibatch_ids(key, batch.is_used, fixed.num_minibatches) for key in keys])
    start = trained_part(params), opt_state
    (trained, opt_state), infos = lax.scan(functools.partial(_step, fixed, of_batch), start, group_ids)
    means = UpdateInfo(*(jnp.mean(leaf, axis=0, dtype=jnp.float32) for leaf in infos))
    num_rows = infos.num_rows.sum() // fixed.num_epochs
    num_skipped = infos.num_skipped.sum(dtype=jnp.int32)
    is_finite = jnp.all(infos.is_finite)
    params = with_trained_part(params, trained)
    return params, opt_state, means._replace(num_rows=num_rows, is_finite=is_finite, num_skipped=num_skipped)
