"""Which prompts a run rolls out: the part of its config that is about the selector."""

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
    """Puts the name of a part of the config, and how its fields begin, before the option that a ValueError is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{part}.{prefix}{error}") from None


# Options of single methods that have a field of their own; others have none of that name.
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
    """Which prompts are rolled out."""

    method: str = "instructive"
    """A name of dps_jax.selectors: "instructive", "dps", "binomial_hmm", "history", "mopps", "uniform" and others."""
    pool_factor: int = 32
    """Rank a fresh random pool of this many times B prompts every round; 0 ranks all N."""
    pool_share: float = 0.25
    """The pool is at least this share of all N prompts, so that the few that are known to be useful come up again
    where N is large."""
    decay: float | None = None
    """Share of what was learned that survives, in [0, 1]: of "dps" transition counts, per round (lambda); None is the
    method's default."""
    prior: str | None = None
    """Of the transitions: a name ("uniform", "progress", "stability", "local") or a saved TransitionPrior, such as
    experiments/fit_prior.py writes. One with groups takes the task's levels as groups."""
    num_states: int | None = None
    """K, hidden states (of "dps": 2, 3, 5 or 7); None is the method's default."""
    temperature: float | None = None
    """Of methods that predict: 0 takes the best, above prompts are drawn in proportion to
    P(informative) ** (1 / temperature), with inclusion probabilities; None is the method's default."""
    temperature_pool: float | None = None
    """Candidates per pick that the temperature is meant for; it falls among more of them. None is the method's
    default."""
    explore: float | None = None
    """Share of a batch, in [0, 1), that goes to prompts whatever their scores. Needs a temperature; None is the
    method's default."""
    optimism: float | None = None
    """Of "binomial_hmm": standard deviations over its networks that are added to P(informative); None is its
    default."""
    hardness: float | None = None
    """Of methods that predict: prompts are worth what is expected of (1 - m / G) ** hardness over informative outcomes;
    0 is P(informative). Above, prompts with few correct completions are preferred. None is the method's default."""
    value: str | None = None
    """What a prompt is worth: "informative" or "variance"; None is what the method itself ranks by."""
    thompson: bool | None = None
    """Score a state that is drawn from the belief about each prompt, not the belief itself."""
    max_wait: int | None = None
    """Rounds after which a prompt is tested again, never-tested ones included. Needs a pool factor of 0."""
    options: tuple[str, ...] = ()
    """All further options of the method, as words NAME=VALUE with Python or JSON literals: process_noise=0.1
    'decays=[0.9, 1.0]'. Quotas are shares of a batch for the task's levels: 'quotas=[0.5, 0.25, 0, 0]'. A name that the
    method does not have is answered with those it has."""
    side_information: Literal["all", "groups", "none"] = "all"
    """What methods that can use it know of the prompts before any visit: their levels ("groups"), or the numbers in
    them too ("all")."""
    refit_every: int = 0
    """Rounds between refits of the prior and the decay to what this run has seen lately; 0 keeps those given."""
    refit_window: int = 50
    """How many of the last rounds a refit looks at."""

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
        """Raises ValueError if the method refuses the value of an option: building it without a mesh runs no JAX."""
        # The one prompt that it is built for is of the first level.
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
          ValueError: for one that the method does not have, that was set before, or that is not set here.
        """
        with named("selector"):
            options = method_options.parse(self.options)
        for name, value in options.items():
            where = f"selector.options: expected no {name!r}, got {value!r}; "
            if name in method_options.PER_PROMPT and name in selectors.option_names(self.method):
                raise ValueError(
                    f"{where}it has one value per prompt. Groups and features come from the task, as far as "
                    "selector.side_information lets the method see them; expected_tokens can only be set in Python"
                )
            if name == "group_size":
                raise ValueError(f"{where}it is rollout.group_size")
            if name in self._set_fields():
                raise ValueError(f"{where}selector.{name} = {getattr(self, name)!r} is given as well; give one of them")
        known = [name for name in method_options.names_in_text(self.method) if name != "group_size"]
        _checks.check_options(f"selector.options of method {self.method!r}", options, known)
        return options

    def method_options(self) -> dict[str, Any]:
        """Returns the options of the method that were set, by fields of their own or by `options`."""
        return self._set_fields() | self._further_options()

    def pool_size(self, batch_size: int, num_prompts: int) -> int | None:
        """Returns M, the candidates of a round, or None for all N."""
        if not self.pool_factor:
            return None
        return max(self.pool_factor * batch_size, math.ceil(self.pool_share * num_prompts))

    def has_inclusion_probs(self) -> bool:
        """Returns whether the method reports with what probability it picks prompts."""
        return method_options.has_inclusion_probs(self.method, self.method_options())

    def resolved_prior(self) -> TransitionPrior:
        """Returns the prior that the run starts with, for a method that has one.

        Raises:
          ValueError: if there is none of that name, or it cannot be refitted.
        """
        options = self.method_options()
        names = ("prior", "initial", "decay", "num_states")
        with named("selector"):
            prior = resolve_prior(**{name: options[name] for name in names if name in options})
        if self.refit_every and prior.groups:
            raise ValueError(
                f"selector.refit_every: expected 0 with a prior of {len(prior.groups)} groups, got {self.refit_every}; "
                "refits know no groups"
            )
        return prior
