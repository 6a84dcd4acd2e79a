"""The prompts whose last outcome was most often followed by a partially solved group."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax.predictors import _last_state as last_state_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def last_state(
    num_prompts: int,
    *,
    prior_count: Any = 0.5,
    group_size: int = 8,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    r"""Returns the selector that picks the B prompts with the largest learned P(0 < m < G | last outcome).

    B is the batch size, and m of the G completions of a prompt are correct. One table counts, over all prompts, how
    often each outcome followed each previous outcome. With $n_{ij}$ visits of outcome $j$ after outcome $i$, and a
    pseudo-count $c$,

    $$P(m = j \mid \text{last} = i) = \frac{n_{ij} + c}{\sum_k (n_{ik} + c)}.$$

    Prompts without visits have a row of their own.

    The method is a baseline that needs one byte per prompt and learns from all prompts, but uses neither earlier visits
    nor the time since the last visit. docs/predictors.md compares the predictions of all methods.

    Args:
      num_prompts: number of prompts, N.
      prior_count: pseudo-count $c$ > 0 of every pair of outcomes; may be a traced scalar.
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
      >>> selector = selectors.last_state(4)
      >>> visits = np.array([0, 1, 2]), np.array([0, 3, 8]), np.array([8, 8, 8])  # ids, successes, counts
      >>> state = jax.jit(selector.observe)(selector.init(jax.random.key(0)), *visits)
      >>> prediction = jax.jit(selector.predict)(state)
      >>> print(np.asarray(prediction.p_informative).round(2))  # prompts 0 to 2: pseudo-counts alone; 3: first visits
      [0.78 0.78 0.78 0.6 ]
    """
    predictor = last_state_predictor.last_state(prior_count=prior_count, group_size=group_size)
    return from_predictor(num_prompts, predictor, mesh=mesh, **acquisition)
