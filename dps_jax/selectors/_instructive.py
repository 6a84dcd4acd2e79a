"""The prompts that probably teach most: informative ones, the harder the better, drawn by chance and not greedily."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.selectors._binomial_hmm import binomial_hmm
from dps_jax.selectors._options import WithoutPool
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def instructive(
    num_prompts: int,
    *,
    groups: Any = None,
    features: Any = None,
    group_size: int = 8,
    hardness: float = 1.0,
    temperature: float = 0.3,
    temperature_pool: float | None = 32.0,
    optimism: float = 1.0,
    explore: float | None = None,
    mesh: Mesh | None = None,
    **acquisition: Unpack[WithoutPool],
) -> Selector:
    """Returns the selector of prompts by what a visit is expected to teach, with the predictions of `binomial_hmm`.

    A prompt that is solved three times of four is as surely informative as one that is solved once of four, but most of
    what it needs is learned already. Prompts are drawn in proportion to
    E[(1 - m / G) ** hardness; 0 < m < G] ** (1 / temperature).

    Args:
      num_prompts: N.
      groups: int [N] in [-1, L), the group of each prompt (level, source, topic); -1 where it is not known.
      features: of prompts, finite, [N, D], or None.
      group_size: G.
      hardness: above 0, prompts with few correct completions are preferred.
      temperature: between greed (0) and proportion (1).
      temperature_pool: candidates per pick that the temperature is meant for; it falls among more of them, of whom most
        are worth little. None is the same temperature for every pool.
      optimism: standard deviations over networks that are added to what prompts are ranked by.
      explore: share of a batch that goes to prompts whatever they are expected to teach; None is that of
        `binomial_hmm`.
      mesh: of one axis of any type, to shard the prompts along.
      **acquisition: how prompts are chosen; see `options.WithoutPool`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    _checks.check_number("temperature", temperature, at_least=0)
    return binomial_hmm(
        num_prompts,
        groups=groups,
        features=features,
        group_size=group_size,
        hardness=hardness,
        temperature=temperature,
        temperature_pool=temperature_pool if temperature else None,
        optimism=optimism,
        explore=explore,
        mesh=mesh,
        **acquisition,
    )
