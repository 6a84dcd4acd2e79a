"""Groups and features of prompts, which are known before the first visit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks


def numbered(group_ids: Any) -> tuple[np.ndarray | None, int]:
    """Returns group ids, int32 [N], with L for unknown groups, or None if there are no groups; and L.

    Args:
      group_ids: group of each prompt, int [N] in [-1, L); -1 for prompts whose group is not known. Or None.

    Raises:
      ValueError: for an id below -1.
    """
    if group_ids is None:
        return None, 0
    known = _checks.check_integer_array("group_ids", group_ids)
    if known.min(initial=-1) < -1:
        raise ValueError(f"group_ids: expected ids >= 0, or -1 for an unknown group, got {known.min()}")
    num_groups = int(known.max(initial=-1)) + 1
    return np.where(known < 0, num_groups, known).astype(np.int32), num_groups


def standardised(features: Any) -> np.ndarray:
    """Returns features [N, D] with mean 0 and variance 1 over prompts, as float32 [D, N]; constant features become 0.

    For None, the result is an empty array of shape [0, 1].

    Raises:
      ValueError: for a wrong shape or a number that is not finite.
    """
    if features is None:
        return np.zeros((0, 1), np.float32)
    array = _checks.check_features(features)
    scale = array.std(axis=0)
    return ((array - array.mean(axis=0)) / np.where(scale > 0, scale, 1.0)).T.astype(np.float32)


def of_prompts(table: Any, num_prompts: int, first_id: Any = 0) -> jax.Array:
    """Returns the entries of a table for the prompts first_id, first_id + 1, ..., [..., num_prompts].

    Args:
      table: entries of all N prompts, [..., N]; ids past its end get its last entry.
      num_prompts: number of prompts, for example of one shard.
      first_id: id of the first prompt, an int or an int32 scalar, which may be traced.
    """
    ids = first_id + jnp.arange(num_prompts, dtype=jnp.int32)
    return jnp.asarray(table)[..., jnp.minimum(ids, table.shape[-1] - 1)]
