"""Success rates over prompts and their transition matrices, learned online with several decays.

A success rate is one of K states. Recursive EM on the one-step predictions of visits learns

* the population: the distribution of the rates of prompts without visits, for each group; it changes from round to
  round like the rates of idle prompts;
* three transition matrices: for idle prompts, for visited prompts whose completions were all correct or all wrong (and
  had no gradient), and for prompts that were partially solved.

Each member of the bank has a decay of its own. The prediction is an average over the members, weighted by their recent
predictive likelihood. The transition of a prompt since its last visit is the matrix of that visit times a power of the
matrix of idle prompts.

Source: recursive EM, Cappé and Moulines, arXiv 0712.4273; the weights are Bayesian model averaging with forgetting,
Raftery et al., Technometrics 2010.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _exact
from dps_jax.predictors._visits import pooled

# Kinds of transition: out of a round without a visit, with a visit whose completions were all correct or all wrong, and
# with a visit that was partially solved.
_IDLE, _FLAT, _PARTIAL = range(3)
# W: numbers of idle rounds are below W * W; larger numbers are clipped.
_RADIX = 32
# Decay per round of the log weights of the members.
_WEIGHT_DECAY = 0.98
# Prior counts of the population, whose prior is uniform, and of a prompt group, whose prior is the population.
_POPULATION_COUNT, _GROUP_COUNT = 1.0, 8.0
# Prior counts of the transitions out of a state: the weight of the rows near it, the width of their kernel in states,
# and the weight of the initial matrix.
_ROW_COUNT, _ROW_WIDTH, _MOVE_COUNT = 40.0, 3.0, 0.3
# The initial matrices: probability of a transition to either neighbour, for each kind, and to any state, for all kinds.
_NEIGHBOUR_SHARES, _ANYWHERE_SHARE = (0.02, 0.05, 0.10), 0.005
_SMALLEST = 1e-30


class BankState(NamedTuple):
    """Expected counts of every member.

    Attributes:
      initial: expected counts of states at first visits, by group, [J, L + 1, K]; the last entry is for prompts whose
        group is not known.
      moves: expected counts of transitions by kind, state before and state after, [J, 3, K, K].
      log_weights: decayed log predictive likelihood of each member, nats, [J].
    """

    initial: jax.Array
    moves: jax.Array
    log_weights: jax.Array


class Past(NamedTuple):
    """The histories of some prompts before a round; arrays have shape [P] unless stated otherwise.

    Attributes:
      belief: belief about the state just after the last visit, [K, P].
      is_seen: whether the prompt was visited.
      is_partial: whether the prompt was partially solved at the last visit, int32 0 or 1.
      num_idle: number of idle rounds since the last visit, int32.
      group: group of the prompt, int32 in [0, L]; L if it is not known.
    """

    belief: jax.Array
    is_seen: jax.Array
    is_partial: jax.Array
    num_idle: jax.Array
    group: jax.Array


class Table(NamedTuple):
    """Beliefs about the next round, averaged over the bank.

    The number of idle rounds since the last visit is written as a * W + b, so that the table is one large product of
    matrices.

    Attributes:
      seen: transition probabilities since the last visit, by kind of visit, b, state at the visit, a, and next state,
        [2, W, K, W, K].
      unseen: beliefs about prompts without visits, by group, [L + 1, K].
    """

    seen: jax.Array
    unseen: jax.Array


class RateBank(NamedTuple):
    """The pure functions of the bank.

    Attributes:
      init: () -> `BankState`.
      table: state -> `Table`.
      learn: (state, past, likelihood [K, P], weights [P], axis_name) -> (state one round later, beliefs about the
        visited prompts before the visit, [K, P]). Weights are 0 for padding.
    """

    init: Callable[[], BankState]
    table: Callable[[BankState], Table]
    learn: Callable[..., tuple[BankState, jax.Array]]


class _Model(NamedTuple):
    """Constants of the bank.

    Attributes:
      num_states: number of states, K.
      num_groups: number of prompt groups, L.
      decays: decays of the members, [J].
      offsets: index of each transition by its distance, int [K, K].
      kernel: weights of the rows of a transition matrix in the prior of each row, [K, K].
      prior_moves: prior counts of transitions, [3, K, K].
    """

    num_states: int
    num_groups: int
    decays: tuple[float, ...]
    offsets: np.ndarray
    kernel: np.ndarray
    prior_moves: np.ndarray


class _Probs(NamedTuple):
    """Probabilities of one member: of initial states, [L + 1, K], and of transitions, [3, K, K]."""

    initial: jax.Array
    moves: jax.Array


def rate_bank(num_states: int, num_groups: int, decays: tuple[float, ...]) -> RateBank:
    """Returns the functions of the bank.

    Args:
      num_states: number of states, K.
      num_groups: number of prompt groups, L.
      decays: share of the expected counts that survives a round, for each member, [J].
    """
    places = np.arange(num_states)
    distances = places[None] - places[:, None]  # [from, to]
    model = _Model(
        num_states=num_states,
        num_groups=num_groups,
        decays=decays,
        offsets=distances + num_states - 1,
        kernel=np.exp(-0.5 * (distances / _ROW_WIDTH) ** 2),
        prior_moves=_prior_moves(num_states),
    )
    bound = lambda function: functools.partial(function, model)
    return RateBank(init=bound(_init), table=bound(_table), learn=bound(_learn))


def _prior_moves(num_states: int) -> np.ndarray:
    """Returns prior counts of the transitions of every kind, float64 [3, K, K]."""
    beside = np.eye(num_states, k=1) + np.eye(num_states, k=-1)
    rows = []
    for share in _NEIGHBOUR_SHARES:
        matrix = share * beside + _ANYWHERE_SHARE / num_states
        matrix += np.diag(1 - matrix.sum(axis=1))
        rows.append(_MOVE_COUNT * matrix)
    return np.stack(rows)


def _within_table(num_idle: jax.Array) -> jax.Array:
    return jnp.clip(num_idle, 0, _RADIX**2 - 1)


def believed(table: Table, past: Past) -> jax.Array:
    """Returns the belief about one prompt in the next round, [K]; `past` belongs to this prompt and has no axis P."""
    large, small = jnp.divmod(_within_table(past.num_idle), _RADIX)
    moved = _exact.matmul(past.belief, table.seen[past.is_partial, small, :, large])
    return jnp.where(past.is_seen, moved, table.unseen[past.group])


def _powers(matrix: jax.Array) -> jax.Array:
    """Returns the powers 0, ..., W - 1 of a matrix, [W, K, K]."""
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return lax.scan(lambda power, _: (_exact.matmul(power, matrix), power), eye, None, length=_RADIX)[1]


def _small_and_large(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the powers 0, ..., W - 1 and 0, W, ..., W * (W - 1) of a matrix, [W, K, K] each."""
    small = _powers(matrix)
    return small, _powers(_exact.matmul(small[-1], matrix))


