"""The prompts with the largest P(0 < m < G) under a Kalman filter on the angle arcsin(sqrt(success rate))."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax.predictors import _arcsine as arcsine_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def arcsine(
    num_prompts: int,
    *,
    decay: Any = 0.99,
    group_size: int = 8,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    r"""Returns the selector that picks the B prompts with the largest P(0 < m < G) under a filter on an arcsine scale.

    B is the batch size, and m of the G completions of a prompt are correct. The angle
    $\phi = \arcsin\sqrt{\text{rate}}$ of each prompt has a normal distribution. On this scale, binomial noise has about
    the same variance for all rates. Between rounds the angle changes by

    $$\phi_{t+1} \sim \mathcal{N}(\phi_t + d,\; s^2),$$

    with one drift $d$ and one variance $s^2$ after a visit, and others after an idle round. Drifts, variances and the
    distribution for prompts without visits are learned from all prompts.

    The method is a baseline that stores three numbers per prompt. Unlike `logit_kalman` and `mopps`, it learns how fast
    success rates change. It uses neither groups nor features to predict, and therefore cannot choose among prompts
    without visits. docs/predictors.md compares the predictions of all methods.

    Args:
      num_prompts: number of prompts, N.
      decay: share of the statistics about drifts, variances and first visits that survives a round, in [0, 1]; may be a
        traced scalar.
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
      >>> selector = selectors.arcsine(3)
      >>> visits = np.array([0, 1, 2]), np.array([0, 3, 8]), np.array([8, 8, 8])  # ids, successes, counts
      >>> state = jax.jit(selector.observe)(selector.init(jax.random.key(0)), *visits)
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 1)
      >>> ids.tolist()
      [1]
    """
    predictor = arcsine_predictor.arcsine(decay=decay, group_size=group_size)
    return from_predictor(num_prompts, predictor, mesh=mesh, **acquisition)
