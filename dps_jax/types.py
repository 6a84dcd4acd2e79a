"""The protocols between the parts of the library: `Predictor` and `Selector`, NamedTuples of pure functions.

For every function of the two, this module has a protocol class with the signature and its description. Axis letters
(docs/terms.md): N is the number of all prompts, P the number of prompts in one call, B the number of prompts in the
batch of a round, M the number of candidates, X the number of excluded prompts, G the number of completions per prompt,
and K the number of hidden states.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.typing import ArrayLike

from dps_jax._documented import documented, short_repr

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

# States are pytrees of arrays; every method has its own type of state.
PredictorState = Any
SelectorState = Any


@documented
class Prediction(NamedTuple):
    """The expected outcome of the next completion group of each prompt.

    Attributes:
      p_informative: probability that the group is informative, 0 < m < G for m correct completions, float32 [N].
      success_rate: expected share of correct completions, m / G, float32 [N].
      variance: expected variance of the correctness of the completions, m / G * (1 - m / G), float32 [N].

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.mopps(3)
      >>> prediction = selector.predict(selector.init(jax.random.key(0)))
      >>> print(prediction.success_rate)
      [0.5 0.5 0.5]
    """

    p_informative: jax.Array
    success_rate: jax.Array
    variance: jax.Array


@runtime_checkable
class InitPrompts(Protocol):
    """The function `Predictor.init`, which returns the state before the first round.

    Example:
      >>> from dps_jax import predictors
      >>> state = predictors.mopps().init(3)
      >>> print(state.successes)  # the parameters a of Beta(a, b) priors
      [1. 1. 1.]
    """

    def __call__(self, num_prompts: int, first_id: Any = 0, /) -> PredictorState:
        """Returns the state of prompts that were never visited.

        Args:
          num_prompts: number of prompts in the state: N, or the number of prompts in one shard.
          first_id: id of the first of these prompts, an int or an int32 scalar, which may be traced; the ids of the
            others follow it. Ids may go past the last prompt: their entries are padding, which is never read but must
            be finite.

        Returns:
          A pytree. Every leaf either has the prompts on its last axis, or does not depend on their number. Side
          information about prompts, such as their groups or features, is stored in such leaves too. The entries of some
          prompts, together with the shared leaves, are therefore a valid state of these prompts for every function
          except `observe`.
        """
        ...


@runtime_checkable
class PredictPrompts(Protocol):
    """The function `Predictor.predict`, which predicts the next outcome of all prompts.

    Example:
      >>> from dps_jax import predictors
      >>> predictor = predictors.mopps()
      >>> print(predictor.predict(predictor.init(3)).success_rate)
      [0.5 0.5 0.5]
    """

    def __call__(self, state: PredictorState, /) -> Prediction:
        """Returns the prediction for each prompt of a state, [N] per field; a scalar field stands for all prompts."""
        ...


@runtime_checkable
class ObservePrompts(Protocol):
    """The function `Predictor.observe`, which updates the state with the outcomes of a round.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import predictors
      >>> predictor = predictors.mopps()
      >>> ids, successes, counts = jnp.array([0, 2]), jnp.array([8, 2]), jnp.array([8, 8])
      >>> state = predictor.observe(predictor.init(3), ids, successes, counts)
      >>> print(state.successes)  # 1 from the prior, plus the correct completions
      [9. 1. 3.]
    """

    def __call__(
        self,
        state: PredictorState,
        ids: jax.Array,
        successes: jax.Array,
        counts: jax.Array,
        axis_name: str | None = None,
        /,
    ) -> PredictorState:
        """Returns the state after a round with the given outcomes, of the same structure, shapes and dtypes.

        Args:
          state: state before the round.
          ids: positions of the observed prompts in this state, int32 [P], distinct. Positions outside [0, N) are
            ignored, except in the totals over all prompts of `predictors.constant` and `predictors.history`.
          successes: number of correct completions of each observed prompt, int32 [P].
          counts: number of completions of each observed prompt, int32 [P]; an entry with a count of 0 is padding.
          axis_name: name of the mesh axis that the prompts are sharded along, under `shard_map` or `vmap`; None
            without a mesh. Statistics over all prompts are summed over this axis.
        """
        ...


@runtime_checkable
class OutcomeProbs(Protocol):
    """The function `Predictor.outcome_probs`, the predicted distribution of the number of correct completions.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> predictor = predictors.mopps(group_size=3)
      >>> print(np.asarray(predictor.outcome_probs(predictor.init(5), jnp.array([4]))[:, 0]).round(2))  # m = 0, 1, 2, 3
      [0.25 0.25 0.25 0.25]
    """

    def __call__(self, state: PredictorState, positions: jax.Array, /) -> jax.Array:
        """Returns the distribution of the next outcome of some prompts.

        Args:
          state: state of N prompts.
          positions: positions of the prompts in the state, int [P]; columns for positions outside [0, N) are undefined.

        Returns:
          Probabilities of m = 0, ..., G correct completions, float32 [G + 1, P]; columns sum to 1. G is an option of
          the method.
        """
        ...


@runtime_checkable
class DrawPrompts(Protocol):
    """The function `Predictor.draw`, which returns the random predictions by which Thompson sampling ranks prompts.

    Example:
      >>> import jax
      >>> from dps_jax import predictors
      >>> predictor = predictors.mopps()
      >>> bits = jax.random.bits(jax.random.key(0), (2, 3)) >> 2  # two 30-bit words for each of three prompts
      >>> predictor.draw(predictor.init(3), bits).success_rate.shape
      (3,)
    """

    def __call__(self, state: PredictorState, bits: jax.Array, /) -> Prediction:
        """Returns the prediction for each prompt given one hidden state drawn from the belief about the prompt.

        Args:
          state: state of N prompts.
          bits: two random 30-bit words per prompt, uint32 [2, N].
        """
        ...


@runtime_checkable
class PredictedProbs(Protocol):
    """The function `predicted_probs` of `Predictor` and `Selector`, which returns the belief about the hidden states.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.dps(5)
      >>> selector.predicted_probs(selector.init(jax.random.key(0))).shape  # three states, five prompts
      (3, 5)
    """

    def __call__(self, state: Any, positions: Any = None, /) -> jax.Array:
        """Returns the belief about the hidden states of prompts in the next round; columns sum to 1.

        Args:
          state: state of N prompts.
          positions: positions of the prompts to compute, int [P]; None computes all prompts. For positions outside
            [0, N), a predictor returns undefined columns, and a selector returns columns of zeros.

        Returns:
          Probabilities, float32 [K, N] or [K, P].
        """
        ...


@runtime_checkable
class NumImpossible(Protocol):
    """The function `Selector.num_impossible`, the number of observations so far with probability 0 under the model.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.dps(5)
      >>> int(selector.num_impossible(selector.init(jax.random.key(0))))
      0
    """

    def __call__(self, state: Any, /) -> jax.Array:
        """Returns the number of observations so far that had probability 0 under the model, int32 scalar."""
        ...


@runtime_checkable
class WithPrior(Protocol):
    """The function `with_prior` of `Predictor` and `Selector`, which replaces the prior of a running method.

    Example:
      >>> import jax
      >>> from dps_jax import hmm, selectors
      >>> selector = selectors.dps(5)
      >>> state = selector.init(jax.random.key(0))
      >>> state = selector.with_prior(state, hmm.resolve_prior("progress", initial=[0.5, 0.25, 0.25]))
      >>> print(selector.predicted_probs(state)[:, 0])
      [0.5  0.25 0.25]
    """

    def __call__(self, state: Any, prior: Any, /) -> Any:
        """Returns the state with its prior replaced; transition counts that were learned from observations are kept.

        The prior may be an argument of a jitted function. `observe` and `select` are not compiled again.

        Args:
          state: state after any number of rounds.
          prior: a `TransitionPrior` with the same structure as the prior that the method was built with.

        Raises:
          ValueError: if the new prior has a different emission, number of states or number of groups, or other group
            ids, or if `trained_concentration` is set in only one of the two priors.
        """
        ...


@runtime_checkable
class PromptScore(Protocol):
    """The function by which a method scores prompts: the argument `score` of `selectors.from_predictor`.

    Example:
      >>> import jax
      >>> from dps_jax import predictors, selectors
      >>> predictor = predictors.mopps()
      >>> easiest_first = lambda state: predictor.predict(state).success_rate
      >>> selector = selectors.from_predictor(5, predictor, easiest_first)
      >>> ids, info = selector.select(selector.init(jax.random.key(0)), jax.random.key(1), 2)
      >>> print(info.scores)
      [0.5 0.5]
    """

    def __call__(self, state: PredictorState, /) -> jax.Array:
        """Returns the score of each prompt of a state, float32 [N] or a scalar, without NaN; larger is better."""
        ...


@documented
class Predictor(NamedTuple):
    """A prediction method: pure functions that predict the outcomes of prompts from their earlier outcomes.

    A predictor does not depend on a mesh: under `shard_map`, each call receives one shard of the prompts.

    Attributes:
      init: (num_prompts, first_id=0) -> state; see `InitPrompts`.
      predict: state -> `Prediction`; see `PredictPrompts`.
      observe: (state, ids, successes, counts, axis_name=None) -> state; see `ObservePrompts`.
      outcome_probs: (state, positions) -> probabilities [G + 1, P]; see `OutcomeProbs`.
      draw: (state, bits) -> `Prediction`, see `DrawPrompts`; None for methods without a distribution to draw from.
      predicted_probs: (state, positions=None) -> probabilities [K, N] or [K, P], see `PredictedProbs`; None for methods
        without hidden states.
      num_impossible: state -> int32 scalar, see `NumImpossible`; None for methods under which every outcome is
        possible.
      with_prior: (state, prior) -> state, see `WithPrior`; None for methods without a `TransitionPrior`.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import predictors
      >>> predictor = predictors.mopps(group_size=8)
      >>> state = predictor.init(3)
      >>> state = predictor.observe(state, jnp.array([0, 2]), jnp.array([8, 2]), jnp.array([8, 8]))
      >>> print(predictor.predict(state).success_rate)
      [0.9 0.5 0.3]
    """

    init: InitPrompts
    predict: PredictPrompts
    observe: ObservePrompts
    outcome_probs: OutcomeProbs
    draw: DrawPrompts | None = None
    predicted_probs: PredictedProbs | None = None
    num_impossible: NumImpossible | None = None
    with_prior: WithPrior | None = None

    __repr__ = short_repr


@documented
class SelectInfo(NamedTuple):
    """Scores and inclusion probabilities of the prompts of one selection.

    Attributes:
      scores: score by which each picked prompt was ranked, float32 [B], for example P(0 < m < G) for `dps`. With a
        temperature, the score is the log weight plus Gumbel noise. The score is 1e30 or more for prompts that were due
        by `max_wait`.
      inclusion_probs: probability with which each picked prompt was picked, float32 [B], given the log weights of
        all prompts and the largest score (with its Gumbel noise) among the prompts that were not picked. Sums over the
        picks with weights 1 / inclusion_probs are unbiased estimates of sums over all candidates that are not excluded.
        None if the temperature is 0; `uniform`, which has no temperature, reports the probabilities unless its option
        `max_wait` or `quotas` is set.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.uniform(10)
      >>> ids, info = selector.select(selector.init(jax.random.key(0)), jax.random.key(1), 2)
      >>> print(info.inclusion_probs)
      [0.2 0.2]
    """

    scores: jax.Array
    inclusion_probs: jax.Array | None = None


@runtime_checkable
class Init(Protocol):
    """The function `Selector.init`, which returns the state before the first round.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> state = selectors.mopps(5).init(jax.random.key(0))
      >>> state.successes.shape
      (5,)
    """

    def __call__(self, key: jax.Array) -> SelectorState:
        """Returns the state before the first round, placed on the devices of the selector.

        Args:
          key: key from `jax.random.key`, for methods with a random initial state. The methods of this library do not
            use it.
        """
        ...


@runtime_checkable
class Select(Protocol):
    """The function `Selector.select`, which picks the prompts of the next round.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.uniform(100)
      >>> state = selector.init(jax.random.key(0))
      >>> ids, info = selector.select(state, jax.random.key(1), 2, candidates=np.array([7, 9]))
      >>> sorted(ids.tolist())
      [7, 9]
    """

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
          state: state of N prompts.
          key: key from `jax.random.key`; the picks are a deterministic function of the key and the state.
          batch_size: number of prompts to pick, B, a Python int.
          candidates: ids of the prompts to choose from, int [M], distinct and below N; negative entries are padding,
            and at least B entries must be ids. None chooses from all prompts. With candidates, the cost does not grow
            with N.
          exclude: ids of prompts that are picked only if fewer than B others are left, int [X]; negative entries are
            padding.
          is_firm: whether each entry of `exclude` stays excluded even when it is due by `max_wait`, bool [X]; None
            means that all do.

        Returns:
          Distinct ids, best first, int32 [B], and a `SelectInfo` about them.

        Raises:
          ValueError: if `batch_size` is below 1, above N or M, or, without candidates, too small for `max_wait`.
        """
        ...


