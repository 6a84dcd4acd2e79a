"""What a run on a task is made of: nested frozen dataclasses, which tyro turns into a command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from dps_jax import _checks, models, tasks
from dps_jax.training._run_config import LearnerConfig, RolloutConfig, RunConfig
from dps_jax.training._selector_config import SelectorConfig, named

__all__ = ["LearnerConfig", "ModelConfig", "RolloutConfig", "RunConfig", "SelectorConfig", "TaskConfig", "TrainConfig"]


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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; the weights that are trained are float32 either way."""

    def __post_init__(self):
        _checks.check_choice("model.size", self.size, models.SIZES)
        _checks.check_choice("model.dtype", self.dtype, models.COMPUTE_DTYPES)
        if self.weights is not None:
            _checks.check_path("model.weights", self.weights)
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(
                f"model.weights: expected a .safetensors file, got {str(self.weights)!r}, which does not exist; "
                "experiments/pretrain.py makes one"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A training run. Killing it and running the same command again continues to the same end.

    When a run is resumed its folder may have moved and num_rounds may have another value. So may eval_every,
    checkpoint_every, keep_last, learner.learning_rate, learner.max_skipped and the mesh, whose changes are recorded
    in config.json.
    """

    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()

    def __post_init__(self):
        super().__post_init__()
        _checks.check_instance("task", self.task, TaskConfig)
        _checks.check_instance("model", self.model, ModelConfig)
        if self.learner.lora_rank is not None:
            raise ValueError(
                f"learner.lora_rank: expected None in a run on a task, got {self.learner.lora_rank}; LoRA is for the "
                "pretrained models of experiments/train_llm.py. Leave the option out"
            )
        self.check_num_prompts("task.num_train", self.task.num_train)

    def files(self) -> list[Path]:
        """Returns the files that the policy before training is read from."""
        return [] if self.model.weights is None else [Path(self.model.weights)]
