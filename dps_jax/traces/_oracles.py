"""Oracles: upper bounds for selectors. They select by the true success rates, which selectors do not observe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.traces import _shared_facts

_SMALLEST = 1e-12


class Oracle(NamedTuple):
    """A method that selects by the true success rates of the candidates, as an upper bound for selectors.

    Attributes:
      scores: (rates [M], key, group_size) -> scores [M], of which the B largest are selected; the rate of a prompt with
        a wrong reference is 0. None stands for dynamic sampling in which discarded rollouts cost nothing: candidates
        are rolled out in random order until there are B informative completion groups or no candidate is left.
    """

    scores: Callable[[jax.Array, jax.Array, int], jax.Array] | None


def _top(rates: jax.Array, key: jax.Array, group_size: int) -> jax.Array:
    del key
    return _shared_facts.informative_probs(rates, group_size)


def _drawn(
    rates: jax.Array, key: jax.Array, group_size: int, *, weight: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Returns random scores whose B largest are a draw without replacement in proportion to weight(p, i)."""
    weights = weight(rates, _shared_facts.informative_probs(rates, group_size))
    return jnp.log(jnp.maximum(weights, _SMALLEST)) + jax.random.gumbel(key, rates.shape)


# p is the true success rate and i the true P(0 < m < G).
ORACLES: dict[str, Oracle] = {
    "oracle_top": Oracle(_top),
    "oracle_i": Oracle(functools.partial(_drawn, weight=lambda p, i: i)),
    "oracle_i_hard": Oracle(functools.partial(_drawn, weight=lambda p, i: i * (1 - p))),
    "oracle_i_hard2": Oracle(functools.partial(_drawn, weight=lambda p, i: i * (1 - p) ** 2)),
    "oracle_i_easy": Oracle(functools.partial(_drawn, weight=lambda p, i: i * p)),
    "oracle_informative": Oracle(functools.partial(_drawn, weight=lambda p, i: jnp.where(i > 0.5, 1.0, 0.0))),
    "ds_free": Oracle(None),
}
