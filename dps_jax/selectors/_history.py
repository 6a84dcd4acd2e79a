"""History resampling (HR): uniform among the prompts that were not seen fully solved in this epoch."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.predictors import _history as history_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._ranking import MAX_NUM_PROMPTS
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def history(
    num_prompts: int,
    *,
    epoch_size: int | None = None,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    """Returns the selector that drops solved prompts until the epoch ends, and picks the others at random.

    Solved prompts are handed out only where fewer than B others are left.

    Args:
      num_prompts: N.
      epoch_size: observed groups in an epoch; None is N.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.AcquisitionOptions`.

    Raises:
      ValueError: for a bad `num_prompts` or `epoch_size`.

    Source: see `predictors.history`.
    """
    num_prompts = _checks.check_int("num_prompts", num_prompts, at_least=1, at_most=MAX_NUM_PROMPTS)
    epoch_size = num_prompts if epoch_size is None else epoch_size
    _checks.check_int("epoch_size", epoch_size, at_least=1, at_most=2**30)
    predictor = history_predictor.history(epoch_size)
    return from_predictor(
        num_prompts,
        predictor,
        lambda state: -state.is_solved.astype(jnp.float32),
        is_ordinal=True,
        mesh=mesh,
        **acquisition,
    )
