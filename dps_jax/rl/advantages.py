"""How much better than expected was each completion? One function per estimator, all behind `ADVANTAGES`.

Rewards that are all equal give advantages of exactly zero: rounding in the mean must not turn "nothing to learn" into
a small gradient, nor a standard deviation of zero into a NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

AdvantageFn = Callable[[jax.Array, jax.Array], jax.Array]

# Added to standard deviations. A group of 8 binary rewards has none below 0.35.
_EPSILON = 1e-6


def _check_group_size(rewards: jax.Array, name: str, remedy: str) -> None:
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards: expected shape [B, G] with G >= 2 for advantage {name!r}, got {list(rewards.shape)}; {remedy}"
        )


def _centred(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards minus their group's mean, [B, G]; exactly 0 where a group is all equal or not used."""
    has_contrast = is_used & (rewards.max(axis=1) != rewards.min(axis=1))
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return jnp.where(has_contrast[:, None], centred, 0.0)


def grpo(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards standardised within their group: minus the mean, over the sample standard deviation.

    Args:
      rewards: float32 [B, G], G >= 2.
      is_used: False for groups that are padding, bool [B]; their advantage is 0.

    Raises:
      ValueError: if G < 2.

    Source: GRPO (arXiv 2402.03300), section 4.1.2, with G - 1 in the standard deviation.
    """
    _check_group_size(rewards, "grpo", "sample more completions per prompt, or use 'reinforce++'")
    centred = _centred(rewards, is_used)
    variance = jnp.sum(centred**2, axis=1, keepdims=True) / (rewards.shape[1] - 1)
    return centred / (jnp.sqrt(variance) + _EPSILON)


def dr_grpo(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards minus their group's mean; unlike `grpo`, easy and hard prompts are not weighted up.

    Args:
      rewards: float32 [B, G], G >= 2.
      is_used: False for groups that are padding, bool [B]; their advantage is 0.

    Raises:
      ValueError: if G < 2.

    Source: Dr. GRPO (arXiv 2503.20783), section 3. Its other half, dividing by a constant length, is the loss
      "fixed-length".
    """
    _check_group_size(rewards, "dr-grpo", "sample more completions per prompt, or use 'reinforce++'")
    return _centred(rewards, is_used)


def rloo(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards minus the mean of the others of their group.

    Args:
      rewards: float32 [B, G], G >= 2.
      is_used: False for groups that are padding, bool [B]; their advantage is 0.

    Raises:
      ValueError: if G < 2.

    Source: RLOO (arXiv 2402.14740), section 3.2.
    """
    _check_group_size(rewards, "rloo", "sample more completions per prompt, or use 'reinforce++'")
    # With G - 1 others, r - (sum - r) / (G - 1) = (r - mean) G / (G - 1).
    return _centred(rewards, is_used) * (rewards.shape[1] / (rewards.shape[1] - 1))


def reinforce_plus_plus(rewards: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns rewards standardised over all rows of the batch; no group baseline, so G may be 1.

    A group whose rewards are all equal still has an advantage, unless the whole batch is equal.

    Args:
      rewards: float32 [B, G].
      is_used: False for groups that are padding, bool [B]; their advantage is 0 and they are in no statistic.

    Source: REINFORCE++ (arXiv 2501.03262), section 3, without its token-level KL reward (see `kl_coef`).
    """
    is_row_used = jnp.broadcast_to(is_used[:, None], rewards.shape)
    num_rows = jnp.sum(is_row_used, dtype=rewards.dtype)
    largest = jnp.max(jnp.where(is_row_used, rewards, -jnp.inf))
    smallest = jnp.min(jnp.where(is_row_used, rewards, jnp.inf))
    mean = jnp.sum(jnp.where(is_row_used, rewards, 0.0)) / jnp.maximum(num_rows, 1.0)
    centred = jnp.where(is_row_used & (largest != smallest), rewards - mean, 0.0)
    variance = jnp.sum(centred**2) / jnp.maximum(num_rows - 1.0, 1.0)
    return centred / (jnp.sqrt(variance) + _EPSILON)


# (rewards [B, G], is_used [B]) -> advantages [B, G].
ADVANTAGES: dict[str, AdvantageFn] = {
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "rloo": rloo,
    "reinforce++": reinforce_plus_plus,
}
