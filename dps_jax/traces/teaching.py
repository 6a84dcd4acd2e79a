"""What the picks of a selector teach: training of a policy that shares facts between prompts, over many seeds at once.

record = teaching.run(lambda problems: selectors.build("dps", problems.num_prompts), "lean", num_seeds=10)
teaching.area(record.accuracy)  # [10]
bound = teaching.run(oracles.ORACLES["oracle_i"], "lean", num_seeds=10)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from dps_jax import _checks
from dps_jax.traces import shared_facts
from dps_jax.traces.oracles import Oracle
from dps_jax.traces.shared_facts import MIXES, Mix, Problems
from dps_jax.types import Selector

MakeSelector = Callable[[Problems], Selector]
LEARNING_RATE = 0.03
# Batches that dynamic sampling rolls out in a round, at the least.
_DYNAMIC_FACTOR = 24
_SMALLEST = 1e-12


class Moves(NamedTuple):
    """Mean change of the true success rate by the update of a round, [S, R] each; wrong references are left out.

    Attributes:
      picked: of the prompts trained on.
      same_level: of the other training prompts, each level as often as it was picked.
      held_out: of the held-out prompts.
    """

    picked: jax.Array
    same_level: jax.Array
    held_out: jax.Array


class Record(NamedTuple):
    """What happened, with an axis of S seeds before all others; NumPy arrays from `run`.

    Attributes:
      accuracy: exact accuracy on held-out prompts before each round and after the last, [S, R + 1].
      effective_sample_ratio: share of the B groups that were informative, [S, R].
      pick_rate: mean true success rate of the picks before the update, [S, R].
      pool_informative: mean true P(0 < m < G) of the candidates, [S, R].
      ids: of the picks, int32 [S, R, B]; -1 where dynamic sampling found too few.
      successes: correct completions of the picks, int32 [S, R, B].
      gradient_cosine: cosine of the gradients of two independent pools, picks and rollouts, [S, R]; 0 where one of the
        two is 0. None unless asked for.
      moves: what the update changed; None unless asked for.
    """

    accuracy: Any
    effective_sample_ratio: Any
    pick_rate: Any
    pool_informative: Any
    ids: Any
    successes: Any
    gradient_cosine: Any = None
    moves: Any = None


class _Model(NamedTuple):
    """All that does not change in a run.

    Attributes:
      mix: of the prompts.
      problems: training and held-out prompts.
      selector: None for oracles.
      oracle: None for selectors.
      num_rounds: R.
      batch_size: B.
      group_size: G.
      pool_size: M, candidates of a round; at least N for all prompts.
      transformation: of the gradient.
      reports_signal: record `gradient_cosine`.
      reports_moves: record `moves`.
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
    """What a round changes: the policy, its optimiser and what the selector keeps."""

    logits: jax.Array
    opt_state: Any
    selector: Any


class _Batch(NamedTuple):
    """Picks and their completions; see `Record` and `shared_facts.rollout`. Padding has `is_used` False."""

    ids: jax.Array
    is_used: jax.Array
    answers: jax.Array
    is_correct: jax.Array
    pool_informative: jax.Array


def _candidates(model: _Model, key: jax.Array, size: int) -> jax.Array | None:
    """Returns M prompts in random order, int32 [M]; None for all of them, in order."""
    num_prompts = model.problems.num_prompts
    if size >= num_prompts:
        return None
    return lax.top_k(jax.random.uniform(key, (num_prompts,)), size)[1].astype(jnp.int32)


def _selected(model: _Model, state: _State, is_broken: jax.Array, key: jax.Array) -> _Batch:
    """Returns the batch of a selector, or of an oracle with scores."""
    key_pool, key_select, key_rollout = jax.random.split(key, 3)
    facts = jnp.asarray(model.problems.facts)
    pool = _candidates(model, key_pool, model.pool_size)
    places = jnp.arange(facts.shape[0], dtype=jnp.int32) if pool is None else pool
    rates = shared_facts.success_rates(state.logits, facts[places], is_broken[places])
    if model.selector is not None:
        ids = model.selector.select(state.selector, key_select, model.batch_size, pool)[0]
    else:
        assert model.oracle is not None
        assert model.oracle.scores is not None
        scores = model.oracle.scores(rates, key_select, model.group_size)
        ids = places[lax.top_k(scores, model.batch_size)[1]]
    answers, is_correct = shared_facts.rollout(key_rollout, state.logits, facts[ids], is_broken[ids], model.group_size)
    return _Batch(
        ids=ids,
        is_used=jnp.ones(ids.shape, bool),
        answers=answers,
        is_correct=is_correct,
        pool_informative=shared_facts.informative_probs(rates, model.group_size).mean(),
    )