@runtime_checkable
class Observe(Protocol):
    """The function `Selector.observe`, which updates the state with the outcomes of a round.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.mopps(3)
      >>> state = selector.init(jax.random.key(0))
      >>> state = selector.observe(state, np.array([0, 2]), np.array([8, 2]), np.array([8, 8]))
      >>> print(selector.predict(state).success_rate)
      [0.9 0.5 0.3]
    """

    def __call__(
        self, state: SelectorState, ids: ArrayLike, successes: ArrayLike, counts: ArrayLike, /
    ) -> SelectorState:
        """Returns the state after a round with the given outcomes, of the same structure, shapes, dtypes and placement.

        Args:
          state: state before the round; its buffers may be donated.
          ids: ids of the observed prompts, int [P], distinct; negative entries are padding.
          successes: number of correct completions of each observed prompt, int [P].
          counts: number of completions of each observed prompt, int [P]; an entry with a count of 0 is padding.
        """
        ...


@runtime_checkable
class Predict(Protocol):
    """The function `Selector.predict`, which predicts the next outcome of all prompts or of some.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.mopps(5)
      >>> print(np.asarray(selector.predict(selector.init(jax.random.key(0)), np.array([3, 4])).success_rate).round(2))
      [0.5 0.5]
    """

    def __call__(self, state: SelectorState, ids: ArrayLike | None = None, /) -> Prediction:
        """Returns the prediction for all prompts or for some of them.

        Args:
          state: state of N prompts.
          ids: ids of the prompts to predict, int [P]; None predicts all prompts. Ids outside [0, N) are padding, and
            their entries in the result are 0.

        Returns:
          A `Prediction` with fields of shape [N] or [P].
        """
        ...


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """Shape and dtype of one array of a state, as returned by `Selector.to_portable`.

    Attributes:
      shape: shape of the array, without the padding that a mesh adds.
      dtype: name of the dtype, such as "float32".
      has_prompts: whether the last axis is the axis of the prompts.

    Example:
      >>> from dps_jax import types
      >>> layout = types.ArrayLayout(shape=(3, 100), dtype="float32", has_prompts=True)
      >>> layout.of(num_prompts=200).shape
      (3, 200)
    """

    shape: tuple[int, ...]
    dtype: str
    has_prompts: bool

    def of(self, num_prompts: int) -> ArrayLayout:
        """Returns the layout of the same array for another number of prompts."""
        return dataclasses.replace(self, shape=(*self.shape[:-1], num_prompts)) if self.has_prompts else self

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@runtime_checkable
class Layout(Protocol):
    """The function `Selector.layout`, which describes the arrays of a saved state.

    Example:
      >>> from dps_jax import selectors
      >>> print(selectors.mopps(5).layout().successes)
      float32[5]
    """

    def __call__(self) -> Any:
        """Returns an `ArrayLayout` for every array that `to_portable` returns, in a pytree of the same structure."""
        ...


