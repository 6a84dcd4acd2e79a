"""A hidden Markov model of success rates whose laws are learned online, from all prompts together.

A prompt's state is its success rate, on a grid that is even in the logit: rarely solved has to be told from never. A
visit shows m of G by the binomial law. What is learned, by recursive EM on the one-step predictions:

* the population: the law of rates of prompts that were never seen, per group, moving along with idle prompts;
* how rates move from a round to the next: of idle prompts, of prompts in whose group all completions agreed (no
  gradient came of it), and of prompts that were partially solved;
* how fast all this is forgotten: a bank of rates, weighted by how well each has predicted lately.

A belief is written only when its prompt is visited. What happened since is a power of a matrix that all prompts share,
so a round costs nothing for the others: the moves of a stretch of idle rounds are applied when somebody asks.

What such a model leaves out, a small network corrects that sees the belief, how old it is, the prompt's group and
features, and how often prompts succeed at present; see `online_net`. Its corrections are predictions only, but for
prompts that were never seen: a first visit is weighed with the corrected law, so that features tell of the population.

Source: recursive EM, Cappe and Moulines, arXiv 0712.4273; weighting by evidence is Bayesian model averaging with
forgetting, Raftery et al., Technometrics 2010.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import special

from dps_jax import _checks
from dps_jax.hmm import emissions
from dps_jax.predictors import draws
from dps_jax.predictors.online_net import Rows, log_offset, online_net, standardised
from dps_jax.predictors.visits import pooled, visits
from dps_jax.types import Prediction, Predictor

# Kinds of move: out of a round without a visit, out of a visit whose completions agreed, and out of another one.
_IDLE, _FLAT, _PARTIAL = range(3)
# Idle stretches beyond the square of this count as so long.
_RADIX = 32
# Share of what was learned that survives a round; one model each.
DECAYS = (0.65, 0.8, 0.9, 0.97, 1.0)
# Share of the log weights of these models that survives a round.
_WEIGHT_DECAY = 0.98
# Logits of the outermost states.
_LARGEST_LOGIT = 6.0
# Prior counts of the population, and of a group around the population.
_POPULATION_COUNT, _GROUP_COUNT = 1.0, 8.0
# Of the moves out of a state: as rows near it move, within so many states, and as is likely beforehand.
_ROW_COUNT, _ROW_WIDTH, _MOVE_COUNT = 40.0, 3.0, 0.3
# Of the moves out of a state, before anything is known: to either neighbour, and anywhere.
_NEIGHBOUR_SHARES, _ANYWHERE_SHARE = (0.02, 0.05, 0.10), 0.005
# Scores of other prompts are brought up to date so many at a time.
_REFRESH_SIZE = 2**17
_SMALLEST = 1e-30
# Prompts that are predicted at a time, so that no array of matrices by prompts is ever held.
_BLOCK = 2**12
# Facts about a prompt that the network sees beside belief, group and features; and of the average of everybody, the
# share that survives a round.
_NUM_FACTS, _ODDS_DECAY = 5, 0.9


class Learned(NamedTuple):
    """Expected counts, for every decay of the bank.

    Attributes:
      initial: of states at first visits, by group, prompts of no known group last, [J, M + 1, K].
      moves: by kind, from, to, [J, 3, K, K].
      log_weights: how well each member of the bank has predicted lately, nats, [J].
      log_odds: of a completion to succeed, moving average over rounds, scalar.
      net: what corrects the rest; () without.
    """

    initial: jax.Array
    moves: jax.Array
    log_weights: jax.Array
    log_odds: jax.Array
    net: Any


class BinomialHMMState(NamedTuple):
    """What is known after some rounds.

    Attributes:
      belief: about a prompt's state just after its last visit, [K, N]; uint16 in the compact form.
      visit: twice the round of the last visit, plus 1 if it was partially solved, int32 [N]; -1 if never seen.
      score: P(0 < m < G) when it was last brought up to date, float32 [N].
      group: group of every prompt, the number of groups where it is not known, uint8 or int32 [N]; [] without groups.
      features: standardised, float32 [D, N].
      round: rounds so far, int32 scalar.
      learned: from everybody.
    """

    belief: jax.Array
    visit: jax.Array
    score: jax.Array
    group: jax.Array
    features: jax.Array
    round: jax.Array
    learned: Learned


class _Laws(NamedTuple):
    """Of one member of the bank: initial [M + 1, K], moves [3, K, K]."""

    initial: jax.Array
    moves: jax.Array


def grid(num_states: int) -> np.ndarray:
    """Returns the success rates of the states, float64 [K]."""
    return special.expit(np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, num_states))


def _prior_moves(num_states: int) -> np.ndarray:
    """Returns prior counts of the moves of every kind, float64 [3, K, K]."""
    beside = np.eye(num_states, k=1) + np.eye(num_states, k=-1)
    rows = []
    for share in _NEIGHBOUR_SHARES:
        matrix = share * beside + _ANYWHERE_SHARE / num_states
        matrix += np.diag(1 - matrix.sum(axis=1))
        rows.append(_MOVE_COUNT * matrix)
    return np.stack(rows)


def binomial_hmm(
    *,
    group_ids: Any = None,
    features: Any = None,
    num_states: int = 16,
    group_size: int = 8,
    decays: tuple[float, ...] = DECAYS,
    is_compact: bool = True,
    is_corrected: bool = True,
) -> Predictor:
    """Returns the predictor.

    Args:
      group_ids: int [N] in [-1, M), the group of each prompt (level, source, topic); -1 where it is not known, None
        where none is.
      features: of prompts, finite, [N, D], or None.
      num_states: K.
      group_size: G of the groups that are predicted; those observed may differ.
      decays: of the bank, each in (0, 1].
      is_compact: keep beliefs in 16 bits.
      is_corrected: correct predictions by a network; without, features are of no use.

    Raises:
      ValueError: for an option out of range.
    """
    _checks.check_int("num_states", num_states, at_least=3, at_most=64)
    _checks.check_int("group_size", group_size, at_least=1)
    if not decays or not all(0 < decay <= 1 for decay in decays):
        raise ValueError(f"decays: expected one or more numbers in (0, 1], got {decays!r}")
    groups, num_groups = None, 0
    if group_ids is not None:
        known = _checks.check_integer_array("group_ids", group_ids)
        if known.min(initial=-1) < -1:
            raise ValueError(f"group_ids: expected ids from 0, or -1 for an unknown group, got {known.min()}")
        num_groups = int(known.max(initial=-1)) + 1
        # The spare last entry is for prompts past the end.
        groups = np.append(np.where(known < 0, num_groups, known), num_groups)
        groups = groups.astype(np.uint8 if num_groups < 255 else np.int32)
    rates = grid(num_states)
    log_rates = np.stack([np.log(rates), np.log1p(-rates)])
    emission = emissions.binomial(rates.tolist())
    probs_of_states = emissions.outcome_probs(emission, group_size)
    informative = emissions.informative_probs(emission, group_size)
    variances = emissions.reward_variances(emission, group_size)
    prior_moves, num_models = _prior_moves(num_states), len(decays)
    feature_table = np.zeros((0, 1), np.float32) if features is None else standardised(features)
    net = online_net(_NUM_FACTS + num_groups + len(feature_table), rates) if is_corrected else None

    def to_laws(learned: Learned) -> _Laws:
        """Returns the laws of every member of the bank."""
        moves = learned.moves + from_near_rows(learned.moves)
        population = learned.initial.sum(axis=1) + _POPULATION_COUNT / num_states
        population = population / population.sum(axis=-1, keepdims=True)
        initial = learned.initial[:, :-1] + _GROUP_COUNT * population[:, None]
        initial = initial / initial.sum(axis=-1, keepdims=True)
        initial = jnp.concatenate([initial, population[:, None]], axis=1)
        return _Laws(initial, moves / moves.sum(axis=-1, keepdims=True))

    places = np.arange(num_states)
    offsets = places[None] - places[:, None] + num_states - 1  # [from, to]
    kernel = np.exp(-0.5 * ((places[None] - places[:, None]) / _ROW_WIDTH) ** 2)

    def from_near_rows(counts: jax.Array) -> jax.Array:
        """Returns prior counts of every row from rows near it, moved along, [J, 3, K, K]."""
        rows = np.broadcast_to(places[:, None], offsets.shape)
        aligned = jnp.zeros((*counts.shape[:-1], 2 * num_states - 1), counts.dtype).at[..., rows, offsets].set(counts)
        smooth = jnp.einsum("ij,...jd->...id", jnp.asarray(kernel, counts.dtype), aligned)[..., rows, offsets]
        smooth = smooth + jnp.asarray(prior_moves, counts.dtype)[None]
        return _ROW_COUNT * smooth / smooth.sum(axis=-1, keepdims=True)

    def powers(matrix: jax.Array) -> jax.Array:
        """Returns the powers 0, ..., R - 1 of a matrix, [R, K, K]."""
        eye = jnp.eye(num_states, dtype=matrix.dtype)
        return lax.scan(lambda power, _: (power @ matrix, power), eye, None, length=_RADIX)[1]

    def tables(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        small = powers(matrix)
        return small, powers(small[-1] @ matrix)

    def predicted(law: _Laws, belief: jax.Array, group: jax.Array, visit: jax.Array, now: jax.Array) -> jax.Array:
        """Returns the belief of some prompts about round `now`, [K, P], by one member of the bank."""
        small, large = tables(law.moves[_IDLE])
        num_idle = jnp.clip(now - visit // 2 - 1, 0, _RADIX**2 - 1)
        apply = lambda belief, matrices: jnp.einsum("kp,pkl->lp", belief, matrices)
        moved = apply(belief, law.moves[1 + visit % 2])
        moved = apply(apply(moved, small[num_idle % _RADIX]), large[num_idle // _RADIX])
        return jnp.where((visit < 0)[None], law.initial[group].T, moved)

    def weights_of(learned: Learned) -> jax.Array:
        return jax.nn.softmax(learned.log_weights)

    def belief_table(learned: Learned) -> tuple[jax.Array, jax.Array]:
        """Returns laws of the next round, averaged over the bank.

        They are given the state after the last visit, by kind of visit and idle rounds since, [2, R * R, K, K], and of
        prompts never seen, [M + 1, K].
        """

        def of_model(law: _Laws) -> tuple[jax.Array, jax.Array]:
            small, large = tables(law.moves[_IDLE])
            idle = jnp.einsum("akl,blm->bakm", small, large).reshape(-1, num_states, num_states)
            return jnp.einsum("ckl,slm->cskm", law.moves[1:], idle), law.initial

        weights = weights_of(learned)
        return jax.tree.map(lambda each: jnp.tensordot(weights, each, 1), jax.vmap(of_model)(to_laws(learned)))

    def believed(table: Any, state: BinomialHMMState, position: jax.Array) -> jax.Array:
        """Returns the belief about one prompt in the next round, before corrections, [K]."""
        seen, unseen = table
        visit = state.visit[position]
        num_idle = jnp.clip(state.round - visit // 2 - 1, 0, _RADIX**2 - 1)
        moved = unpack(state.belief[:, position]) @ seen[visit % 2, num_idle]
        return jnp.where(visit < 0, unseen[group_of(state, position)], moved)

    def facts(state: BinomialHMMState, position: jax.Array) -> jax.Array:
        """Returns the inputs of the network about one prompt, [D]."""
        visit = state.visit[position]
        num_idle = jnp.maximum(state.round - visit // 2 - 1, 0).astype(jnp.float32)
        own = jnp.stack([jnp.ones_like(num_idle), (visit % 2).astype(jnp.float32), 0.5 * jnp.log1p(num_idle)])
        own = jnp.where(visit < 0, 0.0, own)
        general = jnp.stack([state.learned.log_odds, 0.1 * jnp.log1p(state.round.astype(jnp.float32))])
        group = (jnp.arange(num_groups) == group_of(state, position)).astype(jnp.float32)
        return jnp.concatenate([own, general, group, state.features[:, position]])

    def corrected(state: BinomialHMMState, position: jax.Array, belief: jax.Array) -> jax.Array:
        """Returns a belief as predictions have it, [K]."""
        if net is None:
            return belief
        return net.law(state.learned.net, facts(state, position), log_offset(belief))

    def expected(state: BinomialHMMState, values: np.ndarray, positions: jax.Array) -> jax.Array:
        """Returns what some prompts are worth in the next round, for values [V, K], [V, P]."""
        table = belief_table(state.learned)
        worth = jnp.asarray(values, jnp.float32)
        of_one = lambda position: worth @ corrected(state, position, believed(table, state, position))
        return lax.map(of_one, positions, batch_size=_BLOCK).T

    def unpack(belief: jax.Array) -> jax.Array:
        return belief.astype(jnp.float32) / 65535 if is_compact else belief

    def pack(belief: jax.Array) -> jax.Array:
        return jnp.round(belief * 65535).astype(jnp.uint16) if is_compact else belief

    def group_of(state: BinomialHMMState, positions: Any) -> jax.Array:
        if num_groups:
            return state.group[positions].astype(jnp.int32)
        return jnp.zeros(state.visit[positions].shape, jnp.int32)

    def init(num_prompts: int, first_id: Any = 0) -> BinomialHMMState:
        group = jnp.zeros((), jnp.uint8)
        if groups is not None:
            positions = jnp.minimum(first_id + jnp.arange(num_prompts), groups.size - 1)
            group = jnp.asarray(groups)[positions]
        learned = Learned(
            initial=jnp.zeros((num_models, num_groups + 1, num_states), jnp.float32),
            moves=jnp.zeros((num_models, 3, num_states, num_states), jnp.float32),
            log_weights=jnp.zeros(num_models, jnp.float32),
            log_odds=jnp.zeros((), jnp.float32),
            net=() if net is None else net.init(),
        )
        positions = jnp.minimum(first_id + jnp.arange(num_prompts), feature_table.shape[1] - 1)
        state = BinomialHMMState(
            belief=jnp.zeros((num_states, num_prompts), jnp.uint16 if is_compact else jnp.float32),
            visit=jnp.full(num_prompts, -1, jnp.int32),
            score=jnp.zeros(num_prompts, jnp.float32),
            group=group,
            features=jnp.asarray(feature_table)[:, positions],
            round=jnp.zeros((), jnp.int32),
            learned=learned,
        )
        return state._replace(score=expected(state, informative[None], jnp.arange(num_prompts))[0])

    def predict(state: BinomialHMMState) -> Prediction:
        values = np.stack([informative, rates, variances])
        return Prediction(*expected(state, values, jnp.arange(state.visit.shape[0])))

    def laws_of(state: BinomialHMMState, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the belief about some prompts in the next round, and the same corrected, [K, P] each."""
        table = belief_table(state.learned)
        belief = jax.vmap(lambda position: believed(table, state, position), out_axes=1)(positions)
        of_each = jax.vmap(lambda position, column: corrected(state, position, column), in_axes=(0, 1), out_axes=1)
        return belief, of_each(positions, belief)

    def outcome_probs(state: BinomialHMMState, positions: jax.Array) -> jax.Array:
        return jnp.asarray(probs_of_states, jnp.float32) @ laws_of(state, positions)[1]

    def draw(state: BinomialHMMState, bits: jax.Array) -> Prediction:
        everybody = jnp.arange(state.visit.shape[0])
        _, laws = laws_of(state, everybody)
        drawn = draws.state_of(laws, bits[0])
        return Prediction(*(jnp.asarray(values, jnp.float32)[drawn] for values in (informative, rates, variances)))

    def observe(
        state: BinomialHMMState, ids: jax.Array, successes: jax.Array, counts: jax.Array, axis_name: str | None = None
    ) -> BinomialHMMState:
        seen = visits(state.visit.shape[0], ids, successes, counts)
        positions, successes, failures = seen.positions, seen.successes, seen.counts - seen.successes
        logs = jnp.asarray(log_rates, jnp.float32)
        as_row = lambda values: values.astype(jnp.float32)[None]
        log_likelihood = logs[0][:, None] * as_row(successes) + logs[1][:, None] * as_row(failures)
        likelihood = jnp.exp(log_likelihood - log_likelihood.max(axis=0, keepdims=True))  # [K, P]
        belief, visit = unpack(state.belief[:, positions]), state.visit[positions]
        group = group_of(state, positions)

        def log_evidence(logs_of_laws: _Laws) -> tuple[jax.Array, jax.Array]:
            law = jax.tree.map(jnp.exp, logs_of_laws)
            moved = predicted(law, belief, group, visit, state.round)
            evidence = jnp.maximum(jnp.sum(moved * likelihood, axis=0), _SMALLEST)
            return jnp.sum(seen.weights * jnp.log(evidence)), moved

        # The derivative with respect to the log of a probability is how often it is expected to have been used.
        current = to_laws(state.learned)
        logs_of_laws = jax.tree.map(lambda probs: jnp.log(jnp.maximum(probs, _SMALLEST)), current)
        (log_gains, moved), used = jax.vmap(jax.value_and_grad(log_evidence, has_aux=True))(logs_of_laws)
        log_gains, used = pooled((log_gains, used), axis_name)
        predicted_belief = jnp.tensordot(weights_of(state.learned), moved, 1)
        learned = update(state.learned, current, used, log_gains)
        correct, wrong = (array.astype(jnp.float32) for array in (successes, failures))
        if net is not None:
            inputs = jax.vmap(lambda position: facts(state, position))(positions)
            offsets = log_offset(predicted_belief.T)
            law = net.law
            first_law = jax.vmap(lambda *given: law(state.learned.net, *given))(inputs, offsets).T
            predicted_belief = jnp.where((visit < 0)[None], first_law, predicted_belief)
            # Every visit is of one shard, so sums over shards are the visits themselves.
            mine = Rows(inputs * seen.weights[:, None], offsets * seen.weights[:, None], correct, wrong)
            rows = pooled(mine, axis_name)
            learned = learned._replace(net=net.learn(state.learned.net, rows, state.round))
        sums = pooled(jnp.stack([correct.sum(), wrong.sum()]), axis_name)
        log_odds = jnp.log((sums[0] + 1) / (sums[1] + 1))
        kept = jnp.where(sums.sum() > 0, _ODDS_DECAY, 1.0)
        learned = learned._replace(log_odds=kept * learned.log_odds + (1 - kept) * log_odds)

        joint = predicted_belief * likelihood
        posterior = joint / jnp.maximum(joint.sum(axis=0, keepdims=True), _SMALLEST)
        is_partial = (successes > 0) & (failures > 0)
        state = state._replace(
            belief=state.belief.at[:, seen.targets].set(pack(posterior), mode="drop"),
            visit=state.visit.at[seen.targets].set(2 * state.round + is_partial.astype(jnp.int32), mode="drop"),
            round=state.round + 1,
            learned=learned,
        )
        return refresh(state, seen.targets)

    def update(learned: Learned, current: _Laws, used: _Laws, log_gains: jax.Array) -> Learned:
        keep = jnp.asarray(decays, jnp.float32)
        # Prompts that were never seen move like idle ones.
        initial = (learned.initial + used.initial) @ current.moves[:, _IDLE]
        log_weights = _WEIGHT_DECAY * learned.log_weights + log_gains
        return Learned(
            initial=keep[:, None, None] * initial,
            moves=keep[:, None, None, None] * (learned.moves + used.moves),
            log_weights=log_weights - log_weights.max(),
            log_odds=learned.log_odds,
            net=learned.net,
        )

    def refresh(state: BinomialHMMState, visited: jax.Array) -> BinomialHMMState:
        """Brings scores up to date: of visited prompts, and of a part of the others, in turns."""
        num_prompts = state.visit.shape[0]
        size = min(_REFRESH_SIZE, num_prompts)
        first = jnp.minimum((state.round * size) % (-(-num_prompts // size) * size), num_prompts - size)
        score_of = lambda positions: expected(state, informative[None], positions)[0]
        scores = score_of(first + jnp.arange(size))
        score = lax.dynamic_update_slice_in_dim(state.score, scores, first, axis=0)
        if size < num_prompts:
            score = score.at[visited].set(score_of(jnp.minimum(visited, num_prompts - 1)), mode="drop")
        return state._replace(score=score)

    return Predictor(init=init, predict=predict, observe=observe, outcome_probs=outcome_probs, draw=draw)
