"""What a model computes in, as against what its weights are kept in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

COMPUTE_DTYPES = ("float32", "bfloat16")


def for_computing(params: Any, dtype: str) -> Any:
    """Returns parameters in the type that a model computes in; a gradient with respect to `params` goes through.

    Args:
      params: of a model, float32.
      dtype: one of `COMPUTE_DTYPES`.
    """
    if dtype == "float32":
        return params
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)
