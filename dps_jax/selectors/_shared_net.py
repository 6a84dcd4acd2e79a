"""The prompts that small networks on their features take to be most probably partially solved."""

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
    """Returns the selector of the top B by P(0 < m < G), as a network learns it from all prompts.

    Args:
      num_prompts: N.
      features: finite, [N, D], or None.
      groups: int [N] in [-1, L), the group of each prompt; -1 where it is not known, None where none is.
      group_size: G.
      seed: of the first parameters of the networks.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.WithoutGroups`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    if groups is not None:
        _checks.check_groups(groups, num_prompts)
    if features is not None:
        _checks.check_features(features, num_prompts)
    predictor = shared_net_predictor.shared_net(features=features, group_ids=groups, group_size=group_size, seed=seed)
    return from_predictor(num_prompts, predictor, groups=groups, mesh=mesh, **acquisition)
