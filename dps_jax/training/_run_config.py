"""The parts of the config that all training runs share: frozen dataclasses, which tyro turns into a command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from dps_jax import _checks, rl
from dps_jax.models import _lora
from dps_jax.rl._inclusion import check_inclusion_weights
from dps_jax.selectors import _acquisition
from dps_jax.training._mesh import MeshConfig
from dps_jax.training._selector_config import SelectorConfig, named


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How the completions of a round are sampled.

    Example:
      >>> from dps_jax import training
      >>> dynamic = training.RolloutConfig(batch_size=16, collection="dynamic", max_batches=4)
      >>> config = training.TrainConfig(rollout=dynamic, selector=training.SelectorConfig(method="uniform"))
    """

    batch_size: int = 32
    """Number of prompts per round, B."""
    group_size: int = 8
    """Number of completions per prompt, G."""
    temperature: float = 1.0
    """Sampling temperature (> 0) in training."""
    top_p: float = 1.0
    """Probability mass of the nucleus that training samples from, in (0, 1]; below 1 the update is slightly
    off-policy."""
    collection: Literal["plain", "dynamic"] = "plain"
    """"plain" trains on all prompts that were selected. "dynamic" rolls out batch after batch until B prompts are
    partially solved (dynamic sampling); all rollouts are counted. Prompts are then selected from all N, without a
    pool."""
    max_batches: int = 10
    """Largest number of batches per round with --rollout.collection dynamic; at most N / B, rounded up, are used."""

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
    """How the policy is updated after each round; see `dps_jax.rl.learner`.

    Example:
      >>> from dps_jax import training
      >>> learner = training.LearnerConfig(learning_rate=1e-5, schedule="cosine", warmup_rounds=10, decay_rounds=200)
      >>> f"{float(learner.rate()(0)):.0e}"  # learning rate of the first step
      '1e-06'
    """

    learning_rate: float = 3e-4
    """Learning rate of AdamW; with a warm-up or a schedule, its highest value."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the learning rate after the warm-up; "linear" and "cosine" decay to 0 in round
    --learner.decay-rounds."""
    warmup_rounds: int = 0
    """Number of rounds over which the learning rate grows linearly at the start; 0 is no warm-up."""
    decay_rounds: int | None = None
    """Round at which the schedules "linear" and "cosine" reach 0, counted from the start of the run; None with
    "constant"."""
    advantage: str = "grpo"
    """Advantage estimator: "grpo", "dr-grpo", "rloo" or "reinforce++"."""
    loss: str = "token-mean"
    """How the loss averages over tokens: "token-mean" (over all tokens), "token-mean-signal" (over the tokens of groups
    that have an advantage), "sequence-mean" (within each completion first) or "fixed-length" (divided by the largest
    completion length)."""
    clip_low: float = 0.2
    """Number in [0, 1]; tokens with a negative advantage give no gradient if the ratio of their new to their old
    probability is below 1 - clip_low."""
    clip_high: float = 0.28
    """Number >= 0; tokens with a positive advantage give no gradient if the ratio of their new to their old probability
    is above 1 + clip_high."""
    kl_coef: float = 0.0
    """Weight of the KL penalty that keeps the policy close to the policy before training; 0 is no penalty."""
    kl: str = "k3"
    """Estimator of the KL penalty: "k3", "k2" or, for comparison only, "k1", whose expected gradient is 0."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus; 0 is no bonus."""
    num_minibatches: int = 1
    """Number of minibatches that the batch of a round is split into, with an optimiser step for each."""
    num_epochs: int = 1
    """Number of passes over the batch of a round."""
    max_grad_norm: float = 1.0
    """Norm that gradients are clipped to; infinity turns clipping off."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    rate_by_share: float = 0.0
    """Multiply optimiser steps by (share of partially solved groups) ** rate_by_share, so that steps are shorter if
    fewer groups carry a gradient, which is then noisier; 0.5 compensates for that noise, 0 does not scale steps."""
    inclusion_weights: str | None = None
    """Weight groups by 1 / (probability that their prompt was picked), so that the gradient estimates the average over
    all N prompts: "self-normalised", or "unbiased", which does not work with losses that average over tokens or with
    the advantage "reinforce++". Needs --rollout.collection plain, and --selector.temperature above 0 or the method
    "uniform" without max_wait and quotas. None uses no weights."""
    rows_per_step: int | None = None
    """Number of completions that go through the model together in the update; gradients are accumulated. Fewer need
    less memory; below the group size, prompts are read more than once. None is 32 (at least a group) on one CPU, and
    the whole minibatch on other devices and on several."""
    num_lengths: int = 1
    """Number of lengths that completions are cut to in the update; with 4, a quarter, a half, three quarters and all of
    the completion length. A program is compiled for each. 4 saves time where completions differ much in length, if
    --learner.rows-per-step is well below the completions of a round."""
    lora_rank: int | None = None
    """Rank of LoRA adapters, which are trained in place of the weights; None trains all weights. Only for
    experiments/train_llm.py on one device. The learning rate can be about ten times as high as for all weights."""
    lora_alpha: float = _lora.DEFAULT_ALPHA
    """Scale of LoRA adapters: they are multiplied by lora_alpha / lora_rank, so that different ranks can share a
    learning rate."""
    lora_targets: tuple[str, ...] = tuple(_lora.TARGETS)
    """Matrices that get LoRA adapters in every layer: some of q k v o gate up down."""
    max_skipped: int = 10
    """Number of rounds in a row with skipped optimiser steps after which the run stops. Steps whose loss, gradient or
    parameter change is not finite are skipped and counted."""

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
            check_inclusion_weights(name, self.inclusion_weights, self.loss, self.advantage)
        self.lora_shape()

    def lora_shape(self) -> _lora.Lora | None:
        """Returns the shape of the adapters, or None if all weights are trained."""
        rank = self.lora_rank
        with named("learner", "lora_"):
            # Bad values of the other options are refused without a rank, too.
            shape = _lora.lora(1 if rank is None else rank, alpha=self.lora_alpha, targets=self.lora_targets)
        return None if rank is None else shape

    def _check_decay(self) -> None:
        """Raises ValueError unless `decay_rounds` is set exactly for the schedules that decay."""
        if (self.schedule == "constant") != (self.decay_rounds is None):
            raise ValueError(
                f"learner.decay_rounds: expected a number of rounds with the schedules 'linear' and 'cosine' and None "
                f"with 'constant', got {self.decay_rounds} with {self.schedule!r}; set both"
            )
        if self.decay_rounds is not None:
            _checks.check_int("learner.decay_rounds", self.decay_rounds, at_least=self.warmup_rounds + 1)

    def rate(self) -> Any:
        """Returns the learning rate for `rl.learner`: an optax schedule, or a number if the rate is constant."""
        steps = self.num_epochs * self.num_minibatches
        return rl.learning_rate_schedule(
            self.learning_rate,
            self.schedule,
            warmup_steps=self.warmup_rounds * steps,
            decay_steps=None if self.decay_rounds is None else self.decay_rounds * steps,
        )

    def build(self, log_probs_fn: Any, num_prompts: int, *, num_devices: int = 1) -> rl.Learner:
        """Returns the learner of a policy that is trained on N prompts, with rows split over a number of devices."""
        names = ("advantage", "loss", "clip_low", "clip_high", "kl_coef", "kl", "entropy_coef", "num_minibatches")
        names = (*names, "num_epochs", "max_grad_norm", "weight_decay", "rate_by_share", "inclusion_weights")
        names = (*names, "rows_per_step", "num_lengths")
        options = {name: getattr(self, name) for name in names}
        options |= {"num_prompts": num_prompts, "num_devices": num_devices}
        return rl.learner(log_probs_fn, learning_rate=self.rate(), **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The fields that `TrainConfig` and `TextConfig` share.

    Example:
      >>> import dataclasses
      >>> from dps_jax import training
      >>> def with_seeds(config: training.RunConfig, num_seeds: int):
      ...     fields = [{"seed": seed, "name": f"{config.name}-{seed}"} for seed in range(num_seeds)]
      ...     return [dataclasses.replace(config, **changes) for changes in fields]
      >>> [config.folder.name for config in with_seeds(training.TrainConfig(name="dps"), 2)]
      ['dps-0', 'dps-1']
    """

    name: str = "train"
    """Name of the run; it writes to the folder OUT_DIR/NAME."""
    out_dir: Path = Path("runs")
    """Folder that holds the folders of all runs."""
    seed: int = 0
    """Seed of random initial weights, sampling and selection. Tasks generate another training set for every seed."""
    num_rounds: int = 200
    """Number of rounds, each of which selects prompts, rolls them out, updates the policy and observes the outcomes.
    Raise it to continue a finished run."""
    eval_every: int = 20
    """Number of rounds between evaluations on held-out prompts; there is also one before the first round and one after
    the last."""
    eval_samples: int = 8
    """Number of completions per held-out prompt; pass@1 is the share of correct ones, pass@k the probability that at
    least one of k is correct."""
    checkpoint_every: int = 20
    """Number of rounds between checkpoints; there is also one after each evaluation that is the best so far, and one
    after the last round."""
    keep_last: int = 2
    """Number of recent checkpoints that are kept; the best by test accuracy is kept as well."""
    resume: bool = True
    """Continue an existing run of this name from its last intact checkpoint. With --no-resume, the folder of an
    existing run is renamed to NAME.old-1, or to the next free number, and a new run starts."""
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
        # JAX makes the same key from numbers that agree in their last 32 bits.
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
        """Raises ValueError if N prompts are too few; the message names the field that N comes from."""
        if self.rollout.batch_size > num_prompts:
            raise ValueError(
                f"rollout.batch_size: expected at most {field} = {num_prompts}, got {self.rollout.batch_size}"
            )
        max_wait = self.selector.method_options().get("max_wait")
        if max_wait is not None:
            with named("selector"):
                _acquisition.check_max_wait(max_wait, num_prompts, self.rollout.batch_size)

    def files(self) -> list[Path]:
        """Returns the files that the initial policy is read from."""
        return []

    def _check_mesh(self) -> None:
        """Raises ValueError if the number of devices does not divide the prompts that go through the model together."""
        size = self.mesh.size
        if self.rollout.batch_size // self.learner.num_minibatches % size:
            raise ValueError(
                f"rollout.batch_size: expected a multiple of {self.mesh.words()}, times learner.num_minibatches = "
                f"{self.learner.num_minibatches}, got {self.rollout.batch_size}; use another batch or fewer devices"
            )
        if size > 1 and self.learner.lora_rank is not None:
            raise ValueError(
                f"learner.lora_rank: expected None on several devices, got {self.learner.lora_rank} with "
                f"{self.mesh.words()}; train all weights, or use one device"
            )
        rows = self.learner.rows_per_step
        if rows is not None and rows < size:
            raise ValueError(
                f"learner.rows_per_step: expected None or at least {self.mesh.words()}, a row for each device, got "
                f"{rows}; raise it or use fewer devices"
            )

    def _check_inclusion_probs(self) -> None:
        """Raises ValueError if the probabilities that the prompts of a round were picked with are unknown."""
        name = f"learner.inclusion_weights: expected None with {{}}, got {self.learner.inclusion_weights!r}; "
        if self.rollout.collection == "dynamic":
            message = name.format("rollout.collection 'dynamic'")
            raise ValueError(f"{message}the probability of being in its batch depends on outcomes, and is unknown")
        if not self.selector.has_inclusion_probs():
            message = name.format(f"greedy selection by {self.selector.method!r}")
            raise ValueError(
                f"{message}it has no inclusion probabilities. Set --selector.temperature above 0, or use "
                "the method 'uniform'"
            )

    @property
    def folder(self) -> Path:
        """The folder that the run writes to."""
        return Path(self.out_dir) / self.name
