"""The picks of a round from a few ranked lists: prompts due by `max_wait`, then quotas of groups, then the best.

All functions of this module work on a few hundred prompts, with the same result on every shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.selectors._ranking import Ranking

# Prompts that are due by `max_wait` have multiples of this number as their scores.
TURN_SCORE = 1e30
_TURN, _QUOTA, _FILL, _EXCLUDED, _PADDING = 3, 2, 1, 0, -1


class Picks(NamedTuple):
    """The prompts of a round.

    Attributes:
      ids: ids of the prompts, int32 [B].
      scores: keys by which the prompts were ranked, float32 [B].
      thresholds: score above which each prompt would have been picked, given the scores of all others, float32 [B];
        -inf for prompts that are picked with any score.
    """

    ids: jax.Array
    scores: jax.Array
    thresholds: jax.Array


def _without(ranked: Ranking, exclude: jax.Array | None, is_firm: jax.Array | None) -> tuple[Ranking, jax.Array]:
    """Returns a list with excluded prompts and padding moved to its end, and a mask of them, [P]."""
    is_last = ranked.scores == -jnp.inf
    if exclude is not None:
        firm = exclude if is_firm is None else jnp.where(is_firm, exclude, -1)
        is_waiting = ranked.scores < TURN_SCORE
        is_last = is_last | jnp.where(is_waiting, jnp.isin(ranked.ids, exclude), jnp.isin(ranked.ids, firm))
    order = jnp.argsort(is_last, stable=True)
    return jax.tree.map(lambda leaf: leaf[order], ranked), is_last[order]


def _entry(ranked: Ranking, is_last: jax.Array, place: int) -> jax.Array:
    """Returns the score at a position of a list; -inf past its end."""
    if place >= ranked.scores.shape[0]:
        return jnp.asarray(-jnp.inf, jnp.float32)
    return jnp.where(is_last[place], -jnp.inf, ranked.scores[place])


def pick(
    best: Ranking,
    of_groups: Sequence[tuple[Ranking, int]],
    batch_size: int,
    exclude: jax.Array | None = None,
    is_firm: jax.Array | None = None,
) -> Picks:
    """Returns the picks: prompts that are due by `max_wait`, then the quotas of groups, then the best of all.

    Args:
      best: ranked list of the best of all prompts, with at least B + 1 + X entries, or all prompts.
      of_groups: for each group with a quota of n > 0, the ranked list of its best prompts, with at least n + 1 + X
        entries, or all prompts of the group; and n. Entries with a score of -inf are padding.
      batch_size: number of prompts to pick, B; the quotas sum to at most B.
      exclude: ids of prompts that are picked only if nothing else is left, int [X].
      is_firm: which entries of `exclude` stay excluded when the prompt is due by `max_wait`, bool [X]; None stands for
        all.
    """
    columns = []
    for ranked, size in [(best, 0), *of_groups]:
        ranked, is_last = _without(ranked, exclude, is_firm)
        in_quota = jnp.arange(ranked.ids.shape[0]) < size
        tier = jnp.where(in_quota, _QUOTA, _FILL)
        tier = jnp.where(ranked.scores >= TURN_SCORE, _TURN, tier)
        tier = jnp.where(is_last, jnp.where(ranked.scores == -jnp.inf, _PADDING, _EXCLUDED), tier)
        next_score = jnp.full(tier.shape, _entry(ranked, is_last, size) if size else jnp.inf, jnp.float32)
        columns.append((ranked, tier, next_score))
    lists, tiers, nexts = zip(*columns, strict=True)
    ranked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *lists)
    tier, next_score = jnp.concatenate(tiers), jnp.concatenate(nexts)
    if of_groups:
        # A prompt in several lists keeps only its entry in the highest tier.
        ids, negated, order = lax.sort((ranked.ids, -tier, jnp.arange(tier.size)), num_keys=2)
        is_repeated = jnp.concatenate([jnp.zeros(1, bool), ids[1:] == ids[:-1]])
        tier = tier.at[order].set(jnp.where(is_repeated, _PADDING, -negated))
    keys = (-tier, -ranked.scores, -ranked.tie_keys, ranked.ids)
    *_, order = lax.sort((*keys, jnp.arange(tier.size)), num_keys=4)
    first, is_next = order[:batch_size], order[batch_size : batch_size + 1]
    threshold, is_cut = jnp.asarray(-jnp.inf, jnp.float32), jnp.asarray(False)
    if is_next.size:
        is_prompt = tier[is_next[0]] >= _FILL
        threshold = jnp.where(is_prompt, ranked.scores[is_next[0]], -jnp.inf)
        is_cut = tier[is_next[0]] == _QUOTA
    # A prompt in a quota is picked if its score exceeds that of the next prompt of its group, or of the next prompt of
    # all. If prompts due by `max_wait` have displaced a part of the quotas, its score has to exceed both thresholds.
    in_quota = jnp.where(is_cut, jnp.maximum(next_score, threshold), jnp.minimum(next_score, threshold))
    thresholds = jnp.where(tier == _QUOTA, in_quota, threshold)
    thresholds = jnp.where(tier == _TURN, -jnp.inf, thresholds)
    return Picks(ranked.ids[first], ranked.scores[first], thresholds[first])


def inclusion_probs(picks: Picks, noise: jax.Array) -> jax.Array:
    """Returns the probability that a prompt's score, with newly drawn noise, exceeds its threshold, [B].

    Args:
      picks: picks, whose scores have Gumbel noise.
      noise: noise in each of the scores, [B].

    Source: Kool et al., arXiv 1903.06059, appendix on importance weights; for quotas by the same argument.
    """
    is_certain = picks.thresholds == -jnp.inf
    distance = jnp.where(is_certain, 0.0, picks.scores - noise - picks.thresholds)
    return jnp.where(is_certain, 1.0, -jnp.expm1(-jnp.exp(distance)))
