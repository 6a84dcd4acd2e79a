"""The outcomes of one round as a predictor uses them: which count, where they are read and written, and sums of them.

Under a mesh every shard is given all outcomes, and drops those of other shards like padding. So what is pooled over
prompts is summed over what a shard kept, and then over shards: an id that no shard owns is counted nowhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class RoundVisits(NamedTuple):
    """Outcomes of one round, [P] each.

    Attributes:
      is_used: False for padding and prompts of other shards.
      positions: to read at, int32 in [0, N); 0 where not used.
      targets: to write at with mode="drop", int32; N where not used.
      successes: int32; 0 where not used.
      counts: int32; 0 where not used.
    """

    is_used: jax.Array
    positions: jax.Array
    targets: jax.Array
    successes: jax.Array
    counts: jax.Array

    @property
    def weights(self) -> jax.Array:
        """Returns 1 for what is used, else 0, float32 [P]."""
        return self.is_used.astype(jnp.float32)


def visits(num_prompts: int, ids: jax.Array, successes: jax.Array, counts: jax.Array) -> RoundVisits:
    """Returns the outcomes to use.

    Args:
      num_prompts: N.
      ids: int [P], distinct; outside [0, N) is padding.
      successes: int [P].
      counts: int [P]; 0 is padding.
    """
    ids, successes, counts = (jnp.asarray(array).astype(jnp.int32) for array in (ids, successes, counts))
    is_used = (ids >= 0) & (ids < num_prompts) & (counts > 0)
    return RoundVisits(
        is_used=is_used,
        positions=jnp.where(is_used, ids, 0),
        targets=jnp.where(is_used, ids, num_prompts),
        successes=jnp.where(is_used, successes, 0),
        counts=jnp.where(is_used, counts, 0),
    )


def pooled(sums: Any, axis_name: str | None) -> Any:
    """Returns sums over the prompts of one shard, any pytree, as sums over all prompts."""
    return sums if axis_name is None else lax.psum(sums, axis_name)
