"""A queue of three tiers: last seen partially solved, never seen, last seen solved or unsolved."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from dps_jax.predictors import queue as queue_predictor
from dps_jax.selectors.composition import from_predictor
from dps_jax.types import Selector


def queue(num_prompts: int, *, group_size: int = 8, mesh: Mesh | None = None, **acquisition: Any) -> Selector:
    """Returns the selector of the first B of the queue; the order is that of `predictors.queue.rank_score`.

    Args:
      num_prompts: N.
      group_size: G.
      mesh: of one axis, to shard the prompts along.
      **acquisition: value, thompson, expected_tokens, temperature, temperature_pool, explore, max_wait, quotas, groups;
        see `selectors.acquisition.Acquisition`.

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
