"""What all training runs have in their configs: nested frozen dataclasses, which tyro turns into a command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from dps_jax import _checks, rl
from dps_jax.models import _lora
from dps_jax.selectors import _acquisition
from dps_jax.training._mesh import MeshConfig
from dps_jax.training._selector_config import SelectorConfig, named


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
    """Of AdamW; after the warm-up, where there is one."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up; "linear" and "cosine" fall to 0 in round decay_rounds."""
    warmup_rounds: int = 0
    """Rounds over which the learning rate grows linearly."""
    decay_rounds: int | None = None
    """Rounds from the first on after which a falling learning rate is 0."""
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
    rows_per_step: int | None = None
    """Completions that go through the model together in the update; their gradients are added up. Less takes less
    memory, and below the group size prompts are read more than once. None is 32 or a group on a CPU, else all."""
    num_lengths: int = 1
    """Lengths that completions are cut to in the update: T and equal steps below it. The rows of a step are as long as
    the longest of them needs. A program is compiled for each length: 4 pays with long completions of all lengths, and
    rows_per_step well below those of a round."""
    lora_rank: int | None = None
    """Train low-rank additions of this rank to the matrices, and not the weights; None trains all weights. Only of
    train_llm.py. The learning rate may be ten times as high."""
    lora_alpha: float = _lora.DEFAULT_ALPHA
    """The additions are scaled by lora_alpha / lora_rank; not growing with the rank, it suits all ranks at one learning
    rate."""
    lora_targets: tuple[str, ...] = tuple(_lora.TARGETS)
    """Which matrices of every layer have additions: some of q k v o gate up down."""
    max_skipped: int = 10
    """Steps that are not finite are skipped and counted; after so many rounds in a row with some the run stops."""

    def __post_init__(self):
        _checks.check_int("learner.max_skipped", self.max_skipped, at_least=1)
        _checks.check_choice("learner.advantage", self.advantage, rl.ADVANTAGES)
        _checks.check_choice("learner.loss", self.loss, rl.LOSSES)
        _checks.check_choice("learner.kl", self.kl, rl.KL_ESTIMATORS)
        _checks.check_number("learner.learning_rate", self.learning_rate, at_least=0)
        _checks.check_choice("learner.schedule", self.schedule, rl.SCHEDULES)
        _checks.check_int("learner.warmup_rounds", self.warmup_rounds, at_least=0)
        self._check_decay()
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
        _checks.check_int("learner.num_lengths", self.num_lengths, at_least=1)
        if self.rows_per_step is not None:
            _checks.check_int("learner.rows_per_step", self.rows_per_step, at_least=1)
        if self.inclusion_weights is not None:
            name = "learner.inclusion_weights"
            rl.check_inclusion_weights(name, self.inclusion_weights, self.loss, self.advantage)
        self.lora_shape()

    def lora_shape(self) -> _lora.Lora | None:
        """Returns the shape of the adapters that are trained, or None where all weights are."""
        rank = self.lora_rank
        with named("learner", "lora_"):
            # Bad values of the others are not accepted without a rank either.
            shape = _lora.lora(1 if rank is None else rank, alpha=self.lora_alpha, targets=self.lora_targets)
        return None if rank is None else shape

    def _check_decay(self) -> None:
        """Raises ValueError unless there is a length for a falling learning rate, and only for such."""
        if (self.schedule == "constant") != (self.decay_rounds is None):
            raise ValueError(
                f"learner.decay_rounds: expected a number of rounds with the schedules 'linear' and 'cosine' and None "
                f"with 'constant', got {self.decay_rounds} with {self.schedule!r}; set both"
            )
        if self.decay_rounds is not None:
            _checks.check_int("learner.decay_rounds", self.decay_rounds, at_least=self.warmup_rounds + 1)

    def rate(self) -> Any:
        """Returns the learning rate over the optimiser's steps, as `rl.learner` takes it."""
        steps = self.num_epochs * self.num_minibatches
        return rl.learning_rate_schedule(
            self.learning_rate,
            self.schedule,
            warmup_steps=self.warmup_rounds * steps,
            decay_steps=None if self.decay_rounds is None else self.decay_rounds * steps,
        )

    def build(self, log_probs_fn: Any, num_prompts: int, *, num_devices: int = 1) -> rl.Learner:
        """Returns the learner of a policy that is trained on N prompts; rows are split over some devices."""
        names = ("advantage", "loss", "clip_low", "clip_high", "kl_coef", "kl", "entropy_coef", "num_minibatches")
        names = (*names, "num_epochs", "max_grad_norm", "weight_decay", "rate_by_share", "inclusion_weights")
        names = (*names, "rows_per_step", "num_lengths")
        options = {name: getattr(self, name) for name in names}
        options |= {"num_prompts": num_prompts, "num_devices": num_devices}
        return rl.learner(log_probs_fn, learning_rate=self.rate(), **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What all training runs have. Killing one and running the same command again continues to the same end.

    When a run is resumed its folder may have moved and num_rounds may have another value. So may eval_every,
    checkpoint_every, keep_last, learner.learning_rate, learner.max_skipped and the mesh, whose changes are recorded
    in config.json.
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
    selector: SelectorConfig = dataclasses.field(default_factory=SelectorConfig)
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        for field, kind in (
            *(("name", str), ("resume", bool), ("mesh", MeshConfig)),
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
        self._check_mesh()
        if self.learner.inclusion_weights is not None:
            self._check_inclusion_probs()

    def check_num_prompts(self, field: str, num_prompts: int) -> None:
        """Raises ValueError, with the name of the field that N is from, if N prompts are too few."""
        if self.rollout.batch_size > num_prompts:
            raise ValueError(
                f"rollout.batch_size: expected at most {field} = {num_prompts}, got {self.rollout.batch_size}"
            )
        max_wait = self.selector.method_options().get("max_wait")
        if max_wait is not None:
            with named("selector"):
                _acquisition.check_max_wait(max_wait, num_prompts, self.rollout.batch_size)

    def files(self) -> list[Path]:
        """Returns the files that the policy before training is read from."""
        return []

    def _check_mesh(self) -> None:
        """Raises ValueError if the devices do not divide the prompts that go through the model together."""
        size = self.mesh.size
        if self.rollout.batch_size // self.learner.num_minibatches % size:
            raise ValueError(
                f"rollout.batch_size: expected a multiple of {self.mesh.words()}, times learner.num_minibatches = "
                f"{self.learner.num_minibatches}, got {self.rollout.batch_size}; take another batch or fewer devices"
            )
        if size > 1 and self.learner.lora_rank is not None:
            raise ValueError(
                f"learner.lora_rank: expected None on several devices, got {self.learner.lora_rank} with "
                f"{self.mesh.words()}; train all weights there, or the additions on one device"
            )
        rows = self.learner.rows_per_step
        if rows is not None and rows < size:
            raise ValueError(
                f"learner.rows_per_step: expected None or at least {self.mesh.words()}, a row for each device, got "
                f"{rows}; raise it or take fewer devices"
            )

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
