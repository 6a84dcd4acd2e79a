"""The prompts with the largest P(0 < m < G) under small networks on features, groups and past visits."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.predictors import _shared_net as shared_net_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import WithoutGroups
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def shared_net(
    num_prompts: int,
    *,
    features: Any = None,
    groups: Any = None,
    group_size: int = 8,
    seed: int = 0,
    mesh: Mesh | None = None,
    **acquisition: Unpack[WithoutGroups],
) -> Selector:
    r"""Returns the selector that picks prompts with the largest P(0 < m < G) under networks trained on all prompts.

    Here m of the G completions of a prompt are correct. Small networks map the features, the group and a summary of the
    past visits of a prompt to weights $w$ over success rates $\theta_k$ on a grid. The networks are trained online on
    the outcomes of every round. The score is

    $$P(0 < m < G) = \sum_k w_k \left(1 - \theta_k^G - (1 - \theta_k)^G\right).$$

    Where features are predictive and visits are few, the predictions are nearly as good as those of `binomial_hmm`, and
    the method needs less memory per prompt. Where the history of a prompt matters, the filter of `binomial_hmm` uses
    this history better than small networks do; see docs/predictors.md.

    Args:
      num_prompts: number of prompts, N.
      features: features of the prompts, finite, [N, D], or None.
      groups: group of each prompt, int [N] in [-1, L); -1 for prompts whose group is not known. None means that no
        group is known. The option `quotas` refers to the same groups.
      group_size: number of completions per prompt, G.
      seed: seed of the initial parameters of the networks and of the samples from their replay buffer.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **acquisition: options `value`, `hardness`, `expected_tokens`, `temperature`, `temperature_pool`, `explore`,
        `max_wait` and `quotas`; `AcquisitionOptions` describes them.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> lengths = np.array([[12.0], [15.0], [11.0], [30.0], [28.0]])  # one feature of five prompts
      >>> selector = selectors.shared_net(5, features=lengths)
      >>> state = selector.init(jax.random.key(0))
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 2)
      >>> info.scores.shape
      (2,)

    Source: in the spirit of GPS (arXiv 2602.01970), which predicts the outcomes of all prompts with one shared
    model.
    """
    if groups is not None:
        _checks.check_groups(groups, num_prompts)
    if features is not None:
        _checks.check_features(features, num_prompts)
    predictor = shared_net_predictor.shared_net(features=features, group_ids=groups, group_size=group_size, seed=seed)
    return from_predictor(num_prompts, predictor, groups=groups, mesh=mesh, **acquisition)
