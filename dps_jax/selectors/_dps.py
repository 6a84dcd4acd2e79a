"""Dynamics-Predictive Sampling: the prompts most likely to be partially solved in the next round."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.hmm._transitions import check_group_ids, resolve_prior
from dps_jax.predictors._hmm import hmm
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import WithoutGroups
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def dps(
    num_prompts: int,
    *,
    groups: Any = None,
    decay: Any = None,
    prior: Any = "uniform",
    initial: Any = None,
    num_states: int | None = None,
    group_size: int = 8,
    is_compact: bool = False,
    mesh: Mesh | None = None,
    **acquisition: Unpack[WithoutGroups],
) -> Selector:
    """Returns the selector of the top B by predicted P(0 < m < G).

    Args:
      num_prompts: N.
      groups: int [N] in [-1, L), the group of each prompt for a prior with L groups; -1 where it is not known, None
        where none is. Of no effect if the prior has no groups.
      decay: lambda in [0, 1], share of the learned transition counts that survives a round; None is that of the prior,
        0.7 for a named one. May be a traced scalar.
      prior: "uniform", "progress", "stability", "local", a [K, K] array from-to, a `TransitionPrior`, or a path.
      initial: belief before the first round: "uniform", the index of a certain state, or [K] probabilities.
      num_states: K, one of 2, 3, 5, 7 with the exact emission; None is that of the prior, 3 for a named one.
      group_size: G; used by priors with a binomial emission.
      is_compact: keep transition counts in 16 bits, 30 instead of 48 bytes per prompt at K = 3.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.WithoutGroups`.

    Raises:
      ValueError: for an option out of range; the message names it.

    Source: DPS (arXiv 2603.10887), with all prompts advancing every round, and ties broken at random.
    """
    _checks.check_group_size(group_size)
    _checks.check_bool("is_compact", is_compact)
    resolved = resolve_prior(prior, initial=initial, decay=decay, num_states=num_states)
    positions = None if groups is None else check_group_ids("groups", groups, resolved, num_prompts)
    predictor = hmm(resolved, group_ids=groups, group_size=group_size, is_compact=is_compact)
    return from_predictor(
        num_prompts, predictor, lambda state: state.predicted_value, groups=positions, mesh=mesh, **acquisition
    )
