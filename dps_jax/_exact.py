"""Products of matrices in full float32.

By default, XLA multiplies float32 matrices in TF32 on GPUs and in bfloat16 on TPUs, with about three significant
digits, so the probabilities of the outcomes of a prompt would not sum to 1. The products of this library are small, so
full precision has no noticeable cost.
"""

import functools

import jax.numpy as jnp
from jax import lax

matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
tensordot = functools.partial(jnp.tensordot, precision=lax.Precision.HIGHEST)
