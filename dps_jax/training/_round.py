"""One round as pure functions: select, roll out and score, update, observe. The one place where all parts meet.

`Round.step` is a whole round, to be jitted with its state donated, scanned over rounds and vmapped over seeds. The
phases it is made of are there one by one as well, for a trainer that wants to know how long each of them takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks, rl
from dps_jax.rl._collection import Selection
from dps_jax.rl._rollout import SampleFn, ScoreFn
from dps_jax.selectors._judgement import Judgement, judged
from dps_jax.types import Selector


class TrainState(NamedTuple):
    """All that a run knows between two rounds; what a checkpoint holds.

    Attributes:
      params: of the policy; may be `rl.PartlyTrained`, and a checkpoint then holds what is trained.
      ref_params: of the reference policy of the KL penalty, what is trained of them; None without one.
      opt_state: of the learner.
      selector: state of the selector.
      key: of the run; a round's keys are derived from it and the round's index.
      round_index: rounds done, int32 scalar.
    """

    params: Any
    ref_params: Any
    opt_state: Any
    selector: Any
    key: jax.Array
    round_index: jax.Array


class RoundKeys(NamedTuple):
    """The keys of one round, by what they are for.

    Attributes:
      pool: which prompts are candidates.
      select: which of them are picked.
      collect: completions; with dynamic collection the selections as well.
      update: minibatches.
    """

    pool: jax.Array
    select: jax.Array
    collect: jax.Array
    update: jax.Array


def round_keys(state: TrainState) -> RoundKeys:
    """Returns the keys of the round that a state is before."""
    pool, select, collect, update = jax.random.split(jax.random.fold_in(state.key, state.round_index), 4)
    return RoundKeys(pool=pool, select=select, collect=collect, update=update)


class RoundInfo(NamedTuple):
    """What is reported about a round; scalars unless said otherwise.

    Attributes:
      num_rollouts: completions sampled, those thrown away included, int32.
      num_tokens: tokens sampled, int32.
      effective_sample_ratio: share of the completion groups rolled out with 0 < m < G.
      accuracy: share of the completions that were correct.
      reward: mean over the completions.
      predicted_informative: mean P(0 < m < G) that was predicted for the prompts rolled out.
      brier: mean squared error of those predictions.
      confusion: groups by predicted (row) and observed (column) solve state: unsolved, partially solved, solved; int32
        [3, 3]. Zeros for methods without solve states.
      update: of the learner.
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


class Round(NamedTuple):
    """A round and its phases; pure functions. `problems` has `prompts` [N, P] and `facts` [N, F] on the device.

    Attributes:
      init: (params, key) -> `TrainState`.
      select: state -> `Selection`, or None with dynamic collection, which selects as it goes.
      collect: (state, problems, selection) -> `rl.Collection`.
      update: (state, collection) -> (state, `rl.UpdateInfo`).
      gradient: (state, collection) -> gradient of the whole batch before clipping, a tree like what is trained;
        changes nothing. The cosine of two that were collected with different keys says how much of a gradient is
        signal.
      observe: (state, collection) -> (state of the next round, `Judgement` of the predictions for this one).
      step: (state, problems) -> (state, `RoundInfo`), all of the above.
    """

    init: Callable[[Any, jax.Array], TrainState]
    select: Callable[[TrainState], Selection | None]
    collect: Callable[[TrainState, Any, Selection | None], rl.Collection]
    update: Callable[[TrainState, rl.Collection], tuple[TrainState, rl.UpdateInfo]]
    gradient: Callable[[TrainState, rl.Collection], Any]
    observe: Callable[[TrainState, rl.Collection], tuple[TrainState, Judgement]]
    step: Callable[[TrainState, Any], tuple[TrainState, RoundInfo]]


class _Fixed(NamedTuple):
    """What is the same in all rounds: arguments of `make_round`, checked, and the size of a pool, `num_candidates`."""

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
      sample_fn: (params, prompts [B, P], key) -> `models.Completions`, [B, G, T].
      score_fn: (facts [B, G, F], completions [B, G, T]) -> `tasks.Score`, [B, G]; None where completions are graded on
        the host, and then `collect` and `step` are not to be used.
      log_probs_fn: (params, prompts [B, P], completions [B, G, T]) -> (log_probs, entropies), [B, G, T].
      selector: of the N prompts.
      learner: of the policy's parameters.
      num_prompts: N.
      batch_size: B.
      pool_size: candidates, drawn anew at random every round, that the selector ranks; None ranks all N. Among
        all prompts, a greedy selector returns to the same few prompts, and the policy memorises them.
      has_reference: keep the initial parameters as the reference policy of a KL penalty.
      max_batches: None trains on what the selector picks; a number collects batches until B prompts are informative.
      place: puts parameters, gradients and states of the learner on the devices of a mesh.

    Raises:
      ValueError: for sizes that do not fit together.
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
        # A copy: what is donated with one must not vanish from the other.
        ref_params=fixed.place(jax.tree.map(jnp.copy, rl.trained_part(params))) if fixed.has_reference else None,
        opt_state=fixed.place(fixed.learner.init(params)),
        selector=fixed.selector.init(key_selector),
        key=key_rounds,
        round_index=jnp.zeros((), jnp.int32),
    )


def _select(fixed: _Fixed, state: TrainState) -> Selection | None:
    """Returns the prompts of a round, out of its pool; None with dynamic collection."""
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
    return Selection(ids=ids, scores=info.scores, inclusion_probs=probs)


def _collect(fixed: _Fixed, state: TrainState, problems: Any, selection: Selection | None) -> rl.Collection:
    """Returns the round's completions, of the prompts of a selection or, without one, of dynamic collection."""
    if fixed.score_fn is None:
        raise ValueError("score_fn: expected one for collecting on the device, got None")
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
    params = rl.with_trained_part(state.params, state.ref_params)
    return jax.lax.stop_gradient(fixed.log_probs_fn(params, batch.prompts, batch.completions)[0])


def _update(fixed: _Fixed, state: TrainState, collection: rl.Collection) -> tuple[TrainState, rl.UpdateInfo]:
    """Returns the state with updated parameters, and the report of the learner."""
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
    """Returns the state of the next round, and how good the predictions for this one were."""
    outcomes = collection.ids, collection.successes, collection.counts
    judgement = judged(fixed.selector, state.selector, *outcomes)
    seen = fixed.selector.observe(state.selector, *outcomes)
    return state._replace(selector=seen, round_index=state.round_index + 1), judgement


def _step(fixed: _Fixed, state: TrainState, problems: Any) -> tuple[TrainState, RoundInfo]:
    """Returns the state of the next round, and the report of this one."""
    collection = _collect(fixed, state, problems, _select(fixed, state))
    state, update_info = _update(fixed, state, collection)
    state, judgement = _observe(fixed, state, collection)
    return state, round_info(collection, update_info, judgement)


def round_info(collection: rl.Collection, update_info: rl.UpdateInfo, judgement: Judgement) -> RoundInfo:
    """Returns the report of a round from those of its phases."""
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
