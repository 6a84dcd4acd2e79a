"""The prompts whose last outcome was most often followed by a partially solved group."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax.predictors import _last_state as last_state_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def last_state(
    num_prompts: int,
    *,
    prior_count: Any = 0.5,
    group_size: int = 8,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    """Returns the selector of the top B by P(0 < m < G | last outcome), as learned from all prompts.

    Args:
      num_prompts: N.
      prior_count: of every pair of outcomes, > 0. May be a traced scalar.
      group_size: G.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.AcquisitionOptions`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    predictor = last_state_predictor.last_state(prior_count=prior_count, group_size=group_size)
    return from_predictor(num_prompts, predictor, mesh=mesh, **acquisition)
