"""The most probably partially solved prompts, by a hidden Markov model of success rates that is learned online."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.predictors import _binomial_hmm as binomial_hmm_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions, WithoutChance
from dps_jax.selectors._registry import register
from dps_jax.types import Selector

# What becomes of prompts that look useless is learned from so many.
_EXPLORE = 0.05


@register
def binomial_hmm(
    num_prompts: int,
    *,
    groups: Any = None,
    features: Any = None,
    num_states: int = 16,
    group_size: int = 8,
    decays: tuple[float, ...] = binomial_hmm_predictor.DECAYS,
    is_compact: bool = True,
    optimism: float = 1.0,
    hardness: float = 0.0,
    temperature: float = 0.05,
    explore: float | None = None,
    mesh: Mesh | None = None,
    **acquisition: Unpack[WithoutChance],
) -> Selector:
    """Returns the selector of prompts that are probably partially solved, by a model learned from all prompts.

    Takes them nearly greedily: a little chance and optimism keep prompts from being written off on little evidence.

    With more than 8192 prompts, the scores of prompts that were not just visited are brought up to date in turns.

    Args:
      num_prompts: N.
      groups: int [N] in [-1, L), the group of each prompt, to whose distribution of success rates prompts return that
        were not visited for long; -1 where it is not known.
      features: of prompts, finite, [N, D], which inform predictions for prompts that were never visited, too; None
        where there are none.
      num_states: K, success rates on a grid.
      group_size: G.
      decays: of the bank, each in (0, 1]; see `predictors.binomial_hmm`.
      is_compact: keep beliefs in 16 bits: 2 K + 8 bytes per prompt, and 1 for the group.
      optimism: standard deviations over networks that are added to what prompts are ranked by, unless `value` says
        what that is; see `predictors.binomial_hmm`.
      hardness: above 0, prompts with few correct completions are preferred; see `predictors.binomial_hmm`.
      temperature: 0 takes the best; above, prompts are drawn in proportion to what they are ranked by ** (1 /
        temperature).
      explore: share of a batch that goes to prompts whatever their scores; None is 0.05 with a temperature, 0 without.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.WithoutChance`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    if groups is not None:
        _checks.check_groups(groups, num_prompts)
    if features is not None:
        _checks.check_features(features, num_prompts)
    predictor = binomial_hmm_predictor.binomial_hmm(
        group_ids=groups,
        features=features,
        num_states=num_states,
        group_size=group_size,
        decays=decays,
        is_compact=is_compact,
        optimism=optimism,
        hardness=hardness,
    )
    _checks.check_number("temperature", temperature, at_least=0)
    if explore is None:
        explore = _EXPLORE if temperature else 0.0
    options: AcquisitionOptions = {**acquisition, "groups": groups, "temperature": temperature, "explore": explore}
    if acquisition.get("value") is not None or acquisition.get("thompson") is True:
        # What prompts are ranked by is then not the predictor's own score.
        options["hardness"] = hardness
    return from_predictor(num_prompts, predictor, lambda state: state.score, mesh=mesh, **options)
