"""A queue of three tiers: last seen partially solved, never seen, last seen solved or unsolved."""

from __future__ import annotations

from typing import Unpack

from jax.sharding import Mesh

from dps_jax.predictors import _queue as queue_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def queue(
    num_prompts: int, *, group_size: int = 8, mesh: Mesh | None = None, **acquisition: Unpack[AcquisitionOptions]
) -> Selector:
    """Returns the selector of the first B of the queue; the order is that of `predictors.queue.rank_score`.

    Args:
      num_prompts: N.
      group_size: G.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.AcquisitionOptions`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    return from_predictor(
        num_prompts,
        queue_predictor.queue(group_size=group_size),
        queue_predictor.rank_score,
        is_ordinal=True,
        mesh=mesh,
        **acquisition,
    )
