"""Products of matrices in full float32.

XLA multiplies float32 matrices in TF32 on GPUs and in bfloat16 on TPUs unless it is asked not to: with three digits,
the probabilities of a prompt's outcomes no longer sum to 1. These products are small, and what they cost is not felt.
"""

import functools

import jax.numpy as jnp
from jax import lax

matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
tensordot = functools.partial(jnp.tensordot, precision=lax.Precision.HIGHEST)
