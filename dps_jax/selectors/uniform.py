"""Uniform sampling without replacement within a batch: the baseline that predicts nothing."""

from __future__ import annotations

from jax.sharding import Mesh

from dps_jax.predictors.constant import constant
from dps_jax.selectors.composition import from_predictor
from dps_jax.types import Selector


def uniform(num_prompts: int, *, mesh: Mesh | None = None) -> Selector:
    """Returns the selector of B prompts at random.

    Args:
      num_prompts: N.
      mesh: of one axis, to shard the prompts along.

    Raises:
      ValueError: for a bad `num_prompts`.
    """
    return from_predictor(num_prompts, constant(), mesh=mesh)
