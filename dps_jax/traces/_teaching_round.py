"""One round of simulated training: select prompts, roll them out, update the policy, observe. See `_teaching`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from dps_jax.traces import _shared_facts
from dps_jax.traces._oracles import Oracle
from dps_jax.traces._shared_facts import Mix, Problems
from dps_jax.types import Selector

# Dynamic sampling may roll out at least this many batches in a round.
_DYNAMIC_FACTOR = 24
_SMALLEST = 1e-12


class Moves(NamedTuple):
    """Mean change of true success rates by the update of a round, [S, T] each; wrong references are left out.

    Attributes:
      picked: mean change of the prompts trained on.
      same_level: mean change of the other training prompts, levels weighted by how often they were picked.
      held_out: mean change of the held-out prompts.
    """

    picked: jax.Array
    same_level: jax.Array
    held_out: jax.Array


class Record(NamedTuple):
    """The record of S runs; NumPy arrays, as returned by `run`.

    Attributes:
      accuracy: exact accuracy on held-out prompts before each round and after the last, [S, T + 1].
      effective_sample_ratio: share of the B completion groups that were informative, [S, T].
      pick_rate: mean true success rate of the picks before the update, [S, T].
      pool_informative: mean true P(0 < m < G) of the candidates, [S, T].
      ids: ids of the picks, int32 [S, T, B]; -1 where dynamic sampling found too few prompts.
      successes: number of correct completions of each pick, int32 [S, T, B].
      gradient_cosine: cosine between the gradients of two batches with independent pools, picks and rollouts, [S, T]; 0
        where either gradient is 0. None unless the option `reports_signal` is set.
      moves: changes by the updates; None unless the option `reports_moves` is set.
    """

    accuracy: Any
    effective_sample_ratio: Any
    pick_rate: Any
    pool_informative: Any
    ids: Any
    successes: Any
    gradient_cosine: Any = None
    moves: Any = None


class Model(NamedTuple):
    """The constants of a run.

    Attributes:
      mix: composition of the training set.
      problems: training and held-out prompts.
      selector: the selector; None if an oracle selects.
      oracle: the oracle; None if a selector selects.
      num_rounds: number of rounds, T.
      batch_size: number of prompts per round, B.
      group_size: number of completions per prompt, G.
      pool_size: number of candidates of a round, M; N or more stands for all prompts.
      transformation: optimiser without the learning rate.
      reports_signal: whether to record `gradient_cosine`.
      reports_moves: whether to record `moves`.
    """

    mix: Mix
    problems: Problems
    selector: Selector | None
    oracle: Oracle | None
    num_rounds: int
    batch_size: int
    group_size: int
    pool_size: int
    transformation: optax.GradientTransformation
    reports_signal: bool
    reports_moves: bool


class _State(NamedTuple):
    """The state of a run: the policy, its optimiser and the selector."""

    logits: jax.Array
    opt_state: Any
    selector: Any


class _Batch(NamedTuple):
    """Picks and their completions; see `Record` and `_shared_facts.rollout`. Padding has `is_used` False."""

    ids: jax.Array
    is_used: jax.Array
    answers: jax.Array
    is_correct: jax.Array
    pool_informative: jax.Array


def _candidates(model: Model, key: jax.Array, size: int) -> jax.Array | None:
    """Returns M candidates in random order, int32 [M], or None for all prompts in order."""
    num_prompts = model.problems.num_prompts
    if size >= num_prompts:
        return None
    return lax.top_k(jax.random.uniform(key, (num_prompts,)), size)[1].astype(jnp.int32)


def _selected(model: Model, state: _State, is_broken: jax.Array, key: jax.Array) -> _Batch:
    """Returns the batch of a selector, or of an oracle with scores."""
    key_pool, key_select, key_rollout = jax.random.split(key, 3)
    facts = jnp.asarray(model.problems.facts)
    pool = _candidates(model, key_pool, model.pool_size)
    places = jnp.arange(facts.shape[0], dtype=jnp.int32) if pool is None else pool
    rates = _shared_facts.success_rates(state.logits, facts[places], is_broken[places])
    if model.selector is not None:
        ids = model.selector.select(state.selector, key_select, model.batch_size, pool)[0]
    else:
        assert model.oracle is not None
        assert model.oracle.scores is not None
        scores = model.oracle.scores(rates, key_select, model.group_size)
        ids = places[lax.top_k(scores, model.batch_size)[1]]
    answers, is_correct = _shared_facts.rollout(key_rollout, state.logits, facts[ids], is_broken[ids], model.group_size)
    return _Batch(
        ids=ids,
        is_used=jnp.ones(ids.shape, bool),
        answers=answers,
        is_correct=is_correct,
        pool_informative=_shared_facts.informative_probs(rates, model.group_size).mean(),
    )


def _dynamic(model: Model, state: _State, is_broken: jax.Array, key: jax.Array) -> _Batch:
    """Returns the batch of dynamic sampling: the first B informative groups, or all of them if there are fewer."""
    key_pool, key_rollout = jax.random.split(key)
    facts = jnp.asarray(model.problems.facts)
    size = min(max(model.pool_size, _DYNAMIC_FACTOR * model.batch_size), facts.shape[0])
    pool = lax.top_k(jax.random.uniform(key_pool, facts.shape[:1]), size)[1].astype(jnp.int32)
    rates = _shared_facts.success_rates(state.logits, facts[pool], is_broken[pool])
    answers, is_correct = _shared_facts.rollout(
        key_rollout, state.logits, facts[pool], is_broken[pool], model.group_size
    )
    is_informative = is_correct.any(axis=1) & ~is_correct.all(axis=1)
    first = jnp.argsort(~is_informative, stable=True)[: model.batch_size]
    is_used = is_informative[first]
    return _Batch(
        ids=jnp.where(is_used, pool[first], -1),
        is_used=is_used,
        answers=answers[first],
        is_correct=is_correct[first] & is_used[:, None],
        pool_informative=_shared_facts.informative_probs(rates, model.group_size).mean(),
    )


def _rolled_out(model: Model, state: _State, is_broken: jax.Array, key: jax.Array) -> tuple[_Batch, jax.Array]:
    """Returns a batch with its completions, and the gradient of its loss, [F, A]."""
    is_dynamic = model.oracle is not None and model.oracle.scores is None
    batch = (_dynamic if is_dynamic else _selected)(model, state, is_broken, key)
    facts = jnp.asarray(model.problems.facts)[batch.ids]
    return batch, _shared_facts.loss_gradient(state.logits, facts, batch.answers, batch.is_correct, batch.is_used)


def _cosine(one: jax.Array, other: jax.Array) -> jax.Array:
    norms = jnp.linalg.norm(one) * jnp.linalg.norm(other)
    return jnp.where(norms > 0, jnp.sum(one * other) / jnp.maximum(norms, _SMALLEST), 0.0)


def _moves(model: Model, batch: _Batch, before: jax.Array, after: jax.Array, is_broken: jax.Array) -> Moves:
    """Returns the mean changes of success rates by the update of a round."""
    problems = model.problems
    rates = lambda logits: _shared_facts.success_rates(logits, jnp.asarray(problems.facts))
    held_out = lambda logits: _shared_facts.success_rates(logits, jnp.asarray(problems.test_facts)).mean()
    change = rates(after) - rates(before)
    groups = jnp.asarray(problems.groups)
    num_levels = len(model.mix.levels)
    targets = jnp.where(batch.is_used, batch.ids, problems.num_prompts)
    is_picked = jnp.zeros(problems.num_prompts, bool).at[targets].set(True, mode="drop") & ~is_broken
    is_other = ~is_picked & ~is_broken
    of_level = lambda values: jax.ops.segment_sum(values, groups, num_levels)
    num_picked, num_others = of_level(is_picked.astype(jnp.float32)), of_level(is_other.astype(jnp.float32))
    mean_of_others = of_level(jnp.where(is_other, change, 0.0)) / jnp.maximum(num_others, 1.0)
    num_all = jnp.maximum(num_picked.sum(), 1.0)
    return Moves(
        picked=jnp.sum(jnp.where(is_picked, change, 0.0)) / num_all,
        same_level=jnp.sum(num_picked * mean_of_others) / num_all,
        held_out=held_out(after) - held_out(before),
    )


def _round(
    model: Model, learning_rate: Any, key: jax.Array, is_broken: jax.Array, state: _State, round_index: jax.Array
) -> tuple[_State, Record]:
    """Returns the state after a round, and its record without the axes S and T; `accuracy` is from before the round."""
    key_batch, key_other = jax.random.split(jax.random.fold_in(key, round_index))
    batch, grad = _rolled_out(model, state, is_broken, key_batch)
    logits, opt_state = _shared_facts.update(model.transformation, learning_rate, state.logits, state.opt_state, grad)
    successes = batch.is_correct.sum(axis=1, dtype=jnp.int32)
    selector_state = state.selector
    if model.selector is not None:
        counts = jnp.full(successes.shape, model.group_size, jnp.int32)
        selector_state = model.selector.observe(state.selector, batch.ids, successes, counts)
    facts = jnp.asarray(model.problems.facts)
    pick_rates = _shared_facts.success_rates(state.logits, facts[batch.ids], is_broken[batch.ids])
    num_used = jnp.maximum(batch.is_used.sum(), 1)
    is_informative = batch.is_used & (successes > 0) & (successes < model.group_size)
    record = Record(
        accuracy=_shared_facts.success_rates(state.logits, jnp.asarray(model.problems.test_facts)).mean(),
        effective_sample_ratio=is_informative.mean(),
        pick_rate=jnp.sum(jnp.where(batch.is_used, pick_rates, 0.0)) / num_used,
        pool_informative=batch.pool_informative,
        ids=batch.ids,
        successes=successes,
        gradient_cosine=_cosine(grad, _rolled_out(model, state, is_broken, key_other)[1])
        if model.reports_signal
        else None,
        moves=_moves(model, batch, state.logits, logits, is_broken) if model.reports_moves else None,
    )
    return _State(logits=logits, opt_state=opt_state, selector=selector_state), record


def simulate(model: Model, seed: Any, learning_rate: Any) -> Record:
    """Returns the record of one seed, without the axis of seeds."""
    key_policy, key_broken, key_selector, key_rounds = jax.random.split(jax.random.key(seed), 4)
    logits = _shared_facts.first_logits(key_policy, model.mix)
    is_broken = jax.random.bernoulli(key_broken, model.mix.broken_share, (model.problems.num_prompts,))
    state = _State(
        logits=logits,
        opt_state=model.transformation.init(logits),
        selector=() if model.selector is None else model.selector.init(key_selector),
    )
    step = functools.partial(_round, model, learning_rate, key_rounds, is_broken)
    state, record = lax.scan(step, state, jnp.arange(model.num_rounds))
    last = _shared_facts.success_rates(state.logits, jnp.asarray(model.problems.test_facts)).mean()
    return record._replace(accuracy=jnp.append(record.accuracy, last))
