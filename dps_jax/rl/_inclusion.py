"""Weights of the completion groups of a batch that make up for how their prompts were picked.

A selector that prefers some prompts makes the gradient one of the prompts it prefers. Where it says with what
probability p_i each pick was made, groups that count 1 / p_i give back the average over all N prompts. Both functions
return factors beside 1: picks of one probability, such as uniform ones, have the factor 1, and are as without weights.

They weigh whole groups, penalties included. The average over all prompts is that of the group's own objectives, so what
is said holds of the gradient of a batch at the policy that sampled it, before the clipping of its norm, and with
advantages that look at no other group; "reinforce++" takes mean and deviation of the batch as it was picked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.rl._losses import TOKEN_MEANS

InclusionWeightFn = Callable[[jax.Array, jax.Array, int | None], jax.Array]


def _over(numerator: Any, inclusion_probs: jax.Array, is_used: jax.Array) -> jax.Array:
    """Returns numerator / p_i, and 0 for groups that are not used, whose p_i may be anything."""
    return jnp.where(is_used, numerator / jnp.where(is_used, inclusion_probs.astype(jnp.float32), 1.0), 0.0)


def unbiased(inclusion_probs: jax.Array, sizes: jax.Array, num_prompts: int | None) -> jax.Array:
    """Returns B / (N p_i), [B]: the gradient's expectation is exactly that of all N prompts together.

    Nothing bounds the weights: one pick of small probability can outweigh the rest of the batch by far. The lower the
    temperature of the selector, the more often that happens.

    Args:
      inclusion_probs: p_i, with which each prompt was picked out of all N, [B].
      sizes: what each group counts in the loss, [B]; 0 for groups that are not used.
      num_prompts: N.

    Source: Horvitz and Thompson, J. Am. Stat. Assoc. 47 (1952), 663; for top-B of perturbed scores Kool et al., arXiv
      1903.06059, appendix on importance weights.
    """
    assert num_prompts is not None
    is_used = sizes > 0
    return _over(jnp.sum(is_used, dtype=jnp.float32) / num_prompts, inclusion_probs, is_used)


def self_normalised(inclusion_probs: jax.Array, sizes: jax.Array, num_prompts: int | None) -> jax.Array:
    """Returns 1 / p_i over the batch's mean of 1 / p_i, [B]: biased in a small batch, consistent, and bounded.

    The mean is one over what the loss divides by: tokens for "token-mean", for which this is the ratio of two unbiased
    sums, and else groups. So the loss keeps its scale. The bias goes as 1 / B, and is towards the gradient without
    weights: a batch of one group has the weight 1. No group counts more than the whole batch does without weights.

    Args:
      inclusion_probs: p_i up to a factor, [B].
      sizes: what each group counts in that mean, [B]; 0 for groups that are not used.
      num_prompts: not needed.

    Source: Hajek's ratio, in Foundations of Statistical Inference (1971), 236.
    """
    del num_prompts
    is_used = sizes > 0
    # Relative to the largest, so that nothing overflows, and equal probabilities give exactly 1.
    smallest = jnp.min(jnp.where(is_used, inclusion_probs.astype(jnp.float32), 1.0))
    relative = _over(smallest, inclusion_probs, is_used)
    total = jnp.sum(sizes, dtype=jnp.float32)
    return relative * (total / jnp.maximum(jnp.sum(sizes * relative), 1e-30))


# (inclusion_probs [B], sizes [B], N or None) -> weights [B], 0 where the size is 0.
INCLUSION_WEIGHTS: dict[str, InclusionWeightFn] = {"self-normalised": self_normalised, "unbiased": unbiased}


def check_inclusion_weights(option: str, name: str, loss: str, advantage: str) -> None:
    """Raises ValueError for unknown weights, and for "unbiased" ones where there are none.

    Args:
      option: what messages begin with.
      name: of the weights.
      loss: a name of `losses.LOSSES`.
      advantage: a name of `advantages.ADVANTAGES`.
    """
    _checks.check_choice(option, name, INCLUSION_WEIGHTS)
    if name == "unbiased" and loss in TOKEN_MEANS:
        raise ValueError(
            f"{option}: expected 'self-normalised' with loss {loss!r}, got 'unbiased'; a mean over tokens is a "
            "ratio of two sums, which no weights make unbiased. Or use loss 'sequence-mean' or 'fixed-length'"
        )
    if name == "unbiased" and advantage == "reinforce++":
        raise ValueError(
            f"{option}: expected 'self-normalised' with advantage 'reinforce++', got 'unbiased'; its mean and "
            "deviation are those of the batch as it was picked. Or use an advantage with a group baseline"
        )
