"""The dtype that a model computes in, which may differ from the dtype of its stored weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

COMPUTE_DTYPES = ("float32", "bfloat16")


def for_computing(params: Any, dtype: str) -> Any:
    """Returns the parameters cast to the dtype that the model computes in; gradients flow through the cast.

    Keep float32 parameters for the optimiser, and call this inside the function that is differentiated.

    Args:
      params: parameters of a model, a pytree of float32 arrays.
      dtype: "float32" or "bfloat16".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import models
      >>> def loss(params):
      ...     low = models.for_computing(params, "bfloat16")
      ...     return jnp.sum(low["w"] ** 2).astype(jnp.float32)
      >>> jax.grad(loss)({"w": jnp.ones(2)})["w"].dtype
      dtype('float32')
    """
    if dtype == "float32":
        return params
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)