def _dynamic(model: _Model, state: _State, is_broken: jax.Array, key: jax.Array) -> _Batch:
    """Returns the first B informative groups of many, fewer where there are no more."""
    key_pool, key_rollout = jax.random.split(key)
    facts = jnp.asarray(model.problems.facts)
    size = min(max(model.pool_size, _DYNAMIC_FACTOR * model.batch_size), facts.shape[0])
    pool = lax.top_k(jax.random.uniform(key_pool, facts.shape[:1]), size)[1].astype(jnp.int32)
    rates = shared_facts.success_rates(state.logits, facts[pool], is_broken[pool])
    answers, is_correct = shared_facts.rollout(
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
        pool_informative=shared_facts.informative_probs(rates, model.group_size).mean(),
    )


def _rolled_out(model: _Model, state: _State, is_broken: jax.Array, key: jax.Array) -> tuple[_Batch, jax.Array]:
    """Returns a batch and the gradient of its loss, [F, A]."""
    is_dynamic = model.oracle is not None and model.oracle.scores is None
    batch = (_dynamic if is_dynamic else _selected)(model, state, is_broken, key)
    facts = jnp.asarray(model.problems.facts)[batch.ids]
    return batch, shared_facts.loss_gradient(state.logits, facts, batch.answers, batch.is_correct, batch.is_used)


def _cosine(one: jax.Array, other: jax.Array) -> jax.Array:
    norms = jnp.linalg.norm(one) * jnp.linalg.norm(other)
    return jnp.where(norms > 0, jnp.sum(one * other) / jnp.maximum(norms, _SMALLEST), 0.0)


