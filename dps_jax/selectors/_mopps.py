"""MoPPS: the prompts whose success rate, expected or drawn, is nearest to one half."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax.predictors import _mopps as mopps_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def mopps(
    num_prompts: int,
    *,
    decay: Any = 0.5,
    prior_successes: Any = 1.0,
    prior_failures: Any = 1.0,
    group_size: int = 8,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    """Returns the selector of the B expected success rates nearest to 1/2.

    Args:
      num_prompts: N.
      decay: share of the learned counts that survives a visit, in [0, 1]. May be a traced scalar, as the next two.
      prior_successes: a0 of the beta prior, positive.
      prior_failures: b0 of the beta prior, positive.
      group_size: G.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.AcquisitionOptions`.

    Raises:
      ValueError: for an option out of range; the message names it.

    Source: MoPPS (arXiv 2507.04632), which ranks by a draw from the beta distribution: that is `thompson=True` here.
    """
    predictor = mopps_predictor.mopps(
        decay=decay, prior_successes=prior_successes, prior_failures=prior_failures, group_size=group_size
    )
    return from_predictor(
        num_prompts,
        predictor,
        mopps_predictor.nearness_to_half,
        is_ordinal=True,
        drawn_value="variance",
        mesh=mesh,
        **acquisition,
    )
