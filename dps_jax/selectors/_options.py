"""The options that methods share, with what each of them means, and errors that list all options of a method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypedDict, TypeVar

from dps_jax import _checks

_Params = ParamSpec("_Params")
_Built = TypeVar("_Built")


class WithoutPool(TypedDict, total=False):
    """Options of a method that takes all others of `AcquisitionOptions` itself, as it has defaults of its own for them.

    Attributes:
      value: what a prompt is worth, "informative" for P(0 < m < G) or "variance" for the expected variance of its
        rewards; None is what the method itself ranks by.
      thompson: score a state that is drawn from the belief about each prompt, not the belief itself. What is drawn is
        anew in every round.
      expected_tokens: positive, [N]: scores are divided by it, so that a unit of work counts the same everywhere.
      max_wait: R: no prompt waits more than R rounds for its next test, the first one included, if every batch is
        rolled out, observed as one round, and chosen from all prompts. Needs batches of at least N / R.
      quotas: least share of a batch for each group, [L], summing to at most 1; rounded down to whole prompts. Prompts
        that wait too long go first, and count.
    """

    value: str | None
    thompson: bool
    expected_tokens: Any
    max_wait: int | None
    quotas: Any


class WithoutChance(WithoutPool, total=False):
    """Options of a method that takes hardness, temperature, explore and groups itself; those of `WithoutPool`, and one.

    Attributes:
      temperature_pool: candidates per pick that `temperature` is meant for, > 0. Among more of them it falls, so that
        candidates worth a quarter of the best take no more of the picks than they would then: 1 / temperature grows by
        log(candidates per pick / temperature_pool) / log 4. None leaves it as it is.
    """

    temperature_pool: float | None


class WithoutGroups(WithoutChance, total=False):
    """Options of a method that takes groups itself; those of `WithoutChance`, and three.

    Attributes:
      hardness: a >= 0: prompts are worth the expectation of (1 - m / G) ** a over informative outcomes, 0 < m < G,
        under the predicted distribution of m. 0 is P(0 < m < G); above, prompts with few correct completions are
        preferred, whose steps are the ones to be learned.
      temperature: 0 takes the best. Above, prompts are drawn without replacement in proportion to
        score ** (1 / temperature), by Gumbel noise, and `SelectInfo` has inclusion_probs.
      explore: share of a batch, in [0, 1), that goes to prompts whatever their scores, about: in the draw, the weight
        of every prompt is raised by as much as such a share takes. Needs a temperature above 0, which alone takes its
        chances with prompts that are nearly as good as the best, and hardly ever with others.
    """

    hardness: float
    temperature: float
    explore: float


class AcquisitionOptions(WithoutGroups, total=False):
    """How prompts are chosen, the same for every method that predicts; options of `WithoutGroups`, and one.

    Attributes:
      groups: of prompts, int [N] in [-1, L), for the quotas.
    """

    groups: Any


ACQUISITION_OPTIONS = tuple(AcquisitionOptions.__annotations__)


def options_of(factory: Callable[..., Any]) -> list[str]:
    """Returns the names of a factory's options: its own, and those of the acquisition if it takes them."""
    parameters = inspect.signature(factory).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names += [name for name in ACQUISITION_OPTIONS if name not in names]
    return names


def checks_options(factory: Callable[_Params, _Built]) -> Callable[_Params, _Built]:
    """Returns a factory that refuses unknown options, with the known ones, before anything is built."""
    positional = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]

    @functools.wraps(factory)
    def checked(*args: _Params.args, **kwargs: _Params.kwargs) -> _Built:
        options = {name: value for name, value in kwargs.items() if name not in positional}
        _checks.check_options(f"options of {factory.__name__}", options, options_of(factory))
        return factory(*args, **kwargs)

    return checked
