"""The outcomes of one round: a mask of padding, the positions to read and write, and sums over outcomes.

Under a mesh, every shard receives all outcomes and treats the outcomes of other shards as padding. Sums over prompts
are therefore computed over the outcomes of each shard, and then over shards. An id that belongs to no shard is not
counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class RoundVisits(NamedTuple):
    """Outcomes of one round, [P] each.

    Attributes:
      is_used: whether the outcome belongs to a prompt of this shard, bool; False for padding.
      positions: positions of the prompts, for reading, int32 in [0, N); 0 for padding.
      targets: positions of the prompts, for writing with mode="drop", int32; N for padding.
      successes: number of correct completions, int32; 0 for padding.
      counts: number of completions, int32; 0 for padding.
    """

    is_used: jax.Array
    positions: jax.Array
    targets: jax.Array
    successes: jax.Array
    counts: jax.Array

    @property
    def weights(self) -> jax.Array:
        """Returns 1 for outcomes that are used, else 0, float32 [P]."""
        return self.is_used.astype(jnp.float32)


def visits(num_prompts: int, ids: jax.Array, successes: jax.Array, counts: jax.Array) -> RoundVisits:
    """Returns the outcomes of a round as `RoundVisits`.

    Args:
      num_prompts: number of prompts, N.
      ids: ids of the prompts, int [P], distinct; those outside [0, N) are padding.
      successes: number of correct completions, int [P].
      counts: number of completions, int [P]; entries with a count of 0 are padding.
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
    """Returns sums over all prompts, given a pytree of sums over the prompts of one shard."""
    return sums if axis_name is None else lax.psum(sums, axis_name)
