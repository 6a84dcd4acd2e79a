"""Uniform sampling without replacement within a batch: the baseline that predicts nothing."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from dps_jax.predictors.constant import constant
from dps_jax.selectors.composition import from_predictor
from dps_jax.types import Selector


def uniform(
    num_prompts: int, *, max_wait: int | None = None, quotas: Any = None, groups: Any = None, mesh: Mesh | None = None
) -> Selector:
    """Returns the selector of B prompts at random.

    Args:
      num_prompts: N.
      max_wait: rounds after which a prompt is tested again; for this and the next two see
        `selectors.acquisition.Acquisition`.
      quotas: least share of a batch for each group, [M].
      groups: of prompts, for the quotas, int [N].
      mesh: of one axis, to shard the prompts along.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    return from_predictor(
        num_prompts, constant(), is_blind=True, max_wait=max_wait, quotas=quotas, groups=groups, mesh=mesh
    )
