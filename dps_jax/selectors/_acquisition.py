"""What makes a pick of a prediction: what a prompt is worth, how chance enters, and who has a right to a turn.

The options are the same for every method that predicts; what each of them means is said in `options`. Chance and turns
keep exploration apart from forgetting: no prompt has to be forgotten in order to be tested again.
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
from dps_jax.predictors import _outcomes
from dps_jax.selectors._options import ACQUISITION_OPTIONS
from dps_jax.types import Prediction, Predictor, PromptScore

# Rounds are counted in int32.
_MOST_ROUNDS = 2**30

_VALUES: dict[str, Callable[[Prediction], jax.Array]] = {
    "informative": lambda prediction: prediction.p_informative,
    "variance": lambda prediction: prediction.variance,
}


class Acquisition(NamedTuple):
    """How prompts are chosen: the options `AcquisitionOptions`, checked, with their defaults.

    What each option means is said where they are declared: `options.AcquisitionOptions` and what that is made of.
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
        """Returns the temperature of a draw from a pool of so many candidates per pick, which may be traced."""
        if not self.temperature or self.temperature_pool is None:
            return self.temperature
        excess = jnp.log(jnp.asarray(candidates_per_pick, jnp.float32) / self.temperature_pool)
        return 1 / (1 / self.temperature + jnp.maximum(excess, 0.0) / math.log(4))

    def quota_sizes(self, batch_size: int) -> dict[int, int]:
        """Returns how many places of a batch each group has for itself, where it has any."""
        if self.quotas is None:
            return {}
        # A hair more, so that a third of 3 is 1.
        sizes = {group: math.floor(share * batch_size + 1e-9) for group, share in enumerate(self.quotas)}
        return {group: size for group, size in sizes.items() if size}


class ScoreOf(Protocol):
    """What prompts are worth, whatever the options."""

    def __call__(self, state: Any, bits: Callable[[], jax.Array], num_prompts: int, /) -> jax.Array:
        """Returns what each prompt of a state is worth, float32 [N], or a scalar for all.

        Args:
          state: of the predictor; of N prompts, which may be some of more.
          bits: gives random words of each of them, uint32 [2, N].
          num_prompts: N.
        """
        ...


def checked(num_prompts: int, options: Mapping[str, Any]) -> Acquisition:
    """Returns the acquisition of some options.

    Args:
      num_prompts: N.
      options: see `AcquisitionOptions`.

    Raises:
      ValueError: for an unknown option, with the known ones, or one out of range.
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
                f"{list(tokens.shape)} with a least value of {tokens.min(initial=np.inf)}"
            )
        given = given._replace(expected_tokens=tokens)
    # Python floats take the dtype of what they are combined with; numbers of NumPy would widen it under x64.
    given = given._replace(temperature=float(given.temperature), explore=float(given.explore))
    return _with_quotas(num_prompts, given)


def _with_quotas(num_prompts: int, given: Acquisition) -> Acquisition:
    """Returns the acquisition with checked quotas, and without groups where there are none."""
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
    """Raises ValueError if batches are too small for every prompt to have its turn."""
    least = -(-num_prompts // batch_size)
    if max_wait < least:
        raise ValueError(
            f"max_wait: expected at least num_prompts / batch_size = {least} rounds with batches of {batch_size}, got "
            f"{max_wait}; use larger batches or a longer wait"
        )


def score_of(
    predictor: Predictor, acquisition: Acquisition, own: PromptScore | None, *, is_ordinal: bool, drawn_value: str
) -> ScoreOf:
    """Returns what a prompt is worth.

    Args:
      predictor: of the method.
      acquisition: what is wanted.
      own: what the method itself ranks by.
      is_ordinal: only the order of `own` means anything.
      drawn_value: what a drawn state is worth where `acquisition` does not say.

    Raises:
      ValueError: for an option that the method cannot follow.
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
                    f"{name}: expected value='informative' or 'variance' along with it, as this method's own score is "
                    f"only an order, got value=None"
                )
    if acquisition.value is None and own is not None:
        return lambda state, bits, num_prompts: own(state)
    value = _VALUES[acquisition.value or "informative"]
    return lambda state, bits, num_prompts: value(predictor.predict(state))


def _hardness_score(
    predictor: Predictor, hardness: float, state: Any, bits: Callable[[], jax.Array], num_prompts: int
) -> jax.Array:
    """Returns the expected worth of the outcomes of every prompt, [N]; see `Acquisition.hardness`."""
    del bits
    probs = predictor.outcome_probs(state, jnp.arange(num_prompts, dtype=jnp.int32))
    worth = _outcomes.worth_of_outcomes(probs.shape[0] - 1, hardness)
    return _exact.matmul(jnp.asarray(worth, probs.dtype), probs)
