"""The protocols that parts meet through: `Predictor` and `Selector`, each a NamedTuple of pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PredictorState = Any
SelectorState = Any


class Prediction(NamedTuple):
    """What the next group of every prompt is expected to look like.

    Attributes:
      p_informative: probability that it is partially solved, 0 < m < G, float32 [N].
      success_rate: expected m / G, float32 [N].
      variance: expected variance of its rewards, m / G * (1 - m / G), float32 [N].
    """

    p_informative: jax.Array
    success_rate: jax.Array
    variance: jax.Array


class Predictor(NamedTuple):
    """Predicts outcomes from outcomes. Never sees a mesh: under `shard_map` it is given one shard of the prompts.

    Attributes:
      init: (num_prompts, first_id=0) -> state of the prompts first_id, first_id + 1, ...; some may be past the last
        prompt. Leaves have the prompts on their last axis, or do not depend on their number. `first_id` may be traced.
      predict: state -> Prediction; a scalar field stands for all prompts.
      observe: (state, ids [P], successes [P], counts [P], axis_name) -> state, one round later. Ids outside [0, N)
        are left out; `axis_name` names the mesh axis of the prompts, or is None.
      outcome_probs: (state, positions [P]) -> probability of m = 0, ..., G successes of the next group of some prompts,
        [G + 1, P]; columns sum to 1. G is an option of the method. Positions outside [0, N) give some column.
      draw: (state, bits uint32 [2, N]) -> Prediction of a state that is drawn from the belief about each prompt, by two
        random words of 30 bits each; None for methods that keep no belief.
      predicted_probs: (state, positions=None) -> belief about the hidden state of the next round, [K, N], or that of
        some prompts, [K, P]; None for methods without one.
      num_impossible: state -> observations the model gave no chance, int32 scalar; None where there is no such thing.
      with_prior: (state, TransitionPrior) -> state, as `filtering.with_prior`; None for methods without a prior.
    """

    init: Callable[..., PredictorState]
    predict: Callable[[PredictorState], Prediction]
    observe: Callable[..., PredictorState]
    outcome_probs: Callable[[PredictorState, jax.Array], jax.Array]
    draw: Callable[[PredictorState, jax.Array], Prediction] | None = None
    predicted_probs: Callable[..., jax.Array] | None = None
    num_impossible: Callable[[PredictorState], jax.Array] | None = None
    with_prior: Callable[[PredictorState, Any], PredictorState] | None = None


class SelectInfo(NamedTuple):
    """What is reported about a selection.

    Attributes:
      scores: what each picked prompt was ranked by, float32 [B]; P(informative) for `dps`, 0 for `uniform`.
        With a temperature, the log of the weight plus noise; 1e30 and more where its turn had come.
      inclusion_probs: probability of each picked prompt to be picked, given the scores of all and the largest perturbed
        score that was not picked, float32 [B]; 1 / inclusion_probs are unbiased weights of sums over the candidates.
        None where nothing random decides but ties, except for `uniform`, to which all prompts are alike.
    """

    scores: jax.Array
    inclusion_probs: jax.Array | None = None


class Selector(NamedTuple):
    """Chooses the prompts of the next round.

    Attributes:
      init: key -> state.
      select: (state, key, batch_size, candidates=None, exclude=None, is_firm=None) -> (ids int32 [B], SelectInfo).
        Distinct ids, best first, ties broken at random by the key. `candidates`: int [M], distinct; negative entries
        are padding, beside at least B others. `exclude`: int [E], handed out only when nothing else is left; negative
        entries are padding. `is_firm`: which of these are not handed out before either when `max_wait` gives them their
        turn, bool [E]; None is all.
      observe: (state, ids [P], successes [P], counts [P]) -> state, one round later. Distinct ids; entries with a
        negative id or a count of 0 are padding.
      predict: (state, ids=None) -> Prediction for every prompt, [N], or for some ids, [P], at the cost of these alone;
        ids outside [0, N) are padding, whose entries are 0.
      predicted_probs: (state, ids=None) -> float32 [K, N], or [K, P] as `predict` does; None for methods without it.
      num_impossible: state -> int32 scalar, or None.
      with_prior: (state, TransitionPrior) -> state under another prior that is built like the first; None for methods
        without one. May be compiled with the prior as an argument; `observe` and `select` are not compiled again.
    """

    init: Callable[[jax.Array], SelectorState]
    select: Callable[..., tuple[jax.Array, SelectInfo]]
    observe: Callable[[SelectorState, jax.Array, jax.Array, jax.Array], SelectorState]
    predict: Callable[..., Prediction]
    predicted_probs: Callable[..., jax.Array] | None = None
    num_impossible: Callable[[SelectorState], jax.Array] | None = None
    with_prior: Callable[[SelectorState, Any], SelectorState] | None = None
