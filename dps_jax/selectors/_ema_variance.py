"""The prompts with the best moving average of their success rate or of their reward variance."""

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
    r"""Returns the selector that picks the B prompts with the best moving averages of their outcomes.

    B is the batch size, and m of the G completions of a prompt are correct. Each prompt has a moving average of its
    success rate and of its reward variance, updated at every visit,

    $$r \leftarrow \lambda r + (1 - \lambda)\, m / G, \qquad
    v \leftarrow \lambda v + (1 - \lambda)\, \tfrac{m}{G} \left(1 - \tfrac{m}{G}\right).$$

    Prompts are ranked by the P(0 < m < G) that follows from $r$, mixed with the distribution over all prompts, or by
    $v$. Prompts without visits are ranked by the averages of all outcomes so far.

    The method is a simple baseline. A moving average contains no measure of uncertainty, and does not change while the
    prompt is idle. docs/predictors.md compares the predictions of all methods.

    Args:
      num_prompts: number of prompts, N.
      decay: share $\lambda$ of an average that survives a visit, in [0, 1]; may be a traced scalar.
      rank_by: "p_informative" for P(0 < m < G) under the average success rate, or "variance" for the average reward
        variance.
      group_size: number of completions per prompt, G.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **acquisition: options `value`, `hardness`, `expected_tokens`, `temperature`, `temperature_pool`, `explore`,
        `max_wait`, `quotas` and `groups`; `AcquisitionOptions` describes them.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.ema_variance(3)
      >>> visits = np.array([0, 1, 2]), np.array([0, 3, 8]), np.array([8, 8, 8])  # ids, successes, counts
      >>> state = jax.jit(selector.observe)(selector.init(jax.random.key(0)), *visits)
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 1)
      >>> ids.tolist()
      [1]
    """
    predictor = ema_variance_predictor.ema_variance(decay=decay, group_size=group_size)
    scores = {
        "p_informative": lambda state: predictor.predict(state).p_informative,
        "variance": ema_variance_predictor.average_variance,
    }
    _checks.check_choice("rank_by", rank_by, scores)
    return from_predictor(num_prompts, predictor, scores[rank_by], mesh=mesh, **acquisition)
