"""One round as pure functions: select, roll out and score, update, observe. The one place where all parts meet.

`Round.step` is a whole round, to be jitted with its state donated, scanned over rounds and vmapped over seeds. The
phases it is made of are there one by one as well, for a trainer that wants to know how long each of them takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks, rl
from dps_jax.rl.rollout import SampleFn, ScoreFn
from dps_jax.selectors.judgement import Judgement, judged
from dps_jax.types import SelectInfo, Selector


class TrainState(NamedTuple):
    """All that a run knows between two rounds; what a checkpoint holds.

    Attributes:
      params: of the policy.
      ref_params: of the reference policy of the KL penalty; None without one.
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


class Selection(NamedTuple):
    """The prompts of a round.

    Attributes:
      ids: int32 [B].
      scores: what they were ranked by, float32 [B].
      inclusion_probs: with which each was picked out of all N, float32 [B], or None: P(in the pool), which is M / N
        for a random pool of M, times P(picked | the pool), which the selector gives. Sums over the picked of value /
        inclusion_prob are unbiased for sums over all N, as they are for those over the pool within it.
    """

    ids: jax.Array
    scores: jax.Array
    inclusion_probs: jax.Array | None = None


class RoundInfo(NamedTuple):
    """What is reported about a round; scalars unless said otherwise.

    Attributes:
      num_rollouts: completions sampled, those thrown away included, int32.
      num_tokens: tokens sampled, int32.
      effective_sample_ratio: share of the groups rolled out with 0 < m < G.
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
      select: state -> `Selection`; of dynamic collection, which selects as it goes, it holds no prompts.
      collect: (state, problems, selection) -> `rl.Collection`.
      update: (state, collection) -> (state, `rl.UpdateInfo`).
      gradient: (state, collection) -> gradient of the whole batch before clipping, a tree like `params`; changes
        nothing. The cosine of two that were collected with different keys says how much of a gradient is signal.
      observe: (state, collection) -> (state of the next round, `Judgement` of the predictions for this one).
      step: (state, problems) -> (state, `RoundInfo`), all of the above.
    """

    init: Callable[[Any, jax.Array], TrainState]
    select: Callable[[TrainState], Selection]
    collect: Callable[[TrainState, Any, Selection], rl.Collection]
    update: Callable[[TrainState, rl.Collection], tuple[TrainState, rl.UpdateInfo]]
    gradient: Callable[[TrainState, rl.Collection], Any]
    observe: Callable[[TrainState, rl.Collection], tuple[TrainState, Judgement]]
    step: Callable[[TrainState, Any], tuple[TrainState, RoundInfo]]


