"""Small networks that map what is known about a prompt to the law of its next outcome, trained online on all visits.

Their inputs are the prompt's features and group, if there are any, and a summary of its own visits: the last outcome, a
moving average, how many visits there were and how long ago the last one was; and how often prompts succeed at present.
Their output is a law over success rates on a grid; see `online_net`. Prompts that were never seen are predicted from
their features and group alone.

Source: in the spirit of GPS (arXiv 2602.01970), which predicts prompts by a shared model instead of one law per prompt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax.hmm import emissions
from dps_jax.predictors.online_net import NetState, Rows, online_net
from dps_jax.predictors.side_information import numbered, of_prompts, standardised
from dps_jax.predictors.visits import pooled, visits
from dps_jax.types import Prediction, Predictor

# Success rates of the mixture: how many, and the logits of the outermost.
_NUM_RATES, _LARGEST_LOGIT = 16, 6.0
# Share of the moving average of a prompt that survives a visit, and of the average of everybody that survives a round.
_PROMPT_DECAY, _EVERYBODY_DECAY = 0.5, 0.9
# Prompts that are predicted at a time, so that no array of hidden units by prompts is ever held.
_BLOCK = 2**14
_NUM_SUMMARIES = 8
# Share of averaged parameters that survives a round, of every network; over few rounds, as there is much to learn.
_AVERAGE_DECAYS = (0.5, 0.5, 0.5, 0.5)


class SharedNetState(NamedTuple):
    """What is known after some rounds.

    Attributes:
      last: share of correct completions at the last visit, float32 [N].
      average: moving average of these shares, float32 [N].
      num_visits: float32 [N].
      visit: round of the last visit, int32 [N]; -1 if never seen.
      features: standardised, float32 [D, N].
      group: int32 [N]; the number of groups where it is not known.
      round: rounds so far, int32 scalar.
      everybody: moving average of the success rate of a round, float32 scalar.
      net: the networks.
    """

    last: jax.Array
    average: jax.Array
    num_visits: jax.Array
    visit: jax.Array
    features: jax.Array
    group: jax.Array
    round: jax.Array
    everybody: jax.Array
    net: NetState


def shared_net(*, features: Any = None, group_ids: Any = None, group_size: int = 8, seed: int = 0) -> Predictor:
    """Returns the predictor.

    Args:
      features: finite, [N, D], or None.
      group_ids: int [N] in [-1, M), the group of each prompt; -1 where it is not known, None where none is.
      group_size: G of the groups that are predicted; those observed may differ.
      seed: of the first parameters and of the samples of visits.

    Raises:
      ValueError: for an option out of range.
    """
    _checks.check_int("group_size", group_size, at_least=1)
    _checks.check_int("seed", seed, at_least=0, at_most=2**63 - 1)
    table = standardised(features)
    groups, num_groups = numbered(group_ids)
    if groups is None:
        groups = np.zeros(1, np.int32)
    rates = 1 / (1 + np.exp(-np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, _NUM_RATES)))
    emission = emissions.binomial(rates.tolist())
    probs_of_rates = emissions.outcome_probs(emission, group_size)
    informative = emissions.informative_probs(emission, group_size)
    variances = emissions.reward_variances(emission, group_size)
    net = online_net(len(table) + num_groups + _NUM_SUMMARIES, rates, average_decays=_AVERAGE_DECAYS, seed=seed)
    offset = np.zeros(_NUM_RATES, np.float32)

    def init(num_prompts: int, first_id: Any = 0) -> SharedNetState:
        zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
        return SharedNetState(
            last=zeros(num_prompts),
            average=zeros(num_prompts),
            num_visits=zeros(num_prompts),
            visit=jnp.full(num_prompts, -1, jnp.int32),
            features=of_prompts(table, num_prompts, first_id),
            group=of_prompts(groups, num_prompts, first_id),
            round=jnp.zeros((), jnp.int32),
            everybody=jnp.full((), 0.5, jnp.float32),
            net=net.init(),
        )

    def inputs_of(state: SharedNetState, position: Any) -> jax.Array:
        """Returns the inputs of one prompt, [D]."""
        last, average, num_visits, visit = (
            leaf[position] for leaf in (state.last, state.average, state.num_visits, state.visit)
        )
        is_seen = visit >= 0
        # As if by groups of eight, half a completion being added to either side: within 3 of 0.
        logit = lambda share: jnp.log((8 * share + 0.5) / (8 * (1 - share) + 0.5))
        summaries = jnp.stack(
            [
                jnp.asarray(1.0, jnp.float32),
                logit(last),
                logit(average),
                (last == 0).astype(jnp.float32),
                (last == 1).astype(jnp.float32),
                jnp.log1p(num_visits),
                0.5 * jnp.log1p((state.round - visit - 1).astype(jnp.float32)),
            ]
        )
        own = jnp.where(is_seen, summaries, 0.0)
        group = (jnp.arange(num_groups) == state.group[position]).astype(jnp.float32)
        return jnp.concatenate([own, logit(state.everybody)[None], state.features[:, position], group])

    def law_of(state: SharedNetState, position: Any) -> jax.Array:
        return net.corrected(state.net, inputs_of(state, position), jnp.asarray(offset)).mean(axis=0)

    def predict(state: SharedNetState) -> Prediction:
        values = jnp.asarray(np.stack([informative, rates, variances]), jnp.float32)
        everybody = jnp.arange(state.visit.shape[0])
        return Prediction(*lax.map(lambda n: values @ law_of(state, n), everybody, batch_size=_BLOCK).T)

    def outcome_probs(state: SharedNetState, positions: jax.Array) -> jax.Array:
        laws = jax.vmap(lambda position: law_of(state, position), out_axes=1)(positions)
        return jnp.asarray(probs_of_rates, jnp.float32) @ laws

    def observe(
        state: SharedNetState, ids: jax.Array, successes: jax.Array, counts: jax.Array, axis_name: str | None = None
    ) -> SharedNetState:
        seen = visits(state.visit.shape[0], ids, successes, counts)
        inputs = jax.vmap(lambda position: inputs_of(state, position))(seen.positions) * seen.weights[:, None]
        correct, wrong = (array.astype(jnp.float32) for array in (seen.successes, seen.counts - seen.successes))
        # Every visit is of one shard, so sums over shards are the visits themselves.
        offsets = jnp.broadcast_to(jnp.asarray(offset), (inputs.shape[0], offset.size))
        of_round = Rows(
            offsets=offsets, **pooled({"inputs": inputs, "successes": correct, "failures": wrong}, axis_name)
        )
        share = correct / jnp.maximum(correct + wrong, 1.0)
        average = state.average[seen.positions]
        is_first = state.visit[seen.positions] < 0
        put = lambda leaf, values: leaf.at[seen.targets].set(values, mode="drop")
        total = jnp.maximum(jnp.sum(of_round.successes + of_round.failures), 1.0)
        everybody = _EVERYBODY_DECAY * state.everybody + (1 - _EVERYBODY_DECAY) * jnp.sum(of_round.successes) / total
        return state._replace(
            last=put(state.last, share),
            average=put(
                state.average,
                jnp.where(is_first, share, _PROMPT_DECAY * average + (1 - _PROMPT_DECAY) * share),
            ),
            num_visits=put(state.num_visits, state.num_visits[seen.positions] + 1),
            visit=put(state.visit, state.round),
            round=state.round + 1,
            everybody=jnp.where(jnp.any(of_round.successes + of_round.failures > 0), everybody, state.everybody),
            net=net.learn(state.net, of_round, state.round),
        )

    return Predictor(init=init, predict=predict, observe=observe, outcome_probs=outcome_probs)
