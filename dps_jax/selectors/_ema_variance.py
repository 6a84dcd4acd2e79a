"""Moving averages per prompt: the most probably partially solved, or those of the largest average reward variance."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.predictors import _ema_variance as ema_variance_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def ema_variance(
    num_prompts: int,
    *,
    decay: Any = 0.7,
    rank_by: str = "p_informative",
    group_size: int = 8,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    """Returns the selector of the top B by moving averages.

    Args:
      num_prompts: N.
      decay: share of an average that survives a visit, in [0, 1]. May be a traced scalar.
      rank_by: "p_informative", which the average success rate predicts, or "variance", the average reward variance.
      group_size: G.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.AcquisitionOptions`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    predictor = ema_variance_predictor.ema_variance(decay=decay, group_size=group_size)
    scores = {
        "p_informative": lambda state: predictor.predict(state).p_informative,
        "variance": ema_variance_predictor.average_variance,
    }
    _checks.check_choice("rank_by", rank_by, scores)
    return from_predictor(num_prompts, predictor, scores[rank_by], mesh=mesh, **acquisition)
