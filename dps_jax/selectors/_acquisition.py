"""From predictions to scores: the checked options of acquisition, and the score of a prompt.

The options are the same for every method that predicts; `AcquisitionOptions` describes them. Random draws and waiting
times explore without forgetting: a prompt with a low score can be visited again even if its counts do not decay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks, _exact
from dps_jax._documented import documented
from dps_jax.predictors import _outcomes
from dps_jax.selectors._options import ACQUISITION_OPTIONS
from dps_jax.types import Prediction, Predictor, PromptScore

# Rounds are counted in int32.
_MOST_ROUNDS = 2**30

_VALUES: dict[str, Callable[[Prediction], jax.Array]] = {
    "informative": lambda prediction: prediction.p_informative,
    "variance": lambda prediction: prediction.variance,
}


@documented
class Acquisition(NamedTuple):
    """The options of acquisition with their defaults; `AcquisitionOptions` describes them in detail.

    Attributes:
      value: value of a completion group, "informative" or "variance"; None uses the score of the method.
      hardness: exponent in the score E[(1 - m / G) ** hardness; 0 < m < G], for m correct completions of G.
      thompson: whether to score states that are drawn from the beliefs.
      expected_tokens: cost of a completion of each prompt, float32 [N], or None.
      temperature: 0 picks the best scores; above 0, picks are drawn with weights score ** (1 / temperature).
      temperature_pool: number of candidates per pick that the temperature is meant for, or None.
      explore: approximate share of a batch that is drawn independently of the scores.
      max_wait: largest number of rounds between two visits of a prompt, or None.
      quotas: minimum share of a batch for each prompt group, or None.
      groups: group of each prompt, int32 [N], or None without quotas.

    Example:
      >>> from dps_jax import selectors
      >>> acquisition = selectors.Acquisition(temperature=0.3, quotas=(0.5, 0.25))
      >>> acquisition.is_random, acquisition.quota_sizes(batch_size=8)  # prompts of group 0 and of group 1
      (True, {0: 4, 1: 2})
    """

    value: str | None = None
    hardness: float = 0.0
    thompson: bool = False
    expected_tokens: Any = None
    temperature: float = 0.0
    temperature_pool: float | None = None
    explore: float = 0.0
    max_wait: int | None = None
    quotas: Any = None
    groups: Any = None

    @property
    def is_random(self) -> bool:
        """Whether picks are drawn with known probabilities."""
        return self.temperature > 0

    def temperature_among(self, candidates_per_pick: float | jax.Array) -> float | jax.Array:
        """Returns the temperature of a draw from a pool.

        Args:
          candidates_per_pick: number of candidates divided by the number of picks; may be traced.
        """
        if not self.temperature or self.temperature_pool is None:
            return self.temperature
        excess = jnp.log(jnp.asarray(candidates_per_pick, jnp.float32) / self.temperature_pool)
        return 1 / (1 / self.temperature + jnp.maximum(excess, 0.0) / math.log(4))

    def quota_sizes(self, batch_size: int) -> dict[int, int]:
        """Returns the quota of each prompt group as a number of prompts; groups without a quota are absent.

        Args:
          batch_size: number of prompts of the batch, B.
        """
        if self.quotas is None:
            return {}
        # A small number is added, so that a third of 3 is 1 despite rounding.
        sizes = {group: math.floor(share * batch_size + 1e-9) for group, share in enumerate(self.quotas)}
        return {group: size for group, size in sizes.items() if size}


class ScoreOf(Protocol):
    """The score of prompts under given options."""

    def __call__(self, state: Any, bits: Callable[[], jax.Array], num_prompts: int, /) -> jax.Array:
        """Returns the score of each prompt of a state, float32 [N], or a scalar for all.

        Args:
          state: state of the predictor for N prompts, which may be a part of all prompts.
          bits: function () -> random words of each prompt, uint32 [2, N].
          num_prompts: number of prompts in the state, N.
        """
        ...


def checked(num_prompts: int, options: Mapping[str, Any]) -> Acquisition:
    """Returns the checked acquisition for some options.

    Args:
      num_prompts: number of prompts, N.
      options: options of `AcquisitionOptions` by name.

    Raises:
      ValueError: for an unknown option, with a list of the known ones, or an option out of range.
    """
    _checks.check_options("options of the acquisition", options, ACQUISITION_OPTIONS)
    given = Acquisition(**options)
    if given.value is not None:
        _checks.check_choice("value", given.value, _VALUES)
    _outcomes.check_hardness(given.hardness)
    _checks.check_bool("thompson", given.thompson)
    if given.hardness and (given.value == "variance" or given.thompson):
        other = "value='variance'" if given.value == "variance" else "thompson=True"
        raise ValueError(f"hardness: expected 0 along with {other}, got {given.hardness}")
    _checks.check_number("temperature", given.temperature, at_least=0)
    if given.temperature_pool is not None:
        _checks.check_number("temperature_pool", given.temperature_pool, above=0)
    if given.temperature_pool is not None and not given.temperature:
        raise ValueError(
            f"temperature: expected a number > 0 along with temperature_pool={given.temperature_pool}, got 0"
        )
    _checks.check_number("explore", given.explore, at_least=0, below=1, hint="it is a share of a batch")
    if given.explore and not given.temperature:
        raise ValueError(f"temperature: expected a number > 0 along with explore={given.explore}, got 0")
    if given.max_wait is not None:
        _checks.check_int("max_wait", given.max_wait, at_least=1, at_most=_MOST_ROUNDS)
    if given.expected_tokens is not None:
        tokens = _checks.as_numbers("expected_tokens", given.expected_tokens).astype(np.float32)
        if tokens.shape != (num_prompts,) or not np.all(np.isfinite(tokens) & (tokens > 0)):
            raise ValueError(
                f"expected_tokens: expected {num_prompts} finite numbers > 0, one per prompt, got shape "
                f"{list(tokens.shape)} with a smallest value of {tokens.min(initial=np.inf)}"
            )
        given = given._replace(expected_tokens=tokens)
    # Python floats take the dtype of the other operand; NumPy numbers would widen it if `jax_enable_x64` is set.
    given = given._replace(temperature=float(given.temperature), explore=float(given.explore))
    return _with_quotas(num_prompts, given)


def _with_quotas(num_prompts: int, given: Acquisition) -> Acquisition:
    """Returns the acquisition with checked quotas, and without groups if there are no quotas."""
    groups = None if given.groups is None else _checks.check_groups(given.groups, num_prompts)
    if given.quotas is None:
        return given._replace(groups=None)
    quotas = _checks.as_numbers("quotas", given.quotas)
    if quotas.ndim != 1 or not np.all((quotas >= 0) & (quotas <= 1)) or quotas.sum() > 1 + 1e-9:
        raise ValueError(f"quotas: expected shares of a batch that sum to at most 1, got {given.quotas!r}")
    if groups is None:
        raise ValueError(f"groups: expected {num_prompts} ids for the quotas of {quotas.size} groups, got None")
    if groups.min() < -1 or groups.max() >= quotas.size:
        bad = groups[(groups < -1) | (groups >= quotas.size)][0]
        raise ValueError(f"groups: expected ids in [-1, {quotas.size}), one for every quota, got {bad}")
    return given._replace(quotas=tuple(quotas.tolist()), groups=groups.astype(np.int32))


def check_max_wait(max_wait: int, num_prompts: int, batch_size: int) -> None:
    """Raises ValueError if batches are too small to visit every prompt within `max_wait` rounds."""
    least = -(-num_prompts // batch_size)
    if max_wait < least:
        raise ValueError(
            f"max_wait: expected at least num_prompts / batch_size = {least} rounds with batches of {batch_size}, got "
            f"{max_wait}; use larger batches or a longer wait"
        )


def score_of(
    predictor: Predictor, acquisition: Acquisition, own: PromptScore | None, *, is_ordinal: bool, drawn_value: str
) -> ScoreOf:
    """Returns the function that scores prompts.

    Args:
      predictor: predictor of the method.
      acquisition: checked options.
      own: score of the method itself, or None for P(0 < m < G).
      is_ordinal: whether only the order of `own` is meaningful.
      drawn_value: value of a drawn state if the option `value` is None: "informative" or "variance".

    Raises:
      ValueError: for an option that the method does not support.
    """
    if acquisition.thompson:
        draw = predictor.draw
        if draw is None:
            raise ValueError("thompson: expected False for a method that has no belief to draw from, got True")
        value = _VALUES[acquisition.value or drawn_value]
        return lambda state, bits, num_prompts: value(draw(state, bits()))
    if acquisition.hardness:
        return functools.partial(_hardness_score, predictor, acquisition.hardness)
    if is_ordinal and acquisition.value is None:
        for name, is_given in (
            ("temperature", acquisition.temperature > 0),
            ("expected_tokens", acquisition.expected_tokens is not None),
        ):
            if is_given:
                raise ValueError(
                    f"{name}: expected value='informative' or 'variance' along with this option, because only the "
                    "order of this method's own scores is meaningful, got value=None"
                )
    if acquisition.value is None and own is not None:
        return lambda state, bits, num_prompts: own(state)
    value = _VALUES[acquisition.value or "informative"]
    return lambda state, bits, num_prompts: value(predictor.predict(state))


def _hardness_score(
    predictor: Predictor, hardness: float, state: Any, bits: Callable[[], jax.Array], num_prompts: int
) -> jax.Array:
    """Returns the expected value of the next outcome of every prompt under the option `hardness`, [N]."""
    del bits
    probs = predictor.outcome_probs(state, jnp.arange(num_prompts, dtype=jnp.int32))
    worth = _outcomes.worth_of_outcomes(probs.shape[0] - 1, hardness)
    return _exact.matmul(jnp.asarray(worth, probs.dtype), probs)
