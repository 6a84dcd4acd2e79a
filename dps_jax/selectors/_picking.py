"""The picks of a round from a few ranked lists: who has a right to a turn, whom a quota brings in, and who is best.

All that is here works on a few hundred prompts, and is the same on every shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.selectors._ranking import Ranking

# Scores of prompts whose turn has come are this times 1, 2, ...
TURN_SCORE = 1e30
_TURN, _QUOTA, _FILL, _EXCLUDED, _PADDING = 3, 2, 1, 0, -1


class Picks(NamedTuple):
    """The prompts of a round.

    Attributes:
      ids: int32 [B].
      scores: what they were ranked by, float32 [B].
      thresholds: the score above which each of them would still have been picked, given those of all others, float32
        [B]; -inf where it has its place for certain.
    """

    ids: jax.Array
    scores: jax.Array
    thresholds: jax.Array


def _without(ranked: Ranking, exclude: jax.Array | None, is_firm: jax.Array | None) -> tuple[Ranking, jax.Array]:
    """Returns a list with excluded prompts and padding at its end, and a mask of these, [P]."""
    is_last = ranked.scores == -jnp.inf
    if exclude is not None:
        firm = exclude if is_firm is None else jnp.where(is_firm, exclude, -1)
        is_waiting = ranked.scores < TURN_SCORE
        is_last = is_last | jnp.where(is_waiting, jnp.isin(ranked.ids, exclude), jnp.isin(ranked.ids, firm))
    order = jnp.argsort(is_last, stable=True)
    return jax.tree.map(lambda leaf: leaf[order], ranked), is_last[order]


def _entry(ranked: Ranking, is_last: jax.Array, place: int) -> jax.Array:
    """Returns the score at a place of a list; -inf where there is none."""
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
    """Returns the picks: prompts whose turn has come, then the quotas of groups, then the best of all.

    Args:
      best: of all prompts, at least B + 1 and the number excluded of them, or all of them.
      of_groups: for each group with a quota of n > 0, the best of the group, at least n + 1 and the number excluded, or
        all of it; and n. Entries with a score of -inf are padding that fills up a list.
      batch_size: B; quotas sum to at most B.
      exclude: int [X], picked only when nothing else is left.
      is_firm: which of them are, even when their turn has come, bool [X]; None is all.
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
        # A prompt of several lists keeps the place in the highest tier.
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
    # In its quota, a prompt that falls behind the next of its group may still be among the best of all. Where turns
    # have cut quotas short, it has to hold its place in both.
    in_quota = jnp.where(is_cut, jnp.maximum(next_score, threshold), jnp.minimum(next_score, threshold))
    thresholds = jnp.where(tier == _QUOTA, in_quota, threshold)
    thresholds = jnp.where(tier == _TURN, -jnp.inf, thresholds)
    return Picks(ranked.ids[first], ranked.scores[first], thresholds[first])


def inclusion_probs(picks: Picks, noise: jax.Array) -> jax.Array:
    """Returns the probability that a prompt's score, with fresh noise, would exceed its threshold, [B].

    Args:
      picks: whose scores have Gumbel noise.
      noise: in each of them, [B].

    Source: Kool et al., arXiv 1903.06059, appendix on importance weights; for quotas by the same argument.
    """
    is_certain = picks.thresholds == -jnp.inf
    distance = jnp.where(is_certain, 0.0, picks.scores - noise - picks.thresholds)
    return jnp.where(is_certain, 1.0, -jnp.expm1(-jnp.exp(distance)))
