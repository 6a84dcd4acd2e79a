"""How success rates are spread and move, learned online from all prompts together, under several rates of forgetting.

A rate is one of K states. Learned are, by recursive EM on the one-step predictions of visits,

* the population: the law of rates of prompts that were never seen, per group, moving along with idle prompts;
* how rates move from a round to the next: of idle prompts, of prompts in whose group all completions agreed (no
  gradient came of it), and of prompts that were partially solved.

Every member of the bank forgets at its own rate; their predictions are weighted by how well each did lately. What
happened to a prompt since its last visit is one move of its visit and a power of the matrix of idle moves.

Source: recursive EM, Cappe and Moulines, arXiv 0712.4273; weighting by evidence is Bayesian model averaging with
forgetting, Raftery et al., Technometrics 2010.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax.predictors.visits import pooled

# Kinds of move: out of a round without a visit, out of a visit whose completions agreed, and out of another one.
_IDLE, _FLAT, _PARTIAL = range(3)
# Idle stretches beyond the square of this count as so long.
_RADIX = 32
# Share of the log weights of the members that survives a round.
_WEIGHT_DECAY = 0.98
# Prior counts of the population, and of a group around the population.
_POPULATION_COUNT, _GROUP_COUNT = 1.0, 8.0
# Of the moves out of a state: as rows near it move, within so many states, and as is likely beforehand.
_ROW_COUNT, _ROW_WIDTH, _MOVE_COUNT = 40.0, 3.0, 0.3
# Of the moves out of a state, before anything is known: to either neighbour, and anywhere.
_NEIGHBOUR_SHARES, _ANYWHERE_SHARE = (0.02, 0.05, 0.10), 0.005
_SMALLEST = 1e-30


class BankState(NamedTuple):
    """Expected counts of every member.

    Attributes:
      initial: of states at first visits, by group, prompts of no known group last, [J, M + 1, K].
      moves: by kind, from, to, [J, 3, K, K].
      log_weights: how well each member has predicted lately, nats, [J].
    """

    initial: jax.Array
    moves: jax.Array
    log_weights: jax.Array


class Past(NamedTuple):
    """Some prompts before a round, [P] each but the first.

    Attributes:
      belief: about the state just after the last visit, [K, P].
      is_seen: whether there was one.
      is_partial: whether that was partially solved, int32 0 or 1.
      num_idle: rounds since, int32.
      group: int32 in [0, M].
    """

    belief: jax.Array
    is_seen: jax.Array
    is_partial: jax.Array
    num_idle: jax.Array
    group: jax.Array


class Table(NamedTuple):
    """Laws of the next round, averaged over the bank.

    Attributes:
      seen: given the state after the last visit, by kind of visit and idle rounds since, [2, R * R, K, K].
      unseen: of prompts never seen, by group, [M + 1, K].
    """

    seen: jax.Array
    unseen: jax.Array


class RateBank(NamedTuple):
    """Pure functions.

    Attributes:
      init: () -> `BankState`.
      table: state -> `Table`.
      learn: (state, past, likelihood [K, P], weights [P], axis_name) -> (state one round later, the belief about the
        visited prompts before the visit, [K, P]). Weights are 0 for padding.
    """

    init: Callable[[], BankState]
    table: Callable[[BankState], Table]
    learn: Callable[..., tuple[BankState, jax.Array]]


class _Laws(NamedTuple):
    """Of one member: initial [M + 1, K], moves [3, K, K]."""

    initial: jax.Array
    moves: jax.Array


def _within_table(num_idle: jax.Array) -> jax.Array:
    return jnp.clip(num_idle, 0, _RADIX**2 - 1)


def believed(table: Table, past: Past) -> jax.Array:
    """Returns the belief about one prompt in the next round, [K]; `past` is of that prompt, without the axis P."""
    moved = past.belief @ table.seen[past.is_partial, _within_table(past.num_idle)]
    return jnp.where(past.is_seen, moved, table.unseen[past.group])


def _powers(matrix: jax.Array) -> jax.Array:
    """Returns the powers 0, ..., R - 1 of a matrix, [R, K, K]."""
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return lax.scan(lambda power, _: (power @ matrix, power), eye, None, length=_RADIX)[1]


def _small_and_large(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the powers 0, ..., R - 1 and 0, R, ..., R * (R - 1) of a matrix, [R, K, K] each."""
    small = _powers(matrix)
    return small, _powers(small[-1] @ matrix)


