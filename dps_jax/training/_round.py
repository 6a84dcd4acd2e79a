"""One round as pure functions: select, roll out and grade, update, observe. All parts of the library meet here.

`Round.step` is a whole round, to be jitted with its state donated, scanned over rounds and vmapped over seeds. Its
phases are available one by one, too, for a trainer that measures how long each of them takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks, rl
from dps_jax._documented import documented, short_repr
from dps_jax.rl._partly_trained import trained_part, with_trained_part
from dps_jax.rl._rollout import SampleFn, ScoreFn
from dps_jax.selectors._judgement import Judgement, judged
from dps_jax.types import Selector


@documented
class TrainState(NamedTuple):
    """The state of a run between two rounds, which checkpoints store.

    Attributes:
      params: parameters of the policy; if they are `rl.PartlyTrained`, a checkpoint stores the trained part only.
      ref_params: trained part of the parameters of the reference policy of the KL penalty; None without a penalty.
      opt_state: optimiser state of the learner.
      selector: state of the selector.
      key: random key of the run; the keys of a round are derived from it and `round_index`.
      round_index: number of rounds done, int32 scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl, selectors, training
      >>> log_probs_fn = lambda params, prompts, completions: (params[completions], params[completions])
      >>> one_round = training.make_round(  # nothing is sampled here, so the functions of the policy are stubs
      ...     sample_fn=lambda params, prompts, key: None, score_fn=None, log_probs_fn=log_probs_fn,
      ...     selector=selectors.uniform(100), learner=rl.learner(log_probs_fn, learning_rate=0.1),
      ...     num_prompts=100, batch_size=8)
      >>> state = one_round.init(jnp.zeros(5), jax.random.key(0))
      >>> int(state.round_index), state.params.shape
      (0, (5,))
    """

    params: Any
    ref_params: Any
    opt_state: Any
    selector: Any
    key: jax.Array
    round_index: jax.Array


class RoundKeys(NamedTuple):
    """The random keys of one round, by their purpose.

    Attributes:
      pool: key for drawing the candidates.
      select: key for picking among them.
      collect: key for sampling completions; with dynamic collection for the selections, too.
      update: key for assigning groups to minibatches.
    """

    pool: jax.Array
    select: jax.Array
    collect: jax.Array
    update: jax.Array


def round_keys(state: TrainState) -> RoundKeys:
    """Returns the keys of the round that comes next after a state."""
    pool, select, collect, update = jax.random.split(jax.random.fold_in(state.key, state.round_index), 4)
    return RoundKeys(pool=pool, select=select, collect=collect, update=update)


@documented
class RoundInfo(NamedTuple):
    """Metrics of a round; float32 scalars unless stated otherwise.

    Attributes:
      num_rollouts: number of sampled completions, including those of discarded groups, int32.
      num_tokens: number of sampled tokens, int32.
      effective_sample_ratio: share of informative groups, 0 < m < G, among all completion groups that were rolled out.
      accuracy: share of correct completions among the graded ones, whose reward is not NaN.
      reward: mean reward of the graded completions.
      predicted_informative: mean of the predicted P(0 < m < G) of the prompts that were rolled out.
      brier: mean squared error of these predictions.
      confusion: number of completion groups by predicted (row) and observed (column) solve state (unsolved, partially
        solved, solved), int32 [3, 3]; zeros for methods without solve states.
      update: metrics of the learner, an `rl.UpdateInfo`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import models, rl, selectors, tasks, training
      >>> def log_probs_fn(params, prompts, completions):  # a policy that ignores its prompt
      ...     all_log_probs = jax.nn.log_softmax(params)
      ...     entropy = -jnp.sum(jnp.exp(all_log_probs) * all_log_probs)
      ...     return all_log_probs[completions], jnp.full(completions.shape, entropy)
      >>> def sample_fn(params, prompts, key):  # G = 4 completions of T = 1 token
      ...     tokens = jax.random.categorical(key, params, shape=(len(prompts), 4, 1))
      ...     log_probs, _ = log_probs_fn(params, prompts, tokens)
      ...     return models.Completions(tokens=tokens, log_probs=log_probs, mask=jnp.ones(tokens.shape, bool))
      >>> def score_fn(facts, completions):  # the fact of a problem is its answer
      ...     is_correct = completions[..., 0] == facts[..., 0]
      ...     return tasks.Score(is_correct=is_correct, rewards=is_correct.astype(jnp.float32))
      >>> answers, zeros = jnp.arange(100)[:, None] % 5, jnp.zeros(100, jnp.int32)
      >>> problems = tasks.Problems(prompts=zeros[:, None], facts=answers, groups=zeros)
      >>> one_round = training.make_round(
      ...     sample_fn, score_fn, log_probs_fn, selectors.uniform(100),
      ...     rl.learner(log_probs_fn, learning_rate=0.1), num_prompts=100, batch_size=8)
      >>> state = one_round.init(jnp.zeros(5), jax.random.key(0))
      >>> state, infos = jax.lax.scan(lambda state, _: one_round.step(state, problems), state, length=3)
      >>> infos.effective_sample_ratio.shape, infos.num_rollouts.tolist()  # an entry per round
      ((3,), [32, 32, 32])
    """

    num_rollouts: jax.Array
    num_tokens: jax.Array
    effective_sample_ratio: jax.Array
    accuracy: jax.Array
    reward: jax.Array
    predicted_informative: jax.Array
    brier: jax.Array
    confusion: jax.Array
    update: rl.UpdateInfo


@documented
class Round(NamedTuple):
    """A training round and its phases as pure functions, which `make_round` returns.

    The argument `problems` has the arrays `prompts` [N, P] and `facts` [N, F] (the numbers that grading needs), such as
    `tasks.Problems` on the device.

    Attributes:
      init: (params, key) -> `TrainState` before the first round.
      select: state -> `rl.Selection`; None with dynamic collection, which selects while it collects.
      collect: (state, problems, selection) -> `rl.Collection`: completions are sampled and graded.
      update: (state, collection) -> (state, `rl.UpdateInfo`): parameters and optimiser state are updated.
      gradient: (state, collection) -> gradient of the whole batch before clipping, a tree like the trained parameters.
        The state is not changed. The cosine between the gradients of two collections with different keys measures how
        much of them is signal.
      observe: (state, collection) -> (state, judgement): the selector observes the outcomes, and the judgement has the
        mean, Brier score and confusion of the predictions for this round (see `RoundInfo`).
      step: (state, problems) -> (state, `RoundInfo`): a whole round.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl, selectors, training
      >>> log_probs_fn = lambda params, prompts, completions: (params[completions], params[completions])
      >>> one_round = training.make_round(  # nothing is sampled here, so the functions of the policy are stubs
      ...     sample_fn=lambda params, prompts, key: None, score_fn=None, log_probs_fn=log_probs_fn,
      ...     selector=selectors.uniform(100), learner=rl.learner(log_probs_fn, learning_rate=0.1),
      ...     num_prompts=100, batch_size=8)
      >>> state = one_round.init(jnp.zeros(5), jax.random.key(0))
      >>> jax.jit(one_round.select)(state).ids.shape  # the prompts of the first round
      (8,)
    """

    init: Callable[[Any, jax.Array], TrainState]
    select: Callable[[TrainState], rl.Selection | None]
    collect: Callable[[TrainState, Any, rl.Selection | None], rl.Collection]
    update: Callable[[TrainState, rl.Collection], tuple[TrainState, rl.UpdateInfo]]
    gradient: Callable[[TrainState, rl.Collection], Any]
    observe: Callable[[TrainState, rl.Collection], tuple[TrainState, Judgement]]
    step: Callable[[TrainState, Any], tuple[TrainState, RoundInfo]]

    __repr__ = short_repr


class _Fixed(NamedTuple):
    """The checked arguments of `make_round`, with the size of the pool as `num_candidates`."""

    sample_fn: SampleFn
    score_fn: ScoreFn | None
    log_probs_fn: Callable[..., tuple[jax.Array, jax.Array]]
    selector: Selector
    learner: rl.Learner
    num_prompts: int
    batch_size: int
    num_candidates: int
    has_reference: bool
    max_batches: int | None
    place: Callable[[Any], Any]


def _as_it_is(tree: Any) -> Any:
    return tree


def make_round(
    sample_fn: SampleFn,
    score_fn: ScoreFn | None,
    log_probs_fn: Callable[..., tuple[jax.Array, jax.Array]],
    selector: Selector,
    learner: rl.Learner,
    *,
    num_prompts: int,
    batch_size: int,
    pool_size: int | None = None,
    has_reference: bool = False,
    max_batches: int | None = None,
    place: Callable[[Any], Any] = _as_it_is,
) -> Round:
    """Returns the round of a policy, a task, a selector and a learner.

    Args:
      sample_fn: (params, prompts [B, P], key) -> `models.Completions`, arrays [B, G, T].
      score_fn: (facts [B, G, F], completions [B, G, T]) -> `tasks.Score`, arrays [B, G]; None if completions are graded
        on the host, and then `collect` and `step` cannot be used.
      log_probs_fn: (params, prompts [B, P], completions [B, G, T]) -> (log_probs, entropies), each [B, G, T].
      selector: selector over the N prompts.
      learner: learner that updates the parameters of the policy.
      num_prompts: number of prompts, N.
      batch_size: number of prompts per round, B.
      pool_size: number of candidates, drawn at random in every round, that the selector ranks; None ranks all N, as
        dynamic collection always does. A greedy selector over all prompts would return to the same few prompts, which
        the policy then memorises.
      has_reference: whether the initial parameters are kept as the reference policy of a KL penalty.
      max_batches: largest number of batches of a round with dynamic collection, which rolls out batch after batch until
        B completion groups are informative; None trains on the prompts that the selector picks.
      place: function that puts parameters, gradients and optimiser states on the devices of a mesh; by default they
        stay where they are.

    Raises:
      ValueError: for sizes that do not fit together.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import models, rl, selectors, tasks, training
      >>> def log_probs_fn(params, prompts, completions):  # a policy that ignores its prompt
      ...     all_log_probs = jax.nn.log_softmax(params)
      ...     entropy = -jnp.sum(jnp.exp(all_log_probs) * all_log_probs)
      ...     return all_log_probs[completions], jnp.full(completions.shape, entropy)
      >>> def sample_fn(params, prompts, key):  # G = 4 completions of T = 1 token
      ...     tokens = jax.random.categorical(key, params, shape=(len(prompts), 4, 1))
      ...     log_probs, _ = log_probs_fn(params, prompts, tokens)
      ...     return models.Completions(tokens=tokens, log_probs=log_probs, mask=jnp.ones(tokens.shape, bool))
      >>> def score_fn(facts, completions):  # the fact of a problem is its answer
      ...     is_correct = completions[..., 0] == facts[..., 0]
      ...     return tasks.Score(is_correct=is_correct, rewards=is_correct.astype(jnp.float32))
      >>> answers, zeros = jnp.arange(100)[:, None] % 5, jnp.zeros(100, jnp.int32)
      >>> problems = tasks.Problems(prompts=zeros[:, None], facts=answers, groups=zeros)
      >>> one_round = training.make_round(
      ...     sample_fn, score_fn, log_probs_fn, selectors.dps(100, decay=0.7, prior="progress"),
      ...     rl.learner(log_probs_fn, learning_rate=0.1), num_prompts=100, batch_size=8)
      >>> state = one_round.init(jnp.zeros(5), jax.random.key(0))
      >>> state, info = jax.jit(one_round.step, donate_argnums=0)(state, problems)
      >>> int(state.round_index), int(info.num_rollouts)
      (1, 32)
    """
    _checks.check_int("num_prompts", num_prompts, at_least=1)
    _checks.check_int("batch_size", batch_size, at_least=1, at_most=num_prompts)
    num_candidates = num_prompts
    if pool_size is not None:
        num_candidates = min(_checks.check_int("pool_size", pool_size, at_least=batch_size), num_prompts)

    fixed = _Fixed(
        sample_fn=sample_fn,
        score_fn=score_fn,
        log_probs_fn=log_probs_fn,
        selector=selector,
        learner=learner,
        num_prompts=num_prompts,
        batch_size=batch_size,
        num_candidates=num_candidates,
        has_reference=has_reference,
        max_batches=max_batches,
        place=place,
    )
    return Round(
        init=functools.partial(_init, fixed),
        select=functools.partial(_select, fixed),
        collect=functools.partial(_collect, fixed),
        update=functools.partial(_update, fixed),
        gradient=functools.partial(_gradient, fixed),
        observe=functools.partial(_observe, fixed),
        step=functools.partial(_step, fixed),
    )


def _init(fixed: _Fixed, params: Any, key: jax.Array) -> TrainState:
    """Returns the state before the first round."""
    key_selector, key_rounds = jax.random.split(key)
    params = fixed.place(params)
    return TrainState(
        params=params,
        # A copy, so that donating the parameters does not delete the reference policy.
        ref_params=fixed.place(jax.tree.map(jnp.copy, trained_part(params))) if fixed.has_reference else None,
        opt_state=fixed.place(fixed.learner.init(params)),
        selector=fixed.selector.init(key_selector),
        key=key_rounds,
        round_index=jnp.zeros((), jnp.int32),
    )


def _select(fixed: _Fixed, state: TrainState) -> rl.Selection | None:
    """Returns the prompts of a round, picked from its pool; None with dynamic collection."""
    if fixed.max_batches is not None:
        return None
    keys, pool_shape = round_keys(state), (fixed.num_candidates,)
    candidates = None
    if fixed.num_candidates < fixed.num_prompts:
        candidates = jax.random.choice(keys.pool, fixed.num_prompts, pool_shape, replace=False).astype(jnp.int32)
    ids, info = fixed.selector.select(state.selector, keys.select, fixed.batch_size, candidates)
    probs = info.inclusion_probs
    if probs is not None:
        probs = probs * (fixed.num_candidates / fixed.num_prompts)
    return rl.Selection(ids=ids, scores=info.scores, inclusion_probs=probs)


def _collect(fixed: _Fixed, state: TrainState, problems: Any, selection: rl.Selection | None) -> rl.Collection:
    """Returns the completions of a round: of the selected prompts or, without a selection, by dynamic collection."""
    if fixed.score_fn is None:
        raise ValueError("score_fn: expected a function, as completions are graded on the device, got None")
    roll_out = functools.partial(rl.rollout, fixed.sample_fn, fixed.score_fn, state.params, problems)
    key = round_keys(state).collect
    if selection is not None:
        return rl.collect_plain(roll_out, selection, key)
    if fixed.max_batches is None:
        raise ValueError("selection: expected the prompts of the round without max_batches, got None")
    return rl.collect_dynamic(
        fixed.selector.select,
        roll_out,
        state.selector,
        key,
        batch_size=fixed.batch_size,
        num_prompts=fixed.num_prompts,
        max_batches=fixed.max_batches,
    )


def _reference(fixed: _Fixed, state: TrainState, batch: rl.Batch) -> jax.Array | None:
    """Returns log-probs of the completions under the reference policy, or None without one."""
    if not fixed.has_reference:
        return None
    params = with_trained_part(state.params, state.ref_params)
    return jax.lax.stop_gradient(fixed.log_probs_fn(params, batch.prompts, batch.completions)[0])


def _update(fixed: _Fixed, state: TrainState, collection: rl.Collection) -> tuple[TrainState, rl.UpdateInfo]:
    """Returns the state with updated parameters, and the metrics of the learner."""
    batch = collection.batch
    reference = _reference(fixed, state, batch)
    params, opt_state, info = fixed.learner.update(
        state.params, state.opt_state, batch, round_keys(state).update, reference
    )
    return state._replace(params=fixed.place(params), opt_state=fixed.place(opt_state)), info


def _gradient(fixed: _Fixed, state: TrainState, collection: rl.Collection) -> Any:
    """Returns the gradient of the whole batch, before clipping."""
    batch = collection.batch
    return fixed.place(fixed.learner.gradient(state.params, batch, _reference(fixed, state, batch))[0])


def _observe(fixed: _Fixed, state: TrainState, collection: rl.Collection) -> tuple[TrainState, Judgement]:
    """Returns the state of the next round, and the judgement of the predictions for this one."""
    outcomes = collection.ids, collection.successes, collection.counts
    judgement = judged(fixed.selector, state.selector, *outcomes)
    seen = fixed.selector.observe(state.selector, *outcomes)
    return state._replace(selector=seen, round_index=state.round_index + 1), judgement


def _step(fixed: _Fixed, state: TrainState, problems: Any) -> tuple[TrainState, RoundInfo]:
    """Returns the state of the next round, and the metrics of this one."""
    collection = _collect(fixed, state, problems, _select(fixed, state))
    state, update_info = _update(fixed, state, collection)
    state, judgement = _observe(fixed, state, collection)
    return state, round_info(collection, update_info, judgement)


def round_info(collection: rl.Collection, update_info: rl.UpdateInfo, judgement: Judgement) -> RoundInfo:
    """Returns the metrics of a round, from the results of its phases."""
    return RoundInfo(
        num_rollouts=collection.num_rollouts,
        num_tokens=collection.num_tokens,
        effective_sample_ratio=collection.effective_sample_ratio,
        accuracy=jnp.sum(collection.successes) / jnp.maximum(jnp.sum(collection.counts), 1),
        reward=collection.mean_reward,
        predicted_informative=judgement.predicted_informative,
        brier=judgement.brier,
        confusion=judgement.confusion,
        update=update_info,
    )
