"""The options of acquisition, which most methods share, and errors that list all options of a method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypedDict, TypeVar

from dps_jax import _checks

_Params = ParamSpec("_Params")
_Built = TypeVar("_Built")


# Some methods have parameters of their own for some of the options, hence the three parts of `AcquisitionOptions`.
class WithoutPool(TypedDict, total=False):
    """The options of `AcquisitionOptions` except hardness, temperature, temperature_pool, explore and groups."""

    value: str | None
    thompson: bool
    expected_tokens: Any
    max_wait: int | None
    quotas: Any


class WithoutChance(WithoutPool, total=False):
    """The options of `AcquisitionOptions` except hardness, temperature, explore and groups."""

    temperature_pool: float | None


class WithoutGroups(WithoutChance, total=False):
    """The options of `AcquisitionOptions` except groups."""

    hardness: float
    temperature: float
    explore: float


class AcquisitionOptions(WithoutGroups, total=False):
    """The options that turn predictions into picks: score, randomness, waiting times and quotas.

    B prompts are picked in every round (the batch size), and m of the G completions of a prompt are correct. The
    options have the same meaning for every method that predicts, and can be passed to the factory of the method, to
    `build`, to `from_predictor` and to `PromptSelector`. A method may set a different default for an option by a
    parameter of the same name.

    Attributes:
      value: value of a completion group, whose expectation is the score of a prompt: "informative" for P(0 < m < G), or
        "variance" for the expected variance of the correctness of the completions, m / G * (1 - m / G). None, the
        default, uses the score of the method itself, which is P(0 < m < G) unless its documentation states another
        score.
      hardness: exponent a >= 0 in the score E[(1 - m / G) ** a; 0 < m < G], an expectation under the predicted
        distribution of m. With 0, the default, the score is P(0 < m < G); larger values prefer prompts with few correct
        completions. Above 0, it excludes `thompson` and the value "variance".
      thompson: whether to score one hidden state drawn from the belief about each prompt (Thompson sampling) in place
        of the expectation under the belief. Another state is drawn in every selection. False by default; only methods
        with a belief support it.
      expected_tokens: expected number of tokens of a completion of each prompt, positive, [N], or any other cost;
        scores are divided by it. None, the default, stands for equal costs.
      temperature: 0, the default, picks the B prompts with the highest scores. Above 0, prompts are drawn without
        replacement with weights score ** (1 / temperature), by the Gumbel top-B trick, and `SelectInfo` has the
        inclusion probabilities.
      temperature_pool: number of candidates per pick that `temperature` is meant for (> 0). With more candidates per
        pick, the temperature is lower: 1 / temperature grows by log(candidates per pick / temperature_pool) / log 4, so
        that candidates with a quarter of the best score do not get a larger share of the picks in larger pools. It
        requires a temperature above 0. None, the default, uses the same temperature for all pools.
      explore: approximate share of a batch, in [0, 1), that is drawn independently of the scores: the weight of every
        prompt is raised by the amount that yields this share. 0 by default. A share above 0 requires a temperature
        above 0. The temperature alone draws prompts with nearly the best scores, and hardly any others.
      max_wait: largest number of rounds R between two visits of a prompt, and before its first visit. The limit holds
        if every batch is chosen from all prompts, rolled out, and observed as one round. Batches must have at least
        N / R prompts. None, the default, sets no limit.
      quotas: minimum share of a batch for each prompt group, [L], with a sum of at most 1; rounded down to whole
        prompts. Prompts that are due by `max_wait` are picked first and count towards the quota of their group. None,
        the default, sets no quotas.
      groups: group of each prompt, int [N] in [-1, L), used by `quotas`; -1 for prompts without a quota.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> options: selectors.AcquisitionOptions = {"quotas": [0.5, 0.5], "groups": [0, 0, 0, 0, 1, 1]}
      >>> selector = selectors.mopps(6, **options)
      >>> state = selector.init(jax.random.key(0))
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 4)
      >>> {4, 5} < set(ids.tolist())  # half of the picks are from group 1, whose prompts are 4 and 5
      True
    """

    groups: Any


ACQUISITION_OPTIONS = tuple(AcquisitionOptions.__annotations__)


def options_of(factory: Callable[..., Any]) -> list[str]:
    """Returns the names of a factory's options: its own, and those of `AcquisitionOptions` if it accepts them."""
    parameters = inspect.signature(factory).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names += [name for name in ACQUISITION_OPTIONS if name not in names]
    return names


def checks_options(factory: Callable[_Params, _Built]) -> Callable[_Params, _Built]:
    """Returns the factory with a check that rejects unknown options with a list of the known ones."""
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
