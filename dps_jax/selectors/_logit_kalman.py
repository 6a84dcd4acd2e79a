"""The prompts with the largest P(0 < m < G) under a Kalman filter on the logit of the success rate."""

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
    r"""Returns the selector that picks the B prompts with the largest P(0 < m < G) under a filter of their logits.

    B is the batch size, and m of the G completions of a prompt are correct. The logit of each prompt's success rate
    follows a random walk with normal steps. A Kalman filter treats a visit as a normal observation of the logit, with
    value and variance

    $$\log\frac{m + 1/2}{G - m + 1/2}, \qquad \frac{1}{m + 1/2} + \frac{1}{G - m + 1/2}.$$

    The method is a simple baseline that learns no parameters from all prompts: the process noise has to be set to fit
    the speed of learning, whereas `arcsine` learns this speed. docs/predictors.md compares the predictions of the two
    methods.

    Args:
      num_prompts: number of prompts, N.
      process_noise: variance (>= 0) that a round adds to a logit. This parameter and the next two may be traced
        scalars.
      prior_mean: mean of the logit of prompts without visits.
      prior_variance: variance of the logit of prompts without visits, positive.
      group_size: number of completions per prompt, G.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **acquisition: options `value`, `hardness`, `thompson`, `expected_tokens`, `temperature`, `temperature_pool`,
        `explore`, `max_wait`, `quotas` and `groups`; `AcquisitionOptions` describes them.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.logit_kalman(3)
      >>> visits = np.array([0, 1, 2]), np.array([0, 3, 8]), np.array([8, 8, 8])  # ids, successes, counts
      >>> state = jax.jit(selector.observe)(selector.init(jax.random.key(0)), *visits)
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 1)
      >>> ids.tolist()
      [1]
    """
    predictor = logit_kalman_predictor.logit_kalman(
        process_noise=process_noise, prior_mean=prior_mean, prior_variance=prior_variance, group_size=group_size
    )
    return from_predictor(num_prompts, predictor, mesh=mesh, **acquisition)
