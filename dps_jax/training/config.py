"""What a training run is made of: nested frozen dataclasses, which tyro turns into a command line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from dps_jax import _checks, models, rl, selectors, tasks
from dps_jax.hmm.transitions import TransitionPrior, resolve_prior
from dps_jax.selectors import acquisition
from dps_jax.selectors import option_text as method_options


@contextlib.contextmanager
def _named(part: str) -> Iterator[None]:
    """Puts the name of a part of the config before the option that a ValueError is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{part}.{error}") from None


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is to be learned."""

    name: str = "chain_sum"
    """"countdown", "chain_sum" or "steps"."""
    num_train: int = 2400
    """N, prompts to train on."""
    num_test: int = 512
    """Held-out prompts of an evaluation; they share no problem with the training set."""
    format_reward: float = 0.0
    """Reward of a well-formed wrong answer. Selection and accuracy look at correctness only."""
    levels: tuple[tuple[int, int, float], ...] | None = None
    """Difficulties and their weights, such as 2 20 .1 4 99 .9 (countdown: how many numbers, the largest; chain_sum: how
    many numbers, digits of each; steps: how many operations, families they are from); None is the task's default."""
    test_levels: tuple[tuple[int, int, float], ...] | None = None
    """Those of the held-out prompts; None is the same as in training where levels are given, and else the task's
    default."""
    broken: float = 0.3
    """Share of the training prompts whose reference is wrong: no completion of theirs is ever graded correct, and
    nothing that a selector sees tells them from the others."""

    def __post_init__(self):
        _checks.check_choice("task.name", self.name, tasks.TASKS)
        _checks.check_int("task.num_train", self.num_train, at_least=1)
        _checks.check_int("task.num_test", self.num_test, at_least=1)
        _checks.check_in_interval("task.format_reward", self.format_reward, 0.0, 1.0)
        _checks.check_in_interval("task.broken", self.broken, 0.0, 1.0)
        with _named("task"):
            tasks.build(self.name, **self.options())

    def options(self) -> dict[str, Any]:
        """Returns the options of the task."""
        options: dict[str, Any] = {"format_reward": self.format_reward}
        if self.levels is not None:
            options |= {"levels": self.levels, "test_levels": self.test_levels}
        return options if self.test_levels is None else options | {"test_levels": self.test_levels}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The policy before training."""

    weights: Path | None = None
    """A .safetensors file, as experiments/pretrain.py writes it; None starts from random weights."""
    size: str = "0.8m"
    """Size of a model with random weights."""

    def __post_init__(self):
        _checks.check_choice("model.size", self.size, models.SIZES)
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(
                f"model.weights: expected a .safetensors file, got {str(self.weights)!r}, which does not exist; "
                "experiments/pretrain.py makes one"
            )


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
        with _named("selector"):
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
        with _named("selector"):
            prior = resolve_prior(**{name: options[name] for name in names if name in options})
        if self.refit_every and prior.groups:
            raise ValueError(
                f"selector.refit_every: expected 0 with a prior of {len(prior.groups)} groups, got {self.refit_every}; "
                "refits know no groups"
            )
        return prior


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How a round's completions are sampled."""

    batch_size: int = 32
    """B, prompts of a round."""
    group_size: int = 8
    """G, completions of a prompt."""
    temperature: float = 1.0
    """Of sampling in training."""
    top_p: float = 1.0
    """Nucleus of sampling in training; below 1 the update is slightly off-policy."""
    collection: Literal["plain", "dynamic"] = "plain"
    """"dynamic" rolls out batch after batch until B prompts are informative (DS); every rollout counts."""
    max_batches: int = 10
    """The most batches of a dynamic round."""

    def __post_init__(self):
        _checks.check_int("rollout.batch_size", self.batch_size, at_least=1)
        _checks.check_int("rollout.group_size", self.group_size, at_least=1)
        _checks.check_int("rollout.max_batches", self.max_batches, at_least=1)
        _checks.check_choice("rollout.collection", self.collection, ("plain", "dynamic"))
        _checks.check_number("rollout.top_p", self.top_p, above=0, at_most=1, hint="1 samples from all tokens")
        _checks.check_number(
            "rollout.temperature", self.temperature, above=0, hint="1 samples from the policy as it is trained"
        )


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """How the policy is updated; see `dps_jax.rl.learner`."""

    learning_rate: float = 3e-4
    """Of AdamW."""
    advantage: str = "grpo"
    """"grpo", "dr-grpo", "rloo" or "reinforce++"."""
    loss: str = "token-mean"
    """"token-mean", "sequence-mean" or "fixed-length"."""
    clip_low: float = 0.2
    """Probability ratios below 1 - clip_low give no further gradient."""
    clip_high: float = 0.28
    """Nor do those above 1 + clip_high."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the policy before training."""
    kl: str = "k3"
    """Its estimator: "k1", "k2" or "k3"."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    num_minibatches: int = 1
    """Optimiser steps per pass over a round's batch."""
    num_epochs: int = 1
    """Passes over a round's batch."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    weight_decay: float = 0.0
    """Of AdamW."""
    rate_by_share: float = 0.0
    """Steps are scaled by (share of informative groups) ** this: with .5, the fewer of them, the shorter a step, as
    more of its gradient is noise."""
    inclusion_weights: str | None = None
    """Weigh groups by 1 / their inclusion probability, so that the gradient is that of the average over all N prompts:
    "self-normalised" or "unbiased" (not with token-mean and reinforce++). Needs --selector.temperature above 0, or the
    method "uniform". None learns from what was picked as it is."""

    def __post_init__(self):
        _checks.check_choice("learner.advantage", self.advantage, rl.ADVANTAGES)
        _checks.check_choice("learner.loss", self.loss, rl.LOSSES)
        _checks.check_choice("learner.kl", self.kl, rl.KL_ESTIMATORS)
        _checks.check_number("learner.learning_rate", self.learning_rate, at_least=0)
        _checks.check_in_interval("learner.clip_low", self.clip_low, 0.0, 1.0)
        no_clip = {"may_be_infinite": True, "hint": "infinity turns clipping off"}
        _checks.check_number("learner.clip_high", self.clip_high, at_least=0, **no_clip)
        _checks.check_number("learner.max_grad_norm", self.max_grad_norm, above=0, **no_clip)
        _checks.check_number("learner.kl_coef", self.kl_coef, at_least=0, hint="0 is no penalty")
        _checks.check_number("learner.entropy_coef", self.entropy_coef, at_least=0, hint="0 is no bonus")
        _checks.check_int("learner.num_minibatches", self.num_minibatches, at_least=1)
        _checks.check_int("learner.num_epochs", self.num_epochs, at_least=1)
        _checks.check_number("learner.weight_decay", self.weight_decay, at_least=0, hint="0 is no decay")
        _checks.check_number("learner.rate_by_share", self.rate_by_share, at_least=0, hint="0 scales nothing")
        if self.inclusion_weights is not None:
            name = "learner.inclusion_weights"
            rl.check_inclusion_weights(name, self.inclusion_weights, self.loss, self.advantage)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. Killing it and running the same command again continues to the same end."""

    name: str = "train"
    """The run writes to out_dir/name."""
    out_dir: Path = Path("runs")
    """Folder of all runs."""
    seed: int = 0
    """Of prompts, sampling and selection. Another seed is another training set."""
    num_rounds: int = 200
    """Rounds of select, rollout, update, observe. A finished run goes on if there are more."""
    eval_every: int = 20
    """Rounds between evaluations; there is one before the first round and one after the last."""
    eval_samples: int = 8
    """Completions per test prompt: pass@1 is their mean, pass@k the chance that one of k is right."""
    checkpoint_every: int = 20
    """Rounds between checkpoints."""
    keep_last: int = 2
    """Checkpoints that are kept, besides the best by test accuracy."""
    resume: bool = True
    """Go on from the last intact checkpoint. With --no-resume the run starts anew and its folder is emptied."""
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    selector: SelectorConfig = SelectorConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()

    def __post_init__(self):
        if not self.name or Path(self.name).name != self.name or self.name in (".", ".."):
            raise ValueError(f"name: expected the name of a folder, got {self.name!r}; its place is set by out_dir")
        # JAX makes one key of numbers that agree in their last 32 bits.
        _checks.check_int("seed", self.seed, at_least=0, at_most=2**32 - 1)
        for field in ("num_rounds", "eval_every", "eval_samples", "checkpoint_every", "keep_last"):
            _checks.check_int(field, getattr(self, field), at_least=1)
        if self.rollout.batch_size > self.task.num_train:
            raise ValueError(
                f"rollout.batch_size: expected at most task.num_train = {self.task.num_train}, "
                f"got {self.rollout.batch_size}"
            )
        if self.rollout.group_size < 2 and self.learner.advantage != "reinforce++":
            raise ValueError(
                f"rollout.group_size: expected at least 2 for the group baseline of learner.advantage = "
                f"{self.learner.advantage!r}, got {self.rollout.group_size}; or use 'reinforce++'"
            )
        if self.rollout.batch_size % self.learner.num_minibatches:
            raise ValueError(
                f"learner.num_minibatches: expected a divisor of rollout.batch_size = {self.rollout.batch_size}, "
                f"got {self.learner.num_minibatches}"
            )
        max_wait = self.selector.method_options().get("max_wait")
        if max_wait is not None:
            with _named("selector"):
                acquisition.check_max_wait(max_wait, self.task.num_train, self.rollout.batch_size)
        if self.learner.inclusion_weights is not None:
            self._check_inclusion_probs()

    def _check_inclusion_probs(self) -> None:
        """Raises ValueError if it is not known with what probability the prompts of a round were picked."""
        name = f"learner.inclusion_weights: expected None with {{}}, got {self.learner.inclusion_weights!r}; "
        if self.rollout.collection == "dynamic":
            message = name.format("rollout.collection 'dynamic'")
            raise ValueError(f"{message}what gets into its batch depends on outcomes, with an unknown probability")
        if not self.selector.has_inclusion_probs():
            message = name.format(f"a selector {self.selector.method!r} that takes the best")
            raise ValueError(
                f"{message}it has no inclusion probabilities. Set --selector.temperature above 0, or take "
                "the method 'uniform'"
            )

    @property
    def folder(self) -> Path:
        """The folder the run writes to."""
        return self.out_dir / self.name


# What may differ when a run is resumed: none of it changes the rounds that were already done.
_FREE_FIELDS = ("out_dir", "num_rounds", "resume", "keep_last")


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Returns a config as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def check_same(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    """Raises ValueError, with the fields that differ, if a run saved by `to_json` cannot go on under a config."""
    # What was saved before there was some field has the default of it.
    found, expected = _flat(to_json(config)), _flat(to_json(TrainConfig())) | _flat(saved)
    differing = [
        f"{name} = {found.get(name)!r} (was {expected.get(name)!r})"
        for name in sorted(found.keys() | expected.keys())
        if name not in _FREE_FIELDS and found.get(name) != expected.get(name)
    ]
    if differing:
        raise ValueError(
            f"resume: expected the options that {config.folder} was started with, got {', '.join(differing)}; "
            "choose another --name, or start anew with --no-resume"
        )
