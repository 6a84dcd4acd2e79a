"""Small networks that map the history and features of a prompt to the distribution of its next outcome.

The networks are trained online. Their inputs are the prompt's features and group, if there are any; a summary of its
visits (the last outcome, a moving average, the number of visits, and the number of rounds since the last one); and the
current success rate over all prompts. Their output is a distribution over success rates on a grid; see `_online_net`.
Prompts without visits are predicted from their features and group alone.

Source: in the spirit of GPS (arXiv 2602.01970), which predicts the outcomes of all prompts with one shared model.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks, _exact
from dps_jax.hmm import emissions
from dps_jax.predictors._online_net import NetState, OnlineNet, Rows, online_net
from dps_jax.predictors._side_information import numbered, of_prompts, standardised
from dps_jax.predictors._visits import pooled, visits
from dps_jax.types import Prediction, Predictor

# Number of success rates of the mixture, and the logits of the outermost rates.
_NUM_RATES, _LARGEST_LOGIT = 16, 6.0
# Decay per visit of the moving average of a prompt, and decay per round of the moving average over all prompts.
_PROMPT_DECAY, _POOL_DECAY = 0.5, 0.9
# Number of prompts that are predicted at a time, so that no array of hidden units x all prompts is allocated.
_BLOCK = 2**14
_NUM_SUMMARIES = 8
# Decay per round of the averaged parameters of each network. The average is over few rounds, since these networks have
# more to learn than networks that correct a model.
_AVERAGE_DECAYS = (0.5, 0.5, 0.5, 0.5)


class SharedNetState(NamedTuple):
    """The state of the predictor after some rounds.

    Attributes:
      last: share of correct completions at the last visit of each prompt, float32 [N].
      average: moving average of these shares, float32 [N].
      num_visits: number of visits of each prompt, float32 [N].
      visit: round of the last visit, int32 [N]; -1 for prompts without visits.
      features: standardised features, float32 [D, N].
      group: prompt group of each prompt, int32 [N]; L if it is not known.
      round: number of rounds so far, int32 scalar.
      pool_rate: moving average of the success rate of a round over all prompts, float32 scalar.
      net: state of the networks.
    """

    last: jax.Array
    average: jax.Array
    num_visits: jax.Array
    visit: jax.Array
    features: jax.Array
    group: jax.Array
    round: jax.Array
    pool_rate: jax.Array
    net: NetState


class _Model(NamedTuple):
    """Constants of the method.

    Attributes:
      features: standardised features, [D, N].
      groups: group of every prompt, [N].
      num_groups: number of prompt groups, L.
      values: P(0 < m < G), success rate and variance of rewards at each rate, [3, K].
      outcome_probs: probabilities of m = 0, ..., G at each rate, [G + 1, K].
      net: functions of the networks.
    """

    features: np.ndarray
    groups: np.ndarray
    num_groups: int
    values: np.ndarray
    outcome_probs: np.ndarray
    net: OnlineNet


def shared_net(*, features: Any = None, group_ids: Any = None, group_size: int = 8, seed: int = 0) -> Predictor:
    r"""Returns the predictor whose small networks use the features, group and past visits of each prompt.

    The mean of four networks is a distribution $w$ over success rates $\theta_k$ on a grid. The number m of correct
    completions of G is predicted by the mixture $\sum_k w_k \binom{G}{m} \theta_k^m (1 - \theta_k)^{G - m}$. The
    networks are trained online, on the log loss of the visits of each round and of visits from a replay buffer.

    Args:
      features: features of the prompts, finite, [N, D], or None.
      group_ids: group of each prompt, int [N] in [-1, L); -1 for prompts whose group is not known. None means that no
        group is known.
      group_size: number of completions of a predicted completion group, G; visits may have other counts.
      seed: seed of the initial parameters and of the samples from the replay buffer.

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> lengths = np.array([[12.0], [15.0], [11.0], [30.0], [28.0]])  # one feature of five prompts
      >>> predictor = predictors.shared_net(features=lengths)
      >>> jax.jit(predictor.outcome_probs)(predictor.init(5), np.array([0, 4])).shape  # P(m) for m = 0, ..., 8
      (9, 2)

    Source: in the spirit of GPS (arXiv 2602.01970), which predicts the outcomes of all prompts with one shared model.
    """
    _checks.check_group_size(group_size)
    _checks.check_int("seed", seed, at_least=0, at_most=2**63 - 1)
    table = standardised(features)
    groups, num_groups = numbered(group_ids)
    rates = 1 / (1 + np.exp(-np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, _NUM_RATES)))
    emission = emissions.binomial(rates.tolist())
    informative = emissions.informative_probs(emission, group_size)
    num_inputs = len(table) + num_groups + _NUM_SUMMARIES
    model = _Model(
        features=table,
        groups=np.zeros(1, np.int32) if groups is None else groups,
        num_groups=num_groups,
        values=np.stack([informative, rates, emissions.reward_variances(emission, group_size)]),
        outcome_probs=emissions.outcome_probs(emission, group_size),
        net=online_net(num_inputs, rates, average_decays=_AVERAGE_DECAYS, seed=seed),
    )
    bound = lambda function: functools.partial(function, model)
    return Predictor(
        init=bound(_init), predict=bound(_predict), observe=bound(_observe), outcome_probs=bound(_outcome_probs)
    )


def _init(model: _Model, num_prompts: int, first_id: Any = 0) -> SharedNetState:
    # One compiled program instead of fifty small ones; tables are arguments, so that they are not constants in it.
    return jax.jit(functools.partial(_first_state, model, num_prompts))(first_id, model.groups, model.features)


def _first_state(model: _Model, num_prompts: int, first_id: Any, groups: Any, features: Any) -> SharedNetState:
    zeros = lambda: jnp.zeros(num_prompts, jnp.float32)
    return SharedNetState(
        last=zeros(),
        average=zeros(),
        num_visits=zeros(),
        visit=jnp.full(num_prompts, -1, jnp.int32),
        features=of_prompts(features, num_prompts, first_id),
        group=of_prompts(groups, num_prompts, first_id),
        round=jnp.zeros((), jnp.int32),
        pool_rate=jnp.full((), 0.5, jnp.float32),
        net=model.net.init(),
    )


def _logit(share: jax.Array) -> jax.Array:
    """Returns the logit of a share of correct completions, as if out of 8, with 1/2 added to both counts.

    The result is within [-3, 3].
    """
    return jnp.log((8 * share + 0.5) / (8 * (1 - share) + 0.5))


def _inputs(model: _Model, state: SharedNetState, position: Any) -> jax.Array:
    """Returns the inputs of one prompt, [D]."""
    last, average, num_visits, visit = (
        leaf[position] for leaf in (state.last, state.average, state.num_visits, state.visit)
    )
    is_seen = visit >= 0
    summaries = jnp.stack(
        [
            jnp.asarray(1.0, jnp.float32),
            _logit(last),
            _logit(average),
            (last == 0).astype(jnp.float32),
            (last == 1).astype(jnp.float32),
            jnp.log1p(num_visits),
            0.5 * jnp.log1p((state.round - visit - 1).astype(jnp.float32)),
        ]
    )
    own = jnp.where(is_seen, summaries, 0.0)
    group = (jnp.arange(model.num_groups) == state.group[position]).astype(jnp.float32)
    return jnp.concatenate([own, _logit(state.pool_rate)[None], state.features[:, position], group])


def _probs_of_rates(model: _Model, state: SharedNetState, position: Any) -> jax.Array:
    """Returns the probabilities of the rates of one prompt, [K]."""
    offset = jnp.zeros(_NUM_RATES, jnp.float32)
    return model.net.corrected(state.net, _inputs(model, state, position), offset).mean(axis=0)


def _predict(model: _Model, state: SharedNetState) -> Prediction:
    values = jnp.asarray(model.values, jnp.float32)
    positions = jnp.arange(state.visit.shape[0])
    of_one = lambda position: _exact.matmul(values, _probs_of_rates(model, state, position))
    return Prediction(*lax.map(of_one, positions, batch_size=_BLOCK).T)


def _outcome_probs(model: _Model, state: SharedNetState, positions: jax.Array) -> jax.Array:
    probs = jax.vmap(lambda position: _probs_of_rates(model, state, position), out_axes=1)(positions)
    return _exact.matmul(jnp.asarray(model.outcome_probs, jnp.float32), probs)


def _observe(
    model: _Model,
    state: SharedNetState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> SharedNetState:
    seen = visits(state.visit.shape[0], ids, successes, counts)
    inputs = jax.vmap(lambda position: _inputs(model, state, position))(seen.positions) * seen.weights[:, None]
    correct, wrong = (array.astype(jnp.float32) for array in (seen.successes, seen.counts - seen.successes))
    # Every visit belongs to one shard and is 0 on the others, so a sum over shards contains each visit once.
    offsets = jnp.zeros((inputs.shape[0], _NUM_RATES), jnp.float32)
    of_round = Rows(offsets=offsets, **pooled({"inputs": inputs, "successes": correct, "failures": wrong}, axis_name))
    share = correct / jnp.maximum(correct + wrong, 1.0)
    average = state.average[seen.positions]
    is_first = state.visit[seen.positions] < 0
    put = lambda leaf, values: leaf.at[seen.targets].set(values, mode="drop")
    total = jnp.maximum(jnp.sum(of_round.successes + of_round.failures), 1.0)
    pool_rate = _POOL_DECAY * state.pool_rate + (1 - _POOL_DECAY) * jnp.sum(of_round.successes) / total
    is_any = jnp.any(of_round.successes + of_round.failures > 0)
    return state._replace(
        last=put(state.last, share),
        average=put(state.average, jnp.where(is_first, share, _PROMPT_DECAY * average + (1 - _PROMPT_DECAY) * share)),
        num_visits=put(state.num_visits, state.num_visits[seen.positions] + 1),
        visit=put(state.visit, state.round),
        round=state.round + 1,
        pool_rate=jnp.where(is_any, pool_rate, state.pool_rate),
        net=model.net.learn(state.net, of_round, state.round),
    )
