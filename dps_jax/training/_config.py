"""The config of a run on a task: nested frozen dataclasses, which tyro turns into a command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from dps_jax import _checks, models, tasks
from dps_jax.models._computing import COMPUTE_DTYPES
from dps_jax.training._run_config import LearnerConfig, RolloutConfig, RunConfig
from dps_jax.training._selector_config import SelectorConfig, named

__all__ = ["LearnerConfig", "ModelConfig", "RolloutConfig", "RunConfig", "SelectorConfig", "TaskConfig", "TrainConfig"]


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task that the policy learns.

    Example:
      >>> from dps_jax import training
      >>> task = training.TaskConfig(  # 10 % of the prompts with two numbers up to 20, 90 % with four up to 99
      ...     name="countdown", levels=((2, 20, 0.1), (4, 99, 0.9)), broken=0.0)
      >>> config = training.TrainConfig(task=task)
    """

    name: str = "chain_sum"
    """Name of the task: "countdown", "chain_sum", "steps", "geometry", or a task of your own (see
    dps_jax.tasks.register)."""
    num_train: int = 2400
    """Number of training prompts, N."""
    num_test: int = 512
    """Number of held-out prompts of an evaluation; none of their problems is in the training set."""
    format_reward: float = 0.0
    """Reward of a well-formed wrong answer, in [0, 1]. Prompt selection and accuracy depend on correctness only."""
    levels: tuple[tuple[int, int, float], ...] | None = None
    """Difficulty levels of the training prompts, each as two numbers and a weight, such as 2 20 .1 4 99 .9. The two
    numbers mean: for countdown, how many numbers and the largest of them; for chain_sum, how many numbers and the
    digits of each; for steps, how many operations and how many families they are from; for geometry, the question, 1
    to 6, and the largest size of the figure in patches, 2 to 6. None is the default mix of the task."""
    test_levels: tuple[tuple[int, int, float], ...] | None = None
    """Difficulty levels of the held-out prompts, in the same form. None is --task.levels if that is set, and else the
    default of the task."""
    broken: float = 0.3
    """Share of the training prompts with a wrong reference answer, in [0, 1]: none of their completions is ever graded
    as correct. Selectors cannot recognise these prompts by their features."""

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
    """Size, initial weights and dtype of the policy.

    Example:
      >>> from dps_jax import training
      >>> config = training.TrainConfig(model=training.ModelConfig(size="3m", dtype="bfloat16"))
    """

    weights: Path | None = None
    """Weights to start from, a .safetensors file of experiments/pretrain.py or the policy of a run; None starts from
    random weights. Without any option of the model, experiments/train.py starts from the repository's policy for the
    task, if there is one."""
    size: str = "0.8m"
    """Size of the model if it starts from random weights, a name in dps_jax.models.SIZES, such as 0.8m or 3m."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype that the model computes in; the trained weights are float32 in either case."""

    def __post_init__(self):
        _checks.check_choice("model.size", self.size, models.SIZES)
        _checks.check_choice("model.dtype", self.dtype, COMPUTE_DTYPES)
        if self.weights is not None:
            _checks.check_path("model.weights", self.weights)
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(
                f"model.weights: expected a .safetensors file, got {str(self.weights)!r}, which does not exist; "
                "experiments/pretrain.py makes one"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The config of a training run of a small model on a task, for `train`.

    A run that was interrupted continues when `train` gets the same config again, and ends as it would have ended
    without the interruption (on a CPU bit for bit). In between, its folder may be moved, and these fields may be
    changed: `num_rounds`, `eval_every`, `checkpoint_every`, `keep_last`, `learner.learning_rate`, `learner.max_skipped`
    and `mesh`. Changes are recorded in config.json, except those of `num_rounds` and of the fields of `mesh` that
    describe the processes.

    Example:
      >>> from dps_jax import training
      >>> config = training.TrainConfig(
      ...     name="countdown-dps", task=training.TaskConfig(name="countdown"),
      ...     selector=training.SelectorConfig(method="dps", pool_factor=8),
      ...     learner=training.LearnerConfig(learning_rate=1e-4))
      >>> config.folder.as_posix()
      'runs/countdown-dps'
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
        """Returns the files that the initial policy is read from."""
        return [] if self.model.weights is None else [Path(self.model.weights)]
