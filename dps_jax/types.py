"""The protocols that parts meet through: `Predictor` and `Selector`, each a NamedTuple of pure functions.

Every function has a class here that gives its signature and describes it. N is the number of prompts, P that of some of
them, B that of the prompts of one round, G that of completions per prompt, K that of states.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.typing import ArrayLike

__all__ = [
    "ArrayLayout",
    "DrawPrompts",
    "FromPortable",
    "Init",
    "InitPrompts",
    "Layout",
    "NumImpossible",
    "Observe",
    "ObservePrompts",
    "OutcomeProbs",
    "Predict",
    "PredictPrompts",
    "PredictedProbs",
    "Prediction",
    "Predictor",
    "PredictorState",
    "PromptScore",
    "Select",
    "SelectInfo",
    "Selector",
    "SelectorState",
    "ToPortable",
    "WithPrior",
]

PredictorState = Any
SelectorState = Any


class Prediction(NamedTuple):
    """What the next completion group of each prompt is expected to look like.

    Attributes:
      p_informative: probability that it is partially solved, 0 < m < G, float32 [N].
      success_rate: expected m / G, float32 [N].
      variance: expected variance of its rewards, m / G * (1 - m / G), float32 [N].
    """

    p_informative: jax.Array
    success_rate: jax.Array
    variance: jax.Array


@runtime_checkable
class InitPrompts(Protocol):
    """Function `Predictor.init`."""

    def __call__(self, num_prompts: int, first_id: Any = 0, /) -> PredictorState:
        """Returns the state of prompts that were never visited.

        Args:
          num_prompts: how many prompts.
          first_id: id of the first one, int or int32 scalar, may be traced; the others follow. Some ids may be past
            the last prompt: their entries are padding and never read, but must be finite.

        Returns:
          A pytree. Every leaf has the prompts on its last axis, or does not depend on how many there are. What is
          looked up by the id of a prompt (its group, its features) is a leaf too: the entries of some prompts together
          with the leaves that all prompts share are the state of these prompts, for every function but `observe`.
        """
        ...


@runtime_checkable
class PredictPrompts(Protocol):
    """Function `Predictor.predict`."""

    def __call__(self, state: PredictorState, /) -> Prediction:
        """Returns the prediction for each prompt of a state, [N] per field; a scalar field stands for all prompts."""
        ...


@runtime_checkable
class ObservePrompts(Protocol):
    """Function `Predictor.observe`."""

    def __call__(
        self,
        state: PredictorState,
        ids: jax.Array,
        successes: jax.Array,
        counts: jax.Array,
        axis_name: str | None = None,
        /,
    ) -> PredictorState:
        """Returns the state one round later, of the same structure, shapes and dtypes.

        Args:
          state: before the round.
          ids: positions of the observed prompts in this state, int32 [P], distinct; those outside [0, N) are left out.
          successes: correct completions, int32 [P].
          counts: completions, int32 [P]; 0 is padding.
          axis_name: of the mesh axis of the prompts, under `shard_map` or `vmap`; None without. What is learned from
            all prompts is summed over this axis.
        """
        ...


@runtime_checkable
class OutcomeProbs(Protocol):
    """Function `Predictor.outcome_probs`."""

    def __call__(self, state: PredictorState, positions: jax.Array, /) -> jax.Array:
        """Returns the distribution of the next outcome of some prompts.

        Args:
          state: of N prompts.
          positions: int [P]; those outside [0, N) give a column of no meaning.

        Returns:
          Probabilities of m = 0, ..., G correct completions, float32 [G + 1, P]; columns sum to 1. G is an option of
          the method.
        """
        ...


@runtime_checkable
class DrawPrompts(Protocol):
    """Function `Predictor.draw`."""

    def __call__(self, state: PredictorState, bits: jax.Array, /) -> Prediction:
        """Returns the prediction for each prompt as if a state drawn from the belief about it were the true one.

        Args:
          state: of N prompts.
          bits: two random words of 30 bits for each prompt, uint32 [2, N].
        """
        ...


@runtime_checkable
class PredictedProbs(Protocol):
    """Function `predicted_probs`, of `Predictor` and of `Selector`."""

    def __call__(self, state: Any, positions: Any = None, /) -> jax.Array:
        """Returns the belief about the hidden state of prompts in the next round, columns sum to 1.

        Args:
          state: of N prompts.
          positions: of some prompts, int [P], at the cost of these alone; None is all. Positions outside [0, N) give a
            column of no meaning from a predictor, and of zeros from a selector.

        Returns:
          Probabilities, float32 [K, N] or [K, P].
        """
        ...


@runtime_checkable
class NumImpossible(Protocol):
    """Function `num_impossible`, of `Predictor` and of `Selector`."""

    def __call__(self, state: Any, /) -> jax.Array:
        """Returns how many observations so far the model gave no chance, int32 scalar."""
        ...


@runtime_checkable
class WithPrior(Protocol):
    """Function `with_prior`, of `Predictor` and of `Selector`."""

    def __call__(self, state: Any, prior: Any, /) -> Any:
        """Returns the state under another prior; what was learned from observations stays.

        May be compiled with the prior as an argument; `observe` and `select` are not compiled again.

        Args:
          state: of any round.
          prior: a `TransitionPrior` that is built like the first one.

        Raises:
          ValueError: for a prior with another emission, number of states or number of groups, or with
            trained_concentration where the first had none, or the reverse.
        """
        ...


@runtime_checkable
class PromptScore(Protocol):
    """What a method ranks prompts by, the argument `score` of `selectors.from_predictor`."""

    def __call__(self, state: PredictorState, /) -> jax.Array:
        """Returns what each prompt of a state is ranked by, float32 [N] or scalar, without NaN; the largest is best."""
        ...


class Predictor(NamedTuple):
    """Predicts outcomes from outcomes. Never sees a mesh: under `shard_map` it is given one shard of the prompts.

    Attributes:
      init: (num_prompts, first_id=0) -> state; see `InitPrompts`.
      predict: state -> Prediction; see `PredictPrompts`.
      observe: (state, ids, successes, counts, axis_name=None) -> state; see `ObservePrompts`.
      outcome_probs: (state, positions) -> [G + 1, P]; see `OutcomeProbs`.
      draw: (state, bits) -> Prediction, see `DrawPrompts`; None for methods that keep no belief.
      predicted_probs: (state, positions=None) -> [K, N] or [K, P], see `PredictedProbs`; None for methods without
        hidden states.
      num_impossible: state -> int32 scalar, see `NumImpossible`; None where no observation is impossible.
      with_prior: (state, prior) -> state, see `WithPrior`; None for methods without a prior.
    """

    init: InitPrompts
    predict: PredictPrompts
    observe: ObservePrompts
    outcome_probs: OutcomeProbs
    draw: DrawPrompts | None = None
    predicted_probs: PredictedProbs | None = None
    num_impossible: NumImpossible | None = None
    with_prior: WithPrior | None = None


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


@runtime_checkable
class Init(Protocol):
    """Function `Selector.init`."""

    def __call__(self, key: jax.Array) -> SelectorState:
        """Returns the state before the first round, placed on the devices of the selector.

        Args:
          key: from `jax.random.key`; for methods whose first state is random, of which there is none here.
        """
        ...


@runtime_checkable
class Select(Protocol):
    """Function `Selector.select`."""

    def __call__(
        self,
        state: SelectorState,
        key: jax.Array,
        batch_size: int,
        candidates: ArrayLike | None = None,
        exclude: ArrayLike | None = None,
        is_firm: ArrayLike | None = None,
    ) -> tuple[jax.Array, SelectInfo]:
        """Returns the prompts of the next round; ties are broken at random.

        Args:
          state: of N prompts.
          key: from `jax.random.key`; the picks are a function of it and of the state.
          batch_size: B, a Python int.
          candidates: ids to choose from, int [M], distinct, below N; negative entries are padding, beside at least B
            others. None is all prompts. Costs nothing that grows with N.
          exclude: ids that are picked only where fewer than B others are left, int [X]; negative entries are padding.
          is_firm: which of `exclude` are so even when `max_wait` gives them their turn, bool [X]; None is all.

        Returns:
          Distinct ids, best first, int32 [B], and what is reported about them.

        Raises:
          ValueError: for a batch larger than N or M, below 1, or too small for `max_wait`.
        """
        ...


@runtime_checkable
class Observe(Protocol):
    """Function `Selector.observe`."""

    def __call__(
        self, state: SelectorState, ids: ArrayLike, successes: ArrayLike, counts: ArrayLike, /
    ) -> SelectorState:
        """Returns the state one round later, of the same structure, shapes, dtypes and placement.

        Args:
          state: before the round; may be donated.
          ids: observed prompts, int [P], distinct; negative entries are padding.
          successes: correct completions, int [P].
          counts: completions, int [P]; 0 is padding.
        """
        ...


@runtime_checkable
class Predict(Protocol):
    """Function `Selector.predict`."""

    def __call__(self, state: SelectorState, ids: ArrayLike | None = None, /) -> Prediction:
        """Returns the prediction for prompts.

        Args:
          state: of N prompts.
          ids: of some prompts, int [P], at the cost of these alone; None is all. Ids outside [0, N) are padding, whose
            entries are 0.

        Returns:
          Fields of shape [N] or [P].
        """
        ...


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """One array of a state as `to_portable` returns it.

    Attributes:
      shape: without the padding of a mesh.
      dtype: its name.
      has_prompts: whether the last axis is that of the prompts.
    """

    shape: tuple[int, ...]
    dtype: str
    has_prompts: bool

    def of(self, num_prompts: int) -> ArrayLayout:
        """Returns that of the same array for another number of prompts."""
        return dataclasses.replace(self, shape=(*self.shape[:-1], num_prompts)) if self.has_prompts else self

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@runtime_checkable
class Layout(Protocol):
    """Function `Selector.layout`."""

    def __call__(self) -> Any:
        """Returns an `ArrayLayout` for every array that `to_portable` returns, in a pytree of the same structure."""
        ...


@runtime_checkable
class ToPortable(Protocol):
    """Function `Selector.to_portable`."""

    def __call__(self, state: SelectorState, /) -> Any:
        """Returns the state as NumPy arrays that do not depend on how it was sharded, for saving.

        The pytree has the structure of the state; its leaves are copies, without the padding of a mesh. Not for use
        under `jit`. With several processes, all of them have to call it.
        """
        ...


@runtime_checkable
class FromPortable(Protocol):
    """Function `Selector.from_portable`."""

    def __call__(self, arrays: Any, /) -> SelectorState:
        """Returns a state placed as `init` places it.

        Args:
          arrays: what `to_portable` returned, of a selector with the same options on any mesh or none.

        Raises:
          ValueError: for another structure, or a leaf of another shape or dtype.
        """
        ...


class Selector(NamedTuple):
    """Chooses the prompts of the next round.

    Attributes:
      init: key -> state; see `Init`.
      select: (state, key, batch_size, candidates=None, exclude=None, is_firm=None) -> (ids int32 [B], SelectInfo); see
        `Select`.
      observe: (state, ids, successes, counts) -> state; see `Observe`.
      predict: (state, ids=None) -> Prediction; see `Predict`.
      to_portable: state -> the same as NumPy arrays, without the padding of a mesh; see `ToPortable`.
      from_portable: arrays -> state placed as `init` places it; see `FromPortable`.
      layout: () -> what arrays `to_portable` returns; see `Layout`.
      predicted_probs: (state, ids=None) -> float32 [K, N] or [K, P], see `PredictedProbs`; None for methods without
        hidden states.
      num_impossible: state -> int32 scalar, see `NumImpossible`; None where no observation is impossible.
      with_prior: (state, prior) -> state, see `WithPrior`; None for methods without a prior.
    """

    init: Init
    select: Select
    observe: Observe
    predict: Predict
    to_portable: ToPortable
    from_portable: FromPortable
    layout: Layout
    predicted_probs: PredictedProbs | None = None
    num_impossible: NumImpossible | None = None
    with_prior: WithPrior | None = None
