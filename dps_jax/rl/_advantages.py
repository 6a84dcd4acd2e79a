"""Advantage estimators: how much better than its baseline each completion is. `ADVANTAGES` lists them by name.

Rewards that are equal up to rounding give advantages of exactly 0, so that rounding errors cause neither a gradient nor
a NaN in a group without a signal. A reward of NaN marks a completion without a score: its advantage is 0, and it is
left out of all means, deviations and counts.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

AdvantageFn = Callable[[jax.Array, jax.Array], jax.Array]

# Added to standard deviations. It is small: 8 binary rewards that are not all equal have a deviation of at least 0.35.
_EPSILON = 1e-6
# Rewards that differ by less than this share of the largest count as equal: eight times the epsilon of float32.
_ROUNDING = 8 * 2.0**-23


def _check_group_size(rewards: jax.Array, name: str, remedy: str) -> None:
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards: expected shape [B, G] with G >= 2 for advantage {name!r}, got {list(rewards.shape)}; {remedy}"
        )


def _has_contrast(rewards: jax.Array, is_there: jax.Array, axis: int | None) -> jax.Array:
    """Returns whether the rewards that are not missing differ by more than rounding, with `axis` kept.

    An infinite reward counts as different, so that it leads to a step that is not finite, which is reported.
    """
    options = {"axis": axis, "keepdims": True, "where": is_there}
    largest = jnp.max(rewards, initial=-jnp.inf, **options)
    smallest = jnp.min(rewards, initial=jnp.inf, **options)
    difference = largest - smallest
    is_more = difference > _ROUNDING * jnp.maximum(jnp.abs(largest), jnp.abs(smallest))
    return is_more | ~jnp.isfinite(difference)


def _centred(rewards: jax.Array, is_used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns rewards minus the mean of their group, [B, G], and the number of rewards of each group, [B, 1].

    The first is exactly 0 for a NaN, and for all rewards of a group that is not used, has fewer than two rewards, or
    has equal rewards only.
    """
    is_there = is_used[:, None] & ~jnp.isnan(rewards)
    counts = jnp.sum(is_there, axis=1, keepdims=True, dtype=rewards.dtype)
    safe = jnp.where(is_there, rewards, 0.0)
    mean = jnp.sum(safe, axis=1, keepdims=True) / jnp.maximum(counts, 1.0)
    has_contrast = (counts > 1.5) & _has_contrast(safe, is_there, 1)
    return jnp.where(is_there & has_contrast, safe - mean, 0.0), counts


def grpo(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards standardised within their group: minus the mean, divided by the sample standard deviation.

    Args:
      rewards: rewards, float32 [B, G], G >= 2; NaN for a completion without a score.
      is_used: False for groups that are padding, bool [B]; their advantage is 0.

    Raises:
      ValueError: if G < 2.

    Source: GRPO (arXiv 2402.03300), section 4.1.2, with G - 1 in the standard deviation.
    """
    _check_group_size(rewards, "grpo", "sample more completions per prompt, or use 'reinforce++'")
    centred, counts = _centred(rewards, is_used)
    variance = jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(counts - 1.0, 1.0)
    return centred / (jnp.sqrt(variance) + _EPSILON)


def dr_grpo(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards minus the mean of their group; unlike `grpo`, this gives easy and hard prompts no extra weight.

    Args:
      rewards: rewards, float32 [B, G], G >= 2; NaN for a completion without a score.
      is_used: False for groups that are padding, bool [B]; their advantage is 0.

    Raises:
      ValueError: if G < 2.

    Source: Dr. GRPO (arXiv 2503.20783), section 3. The division by a
      constant length, which the paper also proposes, is the loss "fixed-length".
    """
    _check_group_size(rewards, "dr-grpo", "sample more completions per prompt, or use 'reinforce++'")
    return _centred(rewards, is_used)[0]


def rloo(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards minus the mean of the other rewards of their group.

    Args:
      rewards: rewards, float32 [B, G], G >= 2; NaN for a completion without a score.
      is_used: False for groups that are padding, bool [B]; their advantage is 0.

    Raises:
      ValueError: if G < 2.

    Source: RLOO (arXiv 2402.14740), section 3.2.
    """
    _check_group_size(rewards, "rloo", "sample more completions per prompt, or use 'reinforce++'")
    # With G - 1 others, r - (sum - r) / (G - 1) = (r - mean) G / (G - 1).
    centred, counts = _centred(rewards, is_used)
    return centred * (counts / jnp.maximum(counts - 1.0, 1.0))


def reinforce_plus_plus(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards standardised over the whole batch; there is no group baseline, so G may be 1.

    A group whose rewards are all equal still has an advantage, unless all rewards of the batch are equal.

    Args:
      rewards: rewards, float32 [B, G]; NaN for a completion without a score.
      is_used: False for groups that are padding, bool [B]; their advantage is 0 and they are in no statistic.

    Source: REINFORCE++ (arXiv 2501.03262), section 3, without its token-level KL reward (see `kl_coef`).
    """
    is_there = is_used[:, None] & ~jnp.isnan(rewards)
    num_rows = jnp.sum(is_there, dtype=rewards.dtype)
    safe = jnp.where(is_there, rewards, 0.0)
    mean = jnp.sum(safe) / jnp.maximum(num_rows, 1.0)
    centred = jnp.where(is_there & _has_contrast(safe, is_there, None), safe - mean, 0.0)
    variance = jnp.sum(centred**2) / jnp.maximum(num_rows - 1.0, 1.0)
    return centred / (jnp.sqrt(variance) + _EPSILON)


# (rewards [B, G], is_used [B]) -> advantages [B, G].
ADVANTAGES: dict[str, AdvantageFn] = {
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "rloo": rloo,
    "reinforce++": reinforce_plus_plus,
}
