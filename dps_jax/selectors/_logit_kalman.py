"""The prompts that a Kalman filter on the logit of their success rate takes to be most probably partially solved."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax.predictors import _logit_kalman as logit_kalman_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def logit_kalman(
    num_prompts: int,
    *,
    process_noise: Any = 0.05,
    prior_mean: Any = 0.0,
    prior_variance: Any = 4.0,
    group_size: int = 8,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    """Returns the selector of the top B by P(0 < m < G).

    Args:
      num_prompts: N.
      process_noise: variance that a round adds to a logit, >= 0. May be a traced scalar, as the next two.
      prior_mean: of the logits of prompts never seen.
      prior_variance: of these, positive.
      group_size: G.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.AcquisitionOptions`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    predictor = logit_kalman_predictor.logit_kalman(
        process_noise=process_noise, prior_mean=prior_mean, prior_variance=prior_variance, group_size=group_size
    )
    return from_predictor(num_prompts, predictor, mesh=mesh, **acquisition)
