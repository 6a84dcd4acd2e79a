"""What a training run is made of: nested frozen dataclasses, which tyro turns into a command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from dps_jax import _checks, models, rl, tasks
from dps_jax.selectors import acquisition
from dps_jax.training.selector_config import SelectorConfig, named


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is to be learned."""

    name: str = "chain_sum"
    """"countdown", "chain_sum", "steps" or "geometry"."""
    num_train: int = 2400
    """N, prompts to train on."""
    num_test: int = 512
    """Held-out prompts of an evaluation; they share no problem with the training set."""
    format_reward: float = 0.0
    """Reward of a well-formed wrong answer. Selection and accuracy look at correctness only."""
    levels: tuple[tuple[int, int, float], ...] | None = None
    """Difficulties and their weights, such as 2 20 .1 4 99 .9 (countdown: how many numbers, the largest; chain_sum: how
    many numbers, digits of each; steps: how many operations, families they are from; geometry: what is asked, 1 to 6,
    how large the figure may be, 2 to 6); None is the task's default."""
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
        with named("task"):
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
        if self.weights is not None:
            _checks.check_path("model.weights", self.weights)
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(
                f"model.weights: expected a .safetensors file, got {str(self.weights)!r}, which does not exist; "
                "experiments/pretrain.py makes one"
            )


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
    """"token-mean", "token-mean-signal" (over the groups that have an advantage), "sequence-mean" or
    "fixed-length"."""
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

    max_skipped: int = 10
    """Steps that are not finite are skipped and counted; after so many rounds in a row with some the run stops."""

    def __post_init__(self):
        _checks.check_int("learner.max_skipped", self.max_skipped, at_least=1)
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
    """A training run. Killing it and running the same command again continues to the same end.

    When a run is resumed its folder may have moved and num_rounds may have another value. So may eval_every,
    checkpoint_every, keep_last, learner.learning_rate and learner.max_skipped, whose changes are recorded in
    config.json.
    """

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
    """Go on from the last intact checkpoint. With --no-resume a run that is there is moved aside, to NAME.old-1, and
    another one starts."""
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    selector: SelectorConfig = dataclasses.field(default_factory=SelectorConfig)
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()

    def __post_init__(self):
        for field, kind in (
            *(("name", str), ("resume", bool), ("task", TaskConfig), ("model", ModelConfig)),
            *(("selector", SelectorConfig), ("rollout", RolloutConfig), ("learner", LearnerConfig)),
        ):
            _checks.check_instance(field, getattr(self, field), kind)
        _checks.check_path("out_dir", self.out_dir)
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
            with named("selector"):
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