def _moves(model: _Model, batch: _Batch, before: jax.Array, after: jax.Array, is_broken: jax.Array) -> Moves:
    """Returns what the update of a round changed."""
    problems = model.problems
    rates = lambda logits: shared_facts.success_rates(logits, jnp.asarray(problems.facts))
    held_out = lambda logits: shared_facts.success_rates(logits, jnp.asarray(problems.test_facts)).mean()
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
    model: _Model, learning_rate: Any, key: jax.Array, is_broken: jax.Array, state: _State, round_index: jax.Array
) -> tuple[_State, Record]:
    """Returns the state after a round, and its record without seeds and rounds; `accuracy` is that before it."""
    key_batch, key_other = jax.random.split(jax.random.fold_in(key, round_index))
    batch, grad = _rolled_out(model, state, is_broken, key_batch)
    logits, opt_state = shared_facts.update(model.transformation, learning_rate, state.logits, state.opt_state, grad)
    successes = batch.is_correct.sum(axis=1, dtype=jnp.int32)
    selector_state = state.selector
    if model.selector is not None:
        counts = jnp.full(successes.shape, model.group_size, jnp.int32)
        selector_state = model.selector.observe(state.selector, batch.ids, successes, counts)
    facts = jnp.asarray(model.problems.facts)
    pick_rates = shared_facts.success_rates(state.logits, facts[batch.ids], is_broken[batch.ids])
    num_used = jnp.maximum(batch.is_used.sum(), 1)
    is_informative = batch.is_used & (successes > 0) & (successes < model.group_size)
    record = Record(
        accuracy=shared_facts.success_rates(state.logits, jnp.asarray(model.problems.test_facts)).mean(),
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


def _simulate(model: _Model, seed: Any, learning_rate: Any) -> Record:
    """Returns the record of one seed, without the axis of seeds."""
    key_policy, key_broken, key_selector, key_rounds = jax.random.split(jax.random.key(seed), 4)
    logits = shared_facts.first_logits(key_policy, model.mix)
    is_broken = jax.random.bernoulli(key_broken, model.mix.broken_share, (model.problems.num_prompts,))
    state = _State(
        logits=logits,
        opt_state=model.transformation.init(logits),
        selector=() if model.selector is None else model.selector.init(key_selector),
    )
    step = functools.partial(_round, model, learning_rate, key_rounds, is_broken)
    state, record = lax.scan(step, state, jnp.arange(model.num_rounds))
    last = shared_facts.success_rates(state.logits, jnp.asarray(model.problems.test_facts)).mean()
    return record._replace(accuracy=jnp.append(record.accuracy, last))


def simulator(
    method: MakeSelector | Oracle,
    mix: Mix | str,
    *,
    num_prompts: int = 2400,
    num_rounds: int = 160,
    batch_size: int = 32,
    group_size: int = 8,
    pool_factor: int = 8,
    max_norm: float | None = None,
    problem_seed: int = 0,
    reports_signal: bool = False,
    reports_moves: bool = False,
) -> Callable[[Any, Any], Record]:
    """Returns the pure function (seed, learning_rate) -> Record of one seed, to be compiled, and mapped by `vmap`.

    Args:
      method: the function Problems -> Selector, or an oracle.
      mix: of the prompts, or its name in `MIXES`.
      num_prompts: N.
      num_rounds: R.
      batch_size: B.
      group_size: G.
      pool_factor: a round chooses from so many times B prompts, drawn at random, or all where there are fewer; 0 is
        from all.
      max_norm: to which gradients are clipped; None for no clipping.
      problem_seed: of facts, groups and features. A run's own seed draws abilities, wrong references, pools, picks and
        completions.
      reports_signal: record `gradient_cosine`, which about doubles the time.
      reports_moves: record `moves`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    if isinstance(mix, str):
        _checks.check_choice("mix", mix, MIXES)
        mix = MIXES[mix]
    _checks.check_int("num_rounds", num_rounds, at_least=1)
    _checks.check_int("batch_size", batch_size, at_least=1, at_most=num_prompts)
    _checks.check_int("group_size", group_size, at_least=2)
    _checks.check_int("pool_factor", pool_factor, at_least=0)
    if max_norm is not None and not 0 < max_norm < np.inf:
        raise ValueError(f"max_norm: expected a finite number > 0 or None, got {max_norm}")
    problems = shared_facts.draw_problems(mix, num_prompts, problem_seed)
    is_oracle = isinstance(method, Oracle)
    model = _Model(
        mix=mix,
        problems=problems,
        selector=None if is_oracle else method(problems),
        oracle=method if is_oracle else None,
        num_rounds=num_rounds,
        batch_size=batch_size,
        group_size=group_size,
        pool_size=pool_factor * batch_size or num_prompts,
        transformation=shared_facts.optimiser(max_norm),
        reports_signal=reports_signal,
        reports_moves=reports_moves,
    )
    return functools.partial(_simulate, model)


def run(
    method: MakeSelector | Oracle,
    mix: Mix | str,
    *,
    num_seeds: int = 10,
    first_seed: int = 0,
    learning_rate: float = LEARNING_RATE,
    **options: Any,
) -> Record:
    """Returns what happened in S runs, which are one compiled program.

    Args:
      method: the function Problems -> Selector, or an oracle.
      mix: of the prompts, or its name in `MIXES`.
      num_seeds: S.
      first_seed: the others follow; a seed gives the same abilities, wrong references and pools to every method.
      learning_rate: of Adam.
      **options: num_prompts, num_rounds, batch_size, group_size, pool_factor, max_norm, problem_seed, reports_signal,
        reports_moves; see `simulator`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    _checks.check_int("num_seeds", num_seeds, at_least=1)
    _checks.check_int("first_seed", first_seed, at_least=0)
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate: expected a finite number > 0, got {learning_rate}")
    simulate = simulator(method, mix, **options)
    seeds = jnp.arange(first_seed, first_seed + num_seeds)
    return jax.device_get(jax.jit(jax.vmap(simulate, in_axes=(0, None)))(seeds, learning_rate))


def area(accuracy: Any) -> np.ndarray:
    """Returns the mean over rounds of held-out accuracy, [S], from accuracy [S, R + 1]."""
    return np.mean(np.asarray(accuracy, np.float64), axis=-1)


def coverage(ids: Any, num_prompts: int) -> np.ndarray:
    """Returns the share of the training prompts picked so far, after each round, [S, R], from ids [S, R, B]."""
    ids = np.asarray(ids)
    first_round = np.full((ids.shape[0], num_prompts), ids.shape[1])
    for round_index in reversed(range(ids.shape[1])):
        seeds, places = np.nonzero(ids[:, round_index] >= 0)
        first_round[seeds, ids[seeds, round_index, places]] = round_index
    is_picked = first_round[:, :, None] <= np.arange(ids.shape[1])
    return is_picked.mean(axis=1)
