"""The objective: the clipped policy loss, a KL penalty to a reference policy, and an entropy bonus.

Every loss is a weighted sum over tokens. The weights depend on the mask alone, and for "token-mean-signal" also on
which groups have an advantage. They are computed for the whole batch, so that cutting it into chunks or leaving out
rows without an advantage does not change the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax import _checks

WeightFn = Callable[[jax.Array, jax.Array], jax.Array]
KlFn = Callable[[jax.Array, jax.Array], jax.Array]
ObjectiveFn = Callable[..., tuple[jax.Array, "LossSums"]]


def _num_used_rows(mask: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns the number of completions in the mean: those of used groups that have an unmasked token."""
    return jnp.maximum(jnp.sum(is_used[:, None] & jnp.any(mask, axis=2), dtype=jnp.float32), 1.0)


def token_mean(mask: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns equal weights for all tokens of the used groups, [B, G, T].

    Source: DAPO (arXiv 2503.14476), section 3.3.
    """
    weights = jnp.where(is_used[:, None, None], mask.astype(jnp.float32), 0.0)
    return weights / jnp.maximum(weights.sum(), 1.0)


def sequence_mean(mask: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns token weights that sum to the same for every completion, whatever its length, [B, G, T].

    Source: GRPO (arXiv 2402.03300), equation 3.
    """
    weights = jnp.where(is_used[:, None, None], mask.astype(jnp.float32), 0.0)
    lengths = jnp.maximum(weights.sum(axis=2, keepdims=True), 1.0)
    return weights / (lengths * _num_used_rows(mask, is_used))


def fixed_length(mask: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns a weight of 1 / (number of completions * T) for all tokens of the used groups, [B, G, T].

    Source: Dr. GRPO (arXiv 2503.20783), section 3.
    """
    weights = jnp.where(is_used[:, None, None], mask.astype(jnp.float32), 0.0)
    return weights / (_num_used_rows(mask, is_used) * mask.shape[2])


# (mask [B, G, T], is_used [B]) -> weights [B, G, T], 0 outside the mask and in groups that are not used.
LOSSES: dict[str, WeightFn] = {
    "token-mean": token_mean,
    "token-mean-signal": token_mean,
    "sequence-mean": sequence_mean,
    "fixed-length": fixed_length,
}

# Losses for which groups without any advantage are not used: they are not in the mean, and in no penalty either.
SIGNAL_LOSSES = frozenset({"token-mean-signal"})
TOKEN_MEANS = frozenset({"token-mean", "token-mean-signal"})


def k1(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """Returns log(p / ref): unbiased as a value, but its expected gradient is 0, so it does not act as a penalty.

    The gradient of log p, averaged over tokens drawn from p, is zero, so in a loss this term only adds noise. It is
    here for comparison; to keep a policy near the reference policy, use "k2" or "k3".
    """
    return log_probs - ref_log_probs


def k2(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """Returns log(p / ref)^2 / 2: biased as a value; its expected gradient is that of KL(p || ref)."""
    return (log_probs - ref_log_probs) ** 2 / 2


def k3(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """Returns ref / p - 1 - log(ref / p): unbiased and never negative; its expected gradient is that of KL(ref || p).

    Source: GRPO (arXiv 2402.03300), equation 4.
    """
    log_ratio = ref_log_probs - log_probs
    return jnp.expm1(log_ratio) - log_ratio


# (log_probs, ref_log_probs) -> estimates of KL(policy || reference policy) per token. The properties of their gradients
# hold for tokens sampled from the policy that is differentiated, so in a second epoch on a batch only approximately.
KL_ESTIMATORS: dict[str, KlFn] = {"k1": k1, "k2": k2, "k3": k3}


def clipped_policy_loss(
    log_probs: jax.Array, old_log_probs: jax.Array, advantages: jax.Array, clip_low: Any, clip_high: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) per token, and where clipping removed the gradient.

    Args:
      log_probs: log-probs of the sampled tokens under the policy, [..., T].
      old_log_probs: the same under the policy that sampled them, [..., T]; r = exp(log_probs - old_log_probs).
      advantages: advantage of each completion, [...].
      clip_low: width of the clip range below 1, in [0, 1].
      clip_high: width (>= 0) of the clip range above 1.

    Source: DAPO (arXiv 2503.14476), section 3.1: PPO's clip range with separate widths below and above 1.
    """
    advantages = advantages[..., None]
    log_ratio = log_probs - old_log_probs
    lowest = jnp.log1p(-jnp.asarray(clip_low, jnp.float32))
    highest = jnp.log1p(jnp.asarray(clip_high, jnp.float32))
    # Clipped in logs, before the exponential, so that a ratio that overflows does not give a NaN in the gradient.
    bound = jnp.where(advantages >= 0, highest, lowest)
    is_beyond = jnp.where(advantages >= 0, log_ratio > highest, log_ratio < lowest)
    ratio = jnp.exp(jnp.where(is_beyond, bound, log_ratio))
    return -ratio * advantages, is_beyond & (advantages != 0)


class LossSums(NamedTuple):
    """Sums over tokens, which can be added up over the chunks of a batch; float32 scalars.

    Attributes:
      loss: the objective that is minimised.
      policy_loss: its first term, the clipped policy loss.
      kl: sum of the KL estimates, unweighted.
      entropy: sum of the entropies of the token distributions, unweighted.
      num_tokens: number of tokens in `kl` and `entropy`.
      num_clipped: number of tokens whose gradient was removed by clipping.
      num_clippable: number of tokens with an advantage.
    """

    loss: jax.Array
    policy_loss: jax.Array
    kl: jax.Array
    entropy: jax.Array
    num_tokens: jax.Array
    num_clipped: jax.Array
    num_clippable: jax.Array


class _Terms(NamedTuple):
    """The arguments of `objective`, with the estimator of the KL divergence instead of its name."""

    clip_low: Any
    clip_high: Any
    kl_coef: Any
    kl: KlFn
    entropy_coef: Any


def is_constant_zero(coefficient: Any) -> bool:
    """Returns whether a term can be left out of the program: its coefficient is 0 and not traced."""
    return not _checks.is_traced(coefficient) and float(coefficient) == 0


def objective(*, clip_low: Any, clip_high: Any, kl_coef: Any, kl: str, entropy_coef: Any) -> ObjectiveFn:
    """Returns the objective as a function of log-probs and advantages.

    The function takes log_probs, entropies, old_log_probs, mask and weights, each [B, G, T], advantages [B, G], and
    ref_log_probs [B, G, T] or None. It returns the loss and `LossSums`. Entries outside the mask do not matter.

    Args:
      clip_low: width of the clip range below 1, in [0, 1].
      clip_high: width (>= 0) of the clip range above 1.
      kl_coef: weight (>= 0) of the KL penalty.
      kl: a name of `KL_ESTIMATORS`.
      entropy_coef: weight (>= 0) of the entropy bonus.

    Raises:
      ValueError: for an option out of range. The function raises it for a penalty without reference log-probs.
    """
    _checks.check_in_interval("clip_low", clip_low, 0.0, 1.0)
    _checks.check_in_interval("clip_high", clip_high, 0.0, float("inf"))
    _checks.check_in_interval("kl_coef", kl_coef, 0.0, float("inf"))
    _checks.check_in_interval("entropy_coef", entropy_coef, 0.0, float("inf"))
    _checks.check_choice("kl", kl, KL_ESTIMATORS)
    return functools.partial(_objective, _Terms(clip_low, clip_high, kl_coef, KL_ESTIMATORS[kl], entropy_coef))


def _objective(
    terms: _Terms,
    log_probs: jax.Array,
    entropies: jax.Array,
    old_log_probs: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    advantages: jax.Array,
    ref_log_probs: jax.Array | None,
) -> tuple[jax.Array, LossSums]:
    has_kl = not is_constant_zero(terms.kl_coef)
    if has_kl and ref_log_probs is None:
        raise ValueError("ref_log_probs: expected an array [B, G, T] as kl_coef is not 0, got None")
    inside = lambda values: jnp.where(mask, values.astype(jnp.float32), 0.0)
    log_probs, entropies, old_log_probs = inside(log_probs), inside(entropies), inside(old_log_probs)
    losses, is_clipped = clipped_policy_loss(log_probs, old_log_probs, advantages, terms.clip_low, terms.clip_high)
    policy_loss = jnp.sum(weights * losses)
    loss, estimates = policy_loss, jnp.zeros_like(log_probs)
    if has_kl and ref_log_probs is not None:
        estimates = terms.kl(log_probs, inside(ref_log_probs))
        loss = loss + terms.kl_coef * jnp.sum(weights * estimates)
    if not is_constant_zero(terms.entropy_coef):
        loss = loss - terms.entropy_coef * jnp.sum(weights * entropies)
    count = lambda condition: jnp.sum(condition & mask, dtype=jnp.float32)
    sums = LossSums(
        loss=loss,
        policy_loss=policy_loss,
        kl=jnp.sum(estimates),
        entropy=jnp.sum(entropies),
        num_tokens=count(mask),
        num_clipped=count(is_clipped),
        num_clippable=count(advantages[..., None] != 0),
    )
    return loss, lax.stop_gradient(sums)