@runtime_checkable
class ToPortable(Protocol):
    """The function `Selector.to_portable`, which returns a state as NumPy arrays, for saving.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.mopps(5)
      >>> arrays = selector.to_portable(selector.init(jax.random.key(0)))
      >>> type(arrays.successes).__name__
      'ndarray'
    """

    def __call__(self, state: SelectorState, /) -> Any:
        """Returns the state as NumPy arrays, which do not depend on how the state was sharded.

        The pytree has the structure of the state. Its leaves are copies, without the padding that a mesh adds. The
        function does not work under `jit`. With several processes, all of them have to call it.
        """
        ...


@runtime_checkable
class FromPortable(Protocol):
    """The function `Selector.from_portable`, which restores a state from NumPy arrays.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.mopps(5)
      >>> arrays = selector.to_portable(selector.init(jax.random.key(0)))
      >>> selector.from_portable(arrays).successes.shape
      (5,)
    """

    def __call__(self, arrays: Any, /) -> SelectorState:
        """Returns the state, placed on devices as `init` places it.

        Args:
          arrays: result of `to_portable` of a selector with the same options, with any mesh or none.

        Raises:
          ValueError: if `arrays` differs from a state of this selector in its structure, or a leaf in its shape or
            dtype.
        """
        ...


@documented
class Selector(NamedTuple):
    """A selection method: pure functions that choose the prompts of each round.

    Attributes:
      init: key -> state; see `Init`.
      select: (state, key, batch_size, candidates=None, exclude=None, is_firm=None) -> (ids int32 [B], `SelectInfo`);
        see `Select`.
      observe: (state, ids, successes, counts) -> state; see `Observe`.
      predict: (state, ids=None) -> `Prediction`; see `Predict`.
      to_portable: state -> the state as NumPy arrays, however it was sharded; see `ToPortable`.
      from_portable: arrays -> state, placed as `init` places it; see `FromPortable`.
      layout: () -> the layout of the arrays that `to_portable` returns; see `Layout`.
      predicted_probs: (state, ids=None) -> probabilities, float32 [K, N] or [K, P], see `PredictedProbs`; None for
        methods without hidden states.
      num_impossible: state -> int32 scalar, see `NumImpossible`; None for methods under which every outcome is
        possible.
      with_prior: (state, prior) -> state, see `WithPrior`; None for methods without a `TransitionPrior`.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.mopps(4)
      >>> state = selector.init(jax.random.key(0))
      >>> state = selector.observe(state, np.arange(4), np.array([0, 3, 8, 5]), np.full(4, 8))
      >>> ids, info = selector.select(state, jax.random.key(1), batch_size=2)
      >>> sorted(ids.tolist())  # the prompts with success rates nearest to 1/2
      [1, 3]
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

    __repr__ = short_repr
