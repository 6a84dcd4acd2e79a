"""MoPPS: the prompts with an expected or drawn success rate nearest to one half."""

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
    r"""Returns the MoPPS selector, which picks the B prompts whose expected success rates are nearest to 1/2.

    B is the batch size. The belief about the success rate of each prompt is a Beta distribution with parameters $a$ and
    $b$. At a visit with m correct completions of G,

    $$a \leftarrow \lambda a + (1 - \lambda) a_0 + m, \qquad b \leftarrow \lambda b + (1 - \lambda) b_0 + G - m,$$

    and prompts are ranked by $-\left|\frac{a}{a + b} - \frac{1}{2}\right|$. Only the order of these scores
    is meaningful, so the options `temperature` and `expected_tokens` require another score, set with the option
    `value`, `hardness` or `thompson`. With `thompson=True`, the rate is drawn from the Beta distribution, as in the
    MoPPS paper.

    The method is a published baseline. It stores two numbers per prompt. Its hyperparameters are not learned from the
    data, the distribution of a prompt does not change while the prompt is idle, and neither groups nor features are
    used to predict. docs/predictors.md compares the predictions of all methods.

    Args:
      num_prompts: number of prompts, N.
      decay: share $\lambda$ of the learned counts that survives a visit, in [0, 1]. This parameter and the next two may
        be traced scalars.
      prior_successes: parameter $a_0$ of the Beta prior, positive.
      prior_failures: parameter $b_0$ of the Beta prior, positive.
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
      >>> selector = selectors.mopps(3)
      >>> visits = np.array([0, 1, 2]), np.array([0, 3, 8]), np.array([8, 8, 8])  # ids, successes, counts
      >>> state = jax.jit(selector.observe)(selector.init(jax.random.key(0)), *visits)
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 1)
      >>> ids.tolist()
      [1]

    Source: MoPPS (arXiv 2507.04632).
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