def _predicted(probs: _Probs, past: Past) -> jax.Array:
    """Returns the belief about some prompts in the next round by one member, [K, P]."""
    small, large = _small_and_large(probs.moves[_IDLE])
    num_idle = _within_table(past.num_idle)
    apply = lambda belief, matrices: _exact.einsum("kp,pkl->lp", belief, matrices)
    moved = apply(past.belief, probs.moves[_FLAT + past.is_partial])
    moved = apply(apply(moved, small[num_idle % _RADIX]), large[num_idle // _RADIX])
    return jnp.where(past.is_seen[None], moved, probs.initial[past.group].T)


def _from_near_rows(model: _Model, counts: jax.Array) -> jax.Array:
    """Returns prior counts of every row: counts of neighbouring rows, with aligned diagonals, [J, 3, K, K]."""
    rows = np.broadcast_to(np.arange(model.num_states)[:, None], model.offsets.shape)
    aligned = jnp.zeros((*counts.shape[:-1], 2 * model.num_states - 1), counts.dtype)
    aligned = aligned.at[..., rows, model.offsets].set(counts)
    kernel = jnp.asarray(model.kernel, counts.dtype)
    smooth = _exact.einsum("ij,...jd->...id", kernel, aligned)[..., rows, model.offsets]
    smooth = smooth + jnp.asarray(model.prior_moves, counts.dtype)[None]
    return _ROW_COUNT * smooth / smooth.sum(axis=-1, keepdims=True)


def _probs_of(model: _Model, state: BankState) -> _Probs:
    """Returns the probabilities of every member from its counts, leaves [J, ...]."""
    moves = state.moves + _from_near_rows(model, state.moves)
    population = state.initial.sum(axis=1) + _POPULATION_COUNT / model.num_states
    population = population / population.sum(axis=-1, keepdims=True)
    initial = state.initial[:, :-1] + _GROUP_COUNT * population[:, None]
    initial = initial / initial.sum(axis=-1, keepdims=True)
    initial = jnp.concatenate([initial, population[:, None]], axis=1)
    return _Probs(initial, moves / moves.sum(axis=-1, keepdims=True))


def _weights_of(state: BankState) -> jax.Array:
    return jax.nn.softmax(state.log_weights)


def _init(model: _Model) -> BankState:
    zeros = lambda *shape: jnp.zeros((len(model.decays), *shape), jnp.float32)
    num_states = model.num_states
    return BankState(zeros(model.num_groups + 1, num_states), zeros(3, num_states, num_states), zeros())


def _table(model: _Model, state: BankState) -> Table:
    probs, weights = _probs_of(model, state), _weights_of(state)
    small, large = jax.vmap(_small_and_large)(probs.moves[:, _IDLE])
    first = _exact.einsum("j,jckl,jblm->jcbkm", weights, probs.moves[:, _FLAT:], small)
    return Table(_exact.einsum("jcbkl,jalm->cbkam", first, large), _exact.tensordot(weights, probs.initial, 1))


def _log_evidence(
    logs_of_probs: _Probs, past: Past, likelihood: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the log evidence of visits under one member, nats, and the beliefs before them, [K, P]."""
    moved = _predicted(jax.tree.map(jnp.exp, logs_of_probs), past)
    evidence = jnp.maximum(jnp.sum(moved * likelihood, axis=0), _SMALLEST)
    return jnp.sum(weights * jnp.log(evidence)), moved


def _learn(
    model: _Model, state: BankState, past: Past, likelihood: jax.Array, weights: jax.Array, axis_name: str | None
) -> tuple[BankState, jax.Array]:
    # The derivative with respect to the logarithm of a probability is the expected number of its transitions.
    current = _probs_of(model, state)
    logs_of_probs = jax.tree.map(lambda probs: jnp.log(jnp.maximum(probs, _SMALLEST)), current)
    of_member = jax.vmap(jax.value_and_grad(_log_evidence, has_aux=True), in_axes=(0, None, None, None))
    (log_gains, moved), used = of_member(logs_of_probs, past, likelihood, weights)
    log_gains, used = pooled((log_gains, used), axis_name)
    keep = jnp.asarray(model.decays, jnp.float32)
    # The rates of prompts without visits change like those of idle prompts.
    initial = _exact.matmul(state.initial + used.initial, current.moves[:, _IDLE])
    log_weights = _WEIGHT_DECAY * state.log_weights + log_gains
    later = BankState(
        initial=keep[:, None, None] * initial,
        moves=keep[:, None, None, None] * (state.moves + used.moves),
        log_weights=log_weights - log_weights.max(),
    )
    return later, _exact.tensordot(_weights_of(state), moved, 1)