def make_round(
    sample_fn: SampleFn,
    score_fn: ScoreFn,
    log_probs_fn: Callable[..., tuple[jax.Array, jax.Array]],
    selector: Selector,
    learner: rl.Learner,
    *,
    num_prompts: int,
    batch_size: int,
    pool_size: int | None = None,
    has_reference: bool = False,
    max_batches: int | None = None,
) -> Round:
    """Returns the round of a policy, a task, a selector and a learner.

    Args:
      sample_fn: (params, prompts [B, P], key) -> `models.Completions`, [B, G, T].
      score_fn: (facts [B, G, F], completions [B, G, T]) -> `tasks.Score`, [B, G].
      log_probs_fn: (params, prompts [B, P], completions [B, G, T]) -> (log_probs, entropies), [B, G, T].
      selector: of the N prompts.
      learner: of the policy's parameters.
      num_prompts: N.
      batch_size: B.
      pool_size: candidates, drawn anew at random every round, that the selector ranks; None ranks all N. Ranking
        everybody, a greedy selector returns to the same few prompts, and the policy memorises them.
      has_reference: keep the initial parameters as the reference of a KL penalty.
      max_batches: None trains on what the selector picks; a number collects batches until B prompts are informative.

    Raises:
      ValueError: for sizes that do not fit together.
    """
    _checks.check_int("num_prompts", num_prompts, at_least=1)
    _checks.check_int("batch_size", batch_size, at_least=1, at_most=num_prompts)
    num_candidates = num_prompts
    if pool_size is not None:
        num_candidates = min(_checks.check_int("pool_size", pool_size, at_least=batch_size), num_prompts)

    def keys(state: TrainState) -> tuple[jax.Array, ...]:
        key_pool, key_select, key_rollout, key_update = jax.random.split(
            jax.random.fold_in(state.key, state.round_index), 4
        )
        return key_pool, key_select, key_rollout, key_update

    def init(params: Any, key: jax.Array) -> TrainState:
        key_selector, key_rounds = jax.random.split(key)
        return TrainState(
            params=params,
            # A copy: what is donated with one must not vanish from the other.
            ref_params=jax.tree.map(jnp.copy, params) if has_reference else None,
            opt_state=learner.init(params),
            selector=selector.init(key_selector),
            key=key_rounds,
            round_index=jnp.zeros((), jnp.int32),
        )

    def select(state: TrainState) -> Selection:
        if max_batches is not None:
            return Selection(ids=jnp.zeros(0, jnp.int32), scores=jnp.zeros(0))
        key_pool, key_select, _, _ = keys(state)
        candidates = None
        if num_candidates < num_prompts:
            candidates = jax.random.choice(key_pool, num_prompts, (num_candidates,), replace=False).astype(jnp.int32)
        ids, info = selector.select(state.selector, key_select, batch_size, candidates)
        probs = info.inclusion_probs
        if probs is not None:
            probs = probs * (num_candidates / num_prompts)
        return Selection(ids=ids, scores=info.scores, inclusion_probs=probs)

    def collect(state: TrainState, problems: Any, selection: Selection) -> rl.Collection:
        roll_out = lambda ids, key: rl.rollout(sample_fn, score_fn, state.params, problems, ids, key)
        key_rollout = keys(state)[2]
        if max_batches is None:
            info = SelectInfo(scores=selection.scores, inclusion_probs=selection.inclusion_probs)
            given = lambda state, key, batch_size: (selection.ids, info)
            return rl.collect_plain(given, roll_out, state.selector, key_rollout, batch_size=batch_size)
        sizes = {"batch_size": batch_size, "num_prompts": num_prompts, "max_batches": max_batches}
        return rl.collect_dynamic(selector.select, roll_out, state.selector, key_rollout, **sizes)

    def reference(state: TrainState, batch: rl.Batch) -> jax.Array | None:
        """Returns log-probs of the completions under the reference policy, or None without one."""
        if not has_reference:
            return None
        return jax.lax.stop_gradient(log_probs_fn(state.ref_params, batch.prompts, batch.completions)[0])

    def update(state: TrainState, collection: rl.Collection) -> tuple[TrainState, rl.UpdateInfo]:
        batch = collection.batch
        key = keys(state)[3]
        params, opt_state, info = learner.update(state.params, state.opt_state, batch, key, reference(state, batch))
        return state._replace(params=params, opt_state=opt_state), info

    def gradient(state: TrainState, collection: rl.Collection) -> Any:
        return learner.gradient(state.params, collection.batch, reference(state, collection.batch))[0]

    def observe(state: TrainState, collection: rl.Collection) -> tuple[TrainState, Judgement]:
        outcomes = collection.ids, collection.successes, collection.counts
        judgement = judged(selector, state.selector, *outcomes)
        seen = selector.observe(state.selector, *outcomes)
        return state._replace(selector=seen, round_index=state.round_index + 1), judgement

    def step(state: TrainState, problems: Any) -> tuple[TrainState, RoundInfo]:
        collection = collect(state, problems, select(state))
        state, update_info = update(state, collection)
        state, judgement = observe(state, collection)
        return state, round_info(collection, update_info, judgement)

    return Round(
        init=init, select=select, collect=collect, update=update, gradient=gradient, observe=observe, step=step
    )


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
