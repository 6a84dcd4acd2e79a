"""Importance weights of completion groups, which correct for the probability with which their prompts were picked.

A selector that prefers some prompts biases the gradient towards them. If the probability p_i of each pick is known,
weights proportional to 1 / p_i recover the average over all N prompts. If all picks have the same probability, as with
uniform selection, all weights are 1.

A weight multiplies the whole objective of a group, penalties included, so the weights recover the average objective of
the groups. This holds for the gradient at the policy that sampled the batch, before its norm is clipped, and for
advantages that depend on their group alone; "reinforce++" uses the mean and deviation of the selected batch.
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
    """Returns B / (N p_i), [B]: the expectation of the gradient is exactly the mean gradient of all N prompts.

    The weights are not bounded: one pick with a small probability can far outweigh the rest of the batch. This happens
    more often at a lower temperature of the selector.

    Args:
      inclusion_probs: p_i, probability with which each prompt was picked out of all N, [B].
      sizes: weight of each group in the loss, [B]; 0 for groups that are not used.
      num_prompts: N.

    Source: Horvitz and Thompson, J. Am. Stat. Assoc. 47 (1952), 663; for top-B of perturbed scores Kool et al., arXiv
      1903.06059, appendix on importance weights.
    """
    assert num_prompts is not None
    is_used = sizes > 0
    return _over(jnp.sum(is_used, dtype=jnp.float32) / num_prompts, inclusion_probs, is_used)


def self_normalised(inclusion_probs: jax.Array, sizes: jax.Array, num_prompts: int | None) -> jax.Array:
    """Returns 1 / p_i divided by the batch's mean of 1 / p_i, [B]: biased in a small batch, consistent, and bounded.

    The mean is taken over the units that the loss averages over, tokens for "token-mean" and groups otherwise, so the
    loss keeps its scale; for "token-mean" it becomes the ratio of two unbiased sums. The bias is of order 1 / B and
    towards the gradient without weights: with B = 1, the weight is 1. No group counts more than a whole batch without
    weights.

    Args:
      inclusion_probs: p_i up to a factor, [B].
      sizes: weight of each group in that mean, [B]; 0 for groups that are not used.
      num_prompts: not used.

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
    """Raises ValueError for unknown weights, and for "unbiased" with a loss or advantage that it does not exist for.

    Args:
      option: name of the option, which messages begin with.
      name: name of the weights.
      loss: a name of `LOSSES`.
      advantage: a name of `ADVANTAGES`.
    """
    _checks.check_choice(option, name, INCLUSION_WEIGHTS)
    if name == "unbiased" and loss in TOKEN_MEANS:
        raise ValueError(
            f"{option}: expected 'self-normalised' with loss {loss!r}, got 'unbiased'; a mean over tokens is a "
            "ratio of two sums, which no weights make unbiased. Or use loss 'sequence-mean' or 'fixed-length'"
        )
    if name == "unbiased" and advantage == "reinforce++":
        raise ValueError(
            f"{option}: expected 'self-normalised' with advantage 'reinforce++', got 'unbiased'; it depends on "
            "the mean and deviation of the selected batch. Or use an advantage with a group baseline"
        )
