"""The part of a config that is about the selector, which decides which prompts are rolled out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from dps_jax import _checks, selectors
from dps_jax.hmm._transitions import TransitionPrior, resolve_prior
from dps_jax.selectors import _option_text as method_options


@contextlib.contextmanager
def named(part: str, prefix: str = "") -> Iterator[None]:
    """Prefixes the option in the message of a ValueError with the part of the config that it belongs to."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{part}.{prefix}{error}") from None


# Options of methods that have a config field of their own. Not every method has each of them.
_FIELDS = (
    "decay",
    "prior",
    "num_states",
    "temperature",
    "temperature_pool",
    "explore",
    "optimism",
    "hardness",
    "value",
    "thompson",
    "max_wait",
)


@dataclasses.dataclass(frozen=True)
class SelectorConfig:
    """How prompts are selected for the rollouts of a round.

    Example:
      >>> from dps_jax import training
      >>> selector = training.SelectorConfig(method="binomial_hmm", temperature=0.1, options=("is_compact=True",))
      >>> selector.method_options()
      {'temperature': 0.1, 'is_compact': True}
    """

    method: str = "instructive"
    """Name of the selection method, one of dps_jax.selectors.SELECTORS: "instructive", "dps", "binomial_hmm",
    "history", "mopps", "uniform" and others."""
    pool_factor: int = 32
    """Number of candidates per pick: in every round, the method ranks a random pool of this many times the batch size;
    0 ranks all N prompts, as --rollout.collection dynamic always does."""
    pool_share: float = 0.25
    """Smallest size of the pool as a share of all N prompts, in [0, 1], so that with a large N useful prompts are
    candidates often enough."""
    decay: float | None = None
    """Share of the learned statistics that is kept from one round to the next, in [0, 1]; for "dps" it is lambda, the
    decay of the transition counts. None is the default of the method."""
    prior: str | None = None
    """Prior of the transitions between solve states: "uniform", "progress", "stability" or "local", or the path of a
    file that experiments/fit_prior.py has written. A prior with groups needs one for each prompt group (level of the
    task, or group of the data file), in the same order."""
    num_states: int | None = None
    """Number of hidden states, K; for "dps" 2, 3, 5 or 7. None is the default of the method."""
    temperature: float | None = None
    """Temperature of the selection, for methods that predict: 0 takes the prompts with the highest scores; above 0,
    prompts are drawn with weights score ** (1 / temperature), without replacement. Unless other options change it, the
    score is P(informative), the predicted probability that some, but not all, of the G completions are correct. None is
    the default of the method."""
    temperature_pool: float | None = None
    """Number of candidates per pick that the temperature is chosen for; with more candidates, the temperature is
    lowered. None is the default of the method."""
    explore: float | None = None
    """Approximate share of a batch, in [0, 1), that is drawn uniformly, whatever the scores. Needs a temperature above
    0; None is the default of the method."""
    optimism: float | None = None
    """For "binomial_hmm" and "instructive": number of standard deviations, over the members of an ensemble of networks,
    that are added to the score. None is the default of the method."""
    hardness: float | None = None
    """For methods that predict: score prompts by the expectation of (1 - m / G) ** hardness over outcomes with
    0 < m < G correct completions. 0 is P(informative); above 0, prompts with few correct completions are preferred.
    None is the default of the method."""
    value: str | None = None
    """Quantity whose expectation is the score of a prompt: "informative" (1 if 0 < m < G) or "variance"
    (m / G * (1 - m / G)), for m correct completions of G. None is the default of the method."""
    thompson: bool | None = None
    """Thompson sampling: score a state that is drawn from the belief about each prompt, instead of the belief itself.
    None is the default of the method."""
    max_wait: int | None = None
    """Largest number of rounds between two visits of a prompt, and before its first visit. Needs --selector.pool-factor
    0, and is at least N / B. None, the default of all methods, sets no limit."""
    options: tuple[str, ...] = ()
    """Further options of the method, as words NAME=VALUE with Python or JSON literals, such as process_noise=0.1
    'decays=[0.9, 1.0]'. Quotas are shares of a batch, one for each prompt group: 'quotas=[0.5, 0.25, 0, 0]'. An unknown
    name is refused with a list of the options of the method."""
    side_information: Literal["all", "groups", "none"] = "all"
    """What methods may use about prompts before any visit: "groups" is their difficulty levels or sources, "all" adds
    their numerical features, and "none" is nothing."""
    refit_every: int = 0
    """For methods with a prior, such as "dps": number of rounds between refits of prior and decay to the outcomes of
    this run; 0 never refits them."""
    refit_window: int = 50
    """Number of most recent rounds that a refit uses."""

    def __post_init__(self):
        _checks.check_choice("selector.method", self.method, selectors.SELECTORS)
        _checks.check_int("selector.pool_factor", self.pool_factor, at_least=0)
        _checks.check_in_interval("selector.pool_share", self.pool_share, 0.0, 1.0)
        _checks.check_choice("selector.side_information", self.side_information, ("all", "groups", "none"))
        _checks.check_int("selector.refit_every", self.refit_every, at_least=0)
        _checks.check_int("selector.refit_window", self.refit_window, at_least=2)
        needed = {name: name for name in self._set_fields()} | ({"refit_every": "prior"} if self.refit_every else {})
        for name, option in needed.items():
            known = [method for method in selectors.SELECTORS if option in selectors.option_names(method)]
            if self.method not in known:
                having = ", ".join(repr(method) for method in known)
                raise ValueError(
                    f"selector.{name}: expected none with selector.method {self.method!r}, got "
                    f"{getattr(self, name)!r}; methods with such an option: {having}"
                )
        options = self.method_options()
        self._check_values(options)
        if self.refit_every:
            self.resolved_prior()
        if options.get("max_wait") is not None and self.pool_factor:
            raise ValueError(
                f"selector.pool_factor: expected 0 along with selector.max_wait = {options['max_wait']}, as prompts "
                f"outside a pool wait for another one; got {self.pool_factor}"
            )

    def _check_values(self, options: Mapping[str, Any]) -> None:
        """Raises ValueError if the method refuses the value of an option. Building it without a mesh runs no JAX."""
        # It is built for a single prompt, of the first level.
        groups = {} if options.get("quotas") is None else {"groups": [0]}
        try:
            method_options.check_types(self.method, options)
            selectors.build(self.method, 1, **options, **groups)
        except ValueError as error:
            is_word = str(error).partition(":")[0] in self._further_options()
            raise ValueError(f"selector.options: {error}" if is_word else f"selector.{error}") from None
        except TypeError as error:
            raise ValueError(
                f"selector.options: expected values of the types that {self.method!r} takes, got {options} ({error})"
            ) from None

    def _set_fields(self) -> dict[str, Any]:
        """Returns the options of the method that were set by fields of their own."""
        return {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}

    def _further_options(self) -> dict[str, Any]:
        """Returns the options of the method that were set by `options`.

        Raises:
          ValueError: for an option that the method does not have, that has a field of its own and is set there as well,
            or that cannot be set here.
        """
        with named("selector"):
            options = method_options.parse(self.options)
        for name, value in options.items():
            where = f"selector.options: expected no {name!r}, got {value!r}; "
            if name in method_options.PER_PROMPT and name in selectors.option_names(self.method):
                raise ValueError(
                    f"{where}it has one value per prompt. Groups and features come from the task, as far as "
                    "selector.side_information allows; expected_tokens can only be set in Python"
                )
            if name == "group_size":
                raise ValueError(f"{where}it is rollout.group_size")
            if name in self._set_fields():
                raise ValueError(f"{where}selector.{name} = {getattr(self, name)!r} is given as well; give one of them")
        known = [name for name in method_options.names_in_text(self.method) if name != "group_size"]
        _checks.check_options(f"selector.options of method {self.method!r}", options, known)
        return options

    def method_options(self) -> dict[str, Any]:
        """Returns the options of the method that were set, by their own fields or by `options`."""
        return self._set_fields() | self._further_options()

    def pool_size(self, batch_size: int, num_prompts: int) -> int | None:
        """Returns the number of candidates of a round, M, or None for all N prompts."""
        if not self.pool_factor:
            return None
        return max(self.pool_factor * batch_size, math.ceil(self.pool_share * num_prompts))

    def has_inclusion_probs(self) -> bool:
        """Returns whether the method reports the probability with which it picks prompts."""
        return method_options.has_inclusion_probs(self.method, self.method_options())

    def resolved_prior(self) -> TransitionPrior:
        """Returns the prior that the run starts with, for a method that uses one.

        Raises:
          ValueError: if there is no prior of this name, or if it cannot be refitted.
        """
        options = self.method_options()
        names = ("prior", "initial", "decay", "num_states")
        with named("selector"):
            prior = resolve_prior(**{name: options[name] for name in names if name in options})
        if self.refit_every and prior.groups:
            raise ValueError(
                f"selector.refit_every: expected 0 with a prior of {len(prior.groups)} groups, got {self.refit_every}; "
                "refits do not support groups"
            )
        return prior