def _predicted(law: _Laws, past: Past) -> jax.Array:
    """Returns the belief about some prompts in the next round by one member, [K, P]."""
    small, large = _small_and_large(law.moves[_IDLE])
    num_idle = _within_table(past.num_idle)
    apply = lambda belief, matrices: jnp.einsum("kp,pkl->lp", belief, matrices)
    moved = apply(past.belief, law.moves[_FLAT + past.is_partial])
    moved = apply(apply(moved, small[num_idle % _RADIX]), large[num_idle // _RADIX])
    return jnp.where(past.is_seen[None], moved, law.initial[past.group].T)


def _prior_moves(num_states: int) -> np.ndarray:
    """Returns prior counts of the moves of every kind, float64 [3, K, K]."""
    beside = np.eye(num_states, k=1) + np.eye(num_states, k=-1)
    rows = []
    for share in _NEIGHBOUR_SHARES:
        matrix = share * beside + _ANYWHERE_SHARE / num_states
        matrix += np.diag(1 - matrix.sum(axis=1))
        rows.append(_MOVE_COUNT * matrix)
    return np.stack(rows)


def _laws_of(num_states: int) -> Callable[[BankState], _Laws]:
    """Returns the function from counts to the laws of every member, leaves [J, ...]."""
    places, prior_moves = np.arange(num_states), _prior_moves(num_states)
    offsets = places[None] - places[:, None] + num_states - 1  # [from, to]
    kernel = np.exp(-0.5 * ((places[None] - places[:, None]) / _ROW_WIDTH) ** 2)

    def from_near_rows(counts: jax.Array) -> jax.Array:
        """Returns prior counts of every row from rows near it, moved along, [J, 3, K, K]."""
        rows = np.broadcast_to(places[:, None], offsets.shape)
        aligned = jnp.zeros((*counts.shape[:-1], 2 * num_states - 1), counts.dtype).at[..., rows, offsets].set(counts)
        smooth = jnp.einsum("ij,...jd->...id", jnp.asarray(kernel, counts.dtype), aligned)[..., rows, offsets]
        smooth = smooth + jnp.asarray(prior_moves, counts.dtype)[None]
        return _ROW_COUNT * smooth / smooth.sum(axis=-1, keepdims=True)

    def laws(state: BankState) -> _Laws:
        moves = state.moves + from_near_rows(state.moves)
        population = state.initial.sum(axis=1) + _POPULATION_COUNT / num_states
        population = population / population.sum(axis=-1, keepdims=True)
        initial = state.initial[:, :-1] + _GROUP_COUNT * population[:, None]
        initial = initial / initial.sum(axis=-1, keepdims=True)
        initial = jnp.concatenate([initial, population[:, None]], axis=1)
        return _Laws(initial, moves / moves.sum(axis=-1, keepdims=True))

    return laws


def rate_bank(num_states: int, num_groups: int, decays: tuple[float, ...]) -> RateBank:
    """Returns the bank.

    Args:
      num_states: K.
      num_groups: M.
      decays: share of what was learned that survives a round, of each member, [J].
    """
    laws_of = _laws_of(num_states)

    def init() -> BankState:
        zeros = lambda *shape: jnp.zeros((len(decays), *shape), jnp.float32)
        return BankState(zeros(num_groups + 1, num_states), zeros(3, num_states, num_states), zeros())

    def weights_of(state: BankState) -> jax.Array:
        return jax.nn.softmax(state.log_weights)

    def table(state: BankState) -> Table:
        def of_member(law: _Laws) -> Table:
            small, large = _small_and_large(law.moves[_IDLE])
            idle = jnp.einsum("akl,blm->bakm", small, large).reshape(-1, num_states, num_states)
            return Table(jnp.einsum("ckl,slm->cskm", law.moves[_FLAT:], idle), law.initial)

        weights = weights_of(state)
        return jax.tree.map(lambda each: jnp.tensordot(weights, each, 1), jax.vmap(of_member)(laws_of(state)))

    def learn(
        state: BankState, past: Past, likelihood: jax.Array, weights: jax.Array, axis_name: str | None
    ) -> tuple[BankState, jax.Array]:
        def log_evidence(logs_of_laws: _Laws) -> tuple[jax.Array, jax.Array]:
            moved = _predicted(jax.tree.map(jnp.exp, logs_of_laws), past)
            evidence = jnp.maximum(jnp.sum(moved * likelihood, axis=0), _SMALLEST)
            return jnp.sum(weights * jnp.log(evidence)), moved

        # The derivative with respect to the log of a probability is how often it is expected to have been used.
        current = laws_of(state)
        logs_of_laws = jax.tree.map(lambda probs: jnp.log(jnp.maximum(probs, _SMALLEST)), current)
        (log_gains, moved), used = jax.vmap(jax.value_and_grad(log_evidence, has_aux=True))(logs_of_laws)
        log_gains, used = pooled((log_gains, used), axis_name)
        keep = jnp.asarray(decays, jnp.float32)
        # Prompts that were never seen move like idle ones.
        initial = (state.initial + used.initial) @ current.moves[:, _IDLE]
        log_weights = _WEIGHT_DECAY * state.log_weights + log_gains
        later = BankState(
            initial=keep[:, None, None] * initial,
            moves=keep[:, None, None, None] * (state.moves + used.moves),
            log_weights=log_weights - log_weights.max(),
        )
        return later, jnp.tensordot(weights_of(state), moved, 1)

    return RateBank(init=init, table=table, learn=learn)
