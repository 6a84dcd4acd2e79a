"""A hidden Markov model of success rates whose parameters are learned online, from all prompts together.

The hidden state of a prompt is its success rate, on a grid that is uniform in logit space, so that a prompt that is
rarely solved and a prompt that is never solved have different states. The likelihood of a visit with m of G correct
completions is binomial. The distribution of rates over prompts and the transition matrices of rates between rounds are
learned with several decays; see `_rate_bank`.

A belief is written only when its prompt is visited. The transitions of the idle rounds since then are a power of one
matrix, the same for all prompts, which is applied when a prediction is computed. Of the prompts without a visit in a
round, only scores are rewritten, for at most `_REFRESH_SIZE` prompts.

Small networks correct the predictions of this model. Their inputs are the belief, its age, the prompt's group and
features, and the current success rate over all prompts; see `_online_net`. The corrections change predictions but not
beliefs, with one exception: the belief after a first visit is computed from the corrected prediction, so that it
depends on the features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks, _exact
from dps_jax.hmm import emissions
from dps_jax.predictors import _draws
from dps_jax.predictors._online_net import OnlineNet, Rows, log_offset, online_net
from dps_jax.predictors._outcomes import check_hardness, worth_of_outcomes
from dps_jax.predictors._rate_bank import BankState, Past, RateBank, Table, believed, rate_bank
from dps_jax.predictors._side_information import numbered, of_prompts, standardised
from dps_jax.predictors._visits import RoundVisits, pooled, visits
from dps_jax.types import Prediction, Predictor

# Share of the learned counts that survives a round, one for each member of the bank.
DECAYS = (0.65, 0.8, 0.9, 0.97, 1.0)
# Logits of the outermost states.
_LARGEST_LOGIT = 6.0
# Number of prompts, besides the visited ones, whose scores are updated in a round.
_REFRESH_SIZE = 2**13
# Number of prompts that are predicted at a time, so that no array of matrices x all prompts is allocated; and number of
# scores that are computed at a time, which is smaller since a round may need only a few scores.
_BLOCK, _SCORE_BLOCK = 2**12, 2**10
# Number of inputs of the networks besides belief, group and features; and the decay per round of the moving average of
# the success rate over all prompts.
_NUM_FACTS, _ODDS_DECAY = 5, 0.9
_SMALLEST = 1e-30


class BinomialHMMLearned(NamedTuple):
    """Parameters learned from all prompts.

    Attributes:
      bank: the distribution of success rates over prompts, and the transition matrices of these rates.
      log_odds: moving average over rounds of the log-odds that a completion is correct, scalar.
      net: state of the networks that correct predictions; () without networks.
    """

    bank: BankState
    log_odds: jax.Array
    net: Any


class BinomialHMMState(NamedTuple):
    """The state of the predictor after some rounds.

    Attributes:
      belief: belief about each prompt's state just after the last visit, [K, N]; uint16 with `is_compact`.
      visit: twice the round of the last visit, plus 1 if the prompt was partially solved then, int32 [N]; -1 for
        prompts without visits.
      score: score of each prompt, as last updated, float32 [N]; see the option `optimism`.
      group: prompt group of each prompt, or L if it is not known, uint8 or int32 [N]; a scalar without groups.
      features: standardised features, float32 [D, N].
      round: number of rounds so far, int32 scalar.
      learned: parameters learned from all prompts.
    """

    belief: jax.Array
    visit: jax.Array
    score: jax.Array
    group: jax.Array
    features: jax.Array
    round: jax.Array
    learned: BinomialHMMLearned


def grid(num_states: int) -> np.ndarray:
    """Returns the success rates of the states, float64 [K]."""
    return 1 / (1 + np.exp(-np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, num_states)))


class _Model(NamedTuple):
    """Constants of the method.

    Attributes:
      log_rates: log probabilities of a correct and of a wrong completion in each state, [2, K].
      values: P(0 < m < G), success rate and variance of rewards in each state, [3, K].
      outcome_probs: probabilities of m = 0, ..., G in each state, [G + 1, K].
      worth: value of each state, [K]; prompts are ranked by its expectation.
      groups: group of every prompt, [N], or None.
      num_groups: number of prompt groups, L.
      features: standardised features, [D, N].
      bank: functions that learn the distribution of rates and their transitions.
      net: functions of the networks that correct predictions, or None.
      is_compact: whether beliefs are stored in 16 bits.
      optimism: option of `binomial_hmm`.
    """

    log_rates: np.ndarray
    values: np.ndarray
    outcome_probs: np.ndarray
    worth: np.ndarray
    groups: np.ndarray | None
    num_groups: int
    features: np.ndarray
    bank: RateBank
    net: OnlineNet | None
    is_compact: bool
    optimism: float


def binomial_hmm(
    *,
    group_ids: Any = None,
    features: Any = None,
    num_states: int = 16,
    group_size: int = 8,
    decays: tuple[float, ...] = DECAYS,
    is_compact: bool = True,
    is_corrected: bool = True,
    optimism: float = 1.0,
    hardness: float = 0.0,
) -> Predictor:
    r"""Returns the predictor that learns a hidden Markov model of success rates online, from all prompts.

    The hidden state of a prompt is its success rate $\theta_k$ on a grid that is uniform in logit space. In state k,
    $p(m \mid k) = \binom{G}{m} \theta_k^m (1 - \theta_k)^{G - m}$ for m correct completions of G. Recursive EM learns
    the distribution of rates over prompts, by prompt group, and three transition matrices: for idle prompts, for
    visited prompts whose completions were all correct or all wrong, and for partially solved prompts. One such model is
    learned for each of several decays, and their predictions are averaged, weighted by recent predictive likelihood.
    Small networks, also trained online, correct these predictions; features are among their inputs. See
    docs/predictors.md.

    Args:
      group_ids: group of each prompt (level, source, topic), int [N] in [-1, L); -1 for prompts whose group is not
        known. None means that no group is known.
      features: features of the prompts, finite, [N, D], or None.
      num_states: number of success rates on the grid, K.
      group_size: number of completions of a predicted completion group, G; visits may have other counts.
      decays: shares of the learned counts that survive a round, each in (0, 1], one for each model in the average.
      is_compact: whether to store beliefs in 16 bits. Before corrections, P(0 < m < G) changes by less than 1e-3. The
        networks, which are then trained on rounded inputs, amplify this difference, but it remains smaller than the
        differences between the networks.
      is_corrected: whether to correct the predictions by networks; features are used only by these networks.
      hardness: exponent in the value (1 - m / G) ** hardness of an informative outcome, 0 < m < G. The selector ranks
        prompts by the expectation of this value; with 0 it is P(0 < m < G).
      optimism: number of standard deviations over the networks that are added to the score of a prompt. The score is
        the mean of the expected value with and without corrections, plus this term. The networks are trained only on
        selected prompts and may undervalue others. About such prompts the networks disagree, and the uncorrected belief
        moves back to the belief about prompts without visits. Predictions do not depend on this option.

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> predictor = predictors.binomial_hmm(group_ids=[0, 0, 1])  # the level of each prompt
      >>> prediction = jax.jit(predictor.predict)(predictor.init(3))
      >>> print(np.asarray(prediction.success_rate).round(2))  # before any visit
      [0.5 0.5 0.5]

    Source: recursive EM, Cappé and Moulines, arXiv 0712.4273; averages with decayed weights, Raftery et al.,
    Technometrics 2010; the combination is ours.
    """
    _checks.check_int("num_states", num_states, at_least=3, at_most=64)
    _checks.check_group_size(group_size)
    shares = _checks.as_numbers("decays", decays)
    if shares.ndim != 1 or not shares.size or not np.all((shares > 0) & (shares <= 1)):
        raise ValueError(f"decays: expected one or more numbers in (0, 1], got {decays!r}")
    _checks.check_bool("is_compact", is_compact)
    _checks.check_bool("is_corrected", is_corrected)
    check_hardness(hardness)
    _checks.check_number("optimism", optimism, at_least=0)
    groups, num_groups = numbered(group_ids)
    if groups is not None and num_groups < 255:
        groups = groups.astype(np.uint8)
    rates = grid(num_states)
    emission = emissions.binomial(rates.tolist())
    probs_of_states = emissions.outcome_probs(emission, group_size)
    informative = emissions.informative_probs(emission, group_size)
    feature_table = standardised(features)
    model = _Model(
        log_rates=np.stack([np.log(rates), np.log1p(-rates)]),
        values=np.stack([informative, rates, emissions.reward_variances(emission, group_size)]),
        outcome_probs=probs_of_states,
        worth=worth_of_outcomes(group_size, hardness) @ probs_of_states,
        groups=groups,
        num_groups=num_groups,
        features=feature_table,
        bank=rate_bank(num_states, num_groups, tuple(shares.tolist())),
        net=online_net(_NUM_FACTS + num_groups + len(feature_table), rates) if is_corrected else None,
        is_compact=is_compact,
        optimism=optimism,
    )
    bound = lambda function: functools.partial(function, model)
    return Predictor(
        init=bound(_init),
        predict=bound(_predict),
        observe=bound(_observe),
        outcome_probs=bound(_outcome_probs),
        draw=bound(_draw),
    )


def _unpacked(model: _Model, belief: jax.Array) -> jax.Array:
    return belief.astype(jnp.float32) / 65535 if model.is_compact else belief


def _packed(model: _Model, belief: jax.Array) -> jax.Array:
    return jnp.round(belief * 65535).astype(jnp.uint16) if model.is_compact else belief


def _past_of(model: _Model, state: BinomialHMMState, positions: Any) -> Past:
    """Returns the `Past` of one or more prompts; position N + l stands for a prompt of group l without visits."""
    num_prompts = state.visit.shape[0]
    is_known = positions < num_prompts
    visit = jnp.where(is_known, state.visit.at[positions].get(mode="clip"), -1)
    group = jnp.maximum(positions - num_prompts, 0)
    if model.num_groups:
        group = jnp.where(is_known, state.group.at[positions].get(mode="clip").astype(jnp.int32), group)
    return Past(
        belief=_unpacked(model, state.belief.at[:, positions].get(mode="clip")),
        is_seen=visit >= 0,
        is_partial=visit % 2,
        num_idle=jnp.maximum(state.round - visit // 2 - 1, 0),
        group=group,
    )


def _inputs(model: _Model, state: BinomialHMMState, position: jax.Array, past: Past) -> jax.Array:
    """Returns the inputs of the networks about one prompt, [D]."""
    num_idle = past.num_idle.astype(jnp.float32)
    own = jnp.stack([jnp.ones_like(num_idle), past.is_partial.astype(jnp.float32), 0.5 * jnp.log1p(num_idle)])
    own = jnp.where(past.is_seen, own, 0.0)
    general = jnp.stack([state.learned.log_odds, 0.1 * jnp.log1p(state.round.astype(jnp.float32))])
    group = (jnp.arange(model.num_groups) == past.group).astype(jnp.float32)
    return jnp.concatenate([own, general, group, state.features[:, position]])


def _of_one(
    model: _Model,
    state: BinomialHMMState,
    table: Table,
    function: Callable[..., jax.Array],
    position: jax.Array,
    *more: jax.Array,
) -> jax.Array:
    """Returns function(belief [K], predictions [J, K], *more) for one prompt.

    The belief is about the rate in the next round. The predictions are this belief as corrected by each of J networks;
    without networks, J = 1 and the prediction is the belief itself.
    """
    past = _past_of(model, state, position)
    belief = believed(table, past)
    if model.net is None:
        return function(belief, belief[None], *more)
    inputs = _inputs(model, state, position, past)
    return function(belief, model.net.corrected(state.learned.net, inputs, log_offset(belief)), *more)


def _mapped(
    model: _Model, state: BinomialHMMState, function: Callable[..., jax.Array], positions: jax.Array, *more: Any
) -> Any:
    """Returns the result of `_of_one` for some prompts, [P, ...]."""
    of_one = jax.vmap(functools.partial(_of_one, model, state, model.bank.table(state.learned.bank), function))
    num_blocks = -(-positions.size // _BLOCK)
    if num_blocks <= 1:
        return of_one(positions, *more)
    # Blocks of equal size, so that one compiled program serves all.
    size = -(-positions.size // num_blocks)
    in_blocks = lambda leaf: jnp.resize(leaf, (num_blocks, size))
    found = lax.map(lambda given: of_one(*given), jax.tree.map(in_blocks, (positions, *more)))
    return found.reshape(-1, *found.shape[2:])[: positions.size]


def _expected(model: _Model, state: BinomialHMMState, values: np.ndarray, positions: jax.Array) -> jax.Array:
    """Returns the expectations of values [R, K] of the states for some prompts in the next round, [R, P]."""
    worth = jnp.asarray(values, jnp.float32)
    return _mapped(model, state, lambda _, by_net: _exact.matmul(worth, by_net.mean(axis=0)), positions).T


def _score(model: _Model, belief: jax.Array, by_net: jax.Array) -> jax.Array:
    """Returns the score of one prompt, scalar."""
    worth = jnp.asarray(model.worth, jnp.float32)
    worths = _exact.matmul(by_net, worth)
    return (worths.mean() + _exact.matmul(belief, worth)) / 2 + model.optimism * worths.std()


def _init(model: _Model, num_prompts: int, first_id: Any = 0) -> BinomialHMMState:
    # One compiled program instead of a hundred small ones; tables are arguments, so that they are not constants in it.
    first_state = jax.jit(functools.partial(_first_state, model, num_prompts))
    return first_state(first_id, model.groups, model.features)


def _first_state(model: _Model, num_prompts: int, first_id: Any, groups: Any, features: Any) -> BinomialHMMState:
    at = lambda table: of_prompts(table, num_prompts, first_id)
    num_states = model.values.shape[1]
    return BinomialHMMState(
        belief=jnp.zeros((num_states, num_prompts), jnp.uint16 if model.is_compact else jnp.float32),
        visit=jnp.full(num_prompts, -1, jnp.int32),
        # All rates are equally likely, and the corrections are still 0.
        score=jnp.full(num_prompts, model.worth.mean(), jnp.float32),
        group=jnp.zeros((), jnp.uint8) if groups is None else at(groups),
        features=at(features),
        round=jnp.zeros((), jnp.int32),
        learned=BinomialHMMLearned(
            bank=model.bank.init(),
            log_odds=jnp.zeros((), jnp.float32),
            net=() if model.net is None else model.net.init(),
        ),
    )


def _predict(model: _Model, state: BinomialHMMState) -> Prediction:
    return Prediction(*_expected(model, state, model.values, jnp.arange(state.visit.shape[0])))


def _outcome_probs(model: _Model, state: BinomialHMMState, positions: jax.Array) -> jax.Array:
    return _expected(model, state, model.outcome_probs, positions)


def _draw(model: _Model, state: BinomialHMMState, bits: jax.Array) -> Prediction:
    values = jnp.asarray(model.values, jnp.float32)
    of_one = lambda _, by_net, word: values[:, _draws.state_of(by_net.mean(axis=0), word)]
    return Prediction(*_mapped(model, state, of_one, jnp.arange(state.visit.shape[0]), bits[0]).T)


def _learned(
    model: _Model, state: BinomialHMMState, seen: RoundVisits, likelihood: jax.Array, axis_name: str | None
) -> tuple[BinomialHMMLearned, jax.Array]:
    """Returns the learned parameters after a round, and the beliefs about the visited prompts before it, [K, P].

    Args:
      model: constants of the method.
      state: state before the round.
      seen: visits of the round.
      likelihood: likelihood of the outcome of each visit in each state, up to a factor per visit, [K, P].
      axis_name: name of the mesh axis of the prompts, or None.
    """
    past = _past_of(model, state, seen.positions)
    later, before = model.bank.learn(state.learned.bank, past, likelihood, seen.weights, axis_name)
    learned = state.learned._replace(bank=later)
    correct, wrong = (array.astype(jnp.float32) for array in (seen.successes, seen.counts - seen.successes))
    if model.net is not None:
        one_past = lambda position: _past_of(model, state, position)
        inputs = jax.vmap(lambda position: _inputs(model, state, position, one_past(position)))(seen.positions)
        offsets = log_offset(before.T)
        of_net = functools.partial(model.net.corrected, state.learned.net)
        at_first_visits = jax.vmap(lambda *given: of_net(*given).mean(axis=0))(inputs, offsets).T
        before = jnp.where(past.is_seen[None], before, at_first_visits)
        # Every visit belongs to one shard and is 0 on the others, so a sum over shards contains each visit once.
        mine = Rows(inputs * seen.weights[:, None], offsets * seen.weights[:, None], correct, wrong)
        net = model.net.learn(state.learned.net, pooled(mine, axis_name), state.round)
        learned = learned._replace(net=net)
    sums = pooled(jnp.stack([correct.sum(), wrong.sum()]), axis_name)
    log_odds = jnp.log((sums[0] + 1) / (sums[1] + 1))
    kept = jnp.where(sums.sum() > 0, _ODDS_DECAY, 1.0)
    return learned._replace(log_odds=kept * learned.log_odds + (1 - kept) * log_odds), before


def _observe(
    model: _Model,
    state: BinomialHMMState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> BinomialHMMState:
    seen = visits(state.visit.shape[0], ids, successes, counts)
    successes, failures = seen.successes, seen.counts - seen.successes
    logs = jnp.asarray(model.log_rates, jnp.float32)
    as_row = lambda values: values.astype(jnp.float32)[None]
    log_likelihood = logs[0][:, None] * as_row(successes) + logs[1][:, None] * as_row(failures)
    likelihood = jnp.exp(log_likelihood - log_likelihood.max(axis=0, keepdims=True))  # [K, P]
    learned, before = _learned(model, state, seen, likelihood, axis_name)
    joint = before * likelihood
    posterior = joint / jnp.maximum(joint.sum(axis=0, keepdims=True), _SMALLEST)
    is_partial = (successes > 0) & (failures > 0)
    state = state._replace(
        belief=state.belief.at[:, seen.targets].set(_packed(model, posterior), mode="drop"),
        visit=state.visit.at[seen.targets].set(2 * state.round + is_partial.astype(jnp.int32), mode="drop"),
        round=state.round + 1,
        learned=learned,
    )
    return _refreshed(model, state, seen.targets)


def _refreshed(model: _Model, state: BinomialHMMState, visited: jax.Array) -> BinomialHMMState:
    """Returns the state with updated scores for the visited prompts and for one part of the others, in turn.

    Without features, prompts without visits share one score per group, so only visited prompts have a cost.
    """
    num_prompts = state.visit.shape[0]
    size = min(_REFRESH_SIZE, num_prompts)
    first = jnp.minimum((state.round * size) % (-(-num_prompts // size) * size), num_prompts - size)
    in_turn = lambda leaf: lax.dynamic_slice_in_dim(leaf, first, size)
    is_own = (in_turn(state.visit) >= 0) | (len(model.features) > 0)
    places = jnp.where((visited >= first) & (visited < first + size), visited - first, size)
    is_due = is_own.at[places].set(False, mode="drop")
    # Same as `jnp.flatnonzero`, which would compile twice as many programs.
    rank = jnp.where(is_due, jnp.cumsum(is_due, dtype=jnp.int32) - 1, size)
    due = jnp.full(size, -1, jnp.int32).at[rank].set(jnp.arange(size, dtype=jnp.int32), mode="drop")
    num_unseen = model.num_groups + 1
    last = num_prompts + num_unseen
    positions = jnp.concatenate(
        [
            num_prompts + jnp.arange(num_unseen, dtype=jnp.int32),
            jnp.where(visited < num_prompts, visited, last),
            jnp.where(due >= 0, first + due, last),
        ]
    )
    num_scores = num_unseen + visited.size + jnp.sum(is_due)
    found = _first_scores(model, state, positions, num_scores)
    score = in_turn(state.score)
    group = in_turn(state.group).astype(jnp.int32) if model.num_groups else 0
    score = jnp.where(is_own, score, found[:num_unseen][group])
    score = lax.dynamic_update_slice_in_dim(state.score, score, first, axis=0)
    return state._replace(score=score.at[positions].set(found, mode="drop"))


def _first_scores(model: _Model, state: BinomialHMMState, positions: jax.Array, num_scores: jax.Array) -> jax.Array:
    """Returns the scores of the first `num_scores` of some prompts, [P]; later entries are undefined."""
    size = min(_SCORE_BLOCK, positions.size)
    of_one = jax.vmap(
        functools.partial(_of_one, model, state, model.bank.table(state.learned.bank), functools.partial(_score, model))
    )

    def of_block(index: jax.Array, scores: jax.Array) -> jax.Array:
        # The last block overlaps the block before it.
        first = jnp.minimum(index * size, positions.size - size)
        of_these = of_one(lax.dynamic_slice_in_dim(positions, first, size))
        return lax.dynamic_update_slice_in_dim(scores, of_these, first, axis=0)

    num_blocks = (num_scores + size - 1) // size
    return lax.fori_loop(0, num_blocks, of_block, jnp.zeros(positions.size, jnp.float32))
