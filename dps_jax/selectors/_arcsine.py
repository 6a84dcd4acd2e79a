"""The most probably partially solved prompts, by a Kalman filter on the angle arcsin(sqrt(success rate))."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax.predictors import _arcsine as arcsine_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def arcsine(
    num_prompts: int,
    *,
    decay: Any = 0.99,
    group_size: int = 8,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    """Returns the selector of the top B by P(0 < m < G), with drift and noise learned from all prompts.

    Args:
      num_prompts: N.
      decay: share that survives a round, in [0, 1], of what drifts, noise and population were learned from. May be a
        traced scalar.
      group_size: G.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.AcquisitionOptions`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    predictor = arcsine_predictor.arcsine(decay=decay, group_size=group_size)
    return from_predictor(num_prompts, predictor, mesh=mesh, **acquisition)
