"""The training loop: configs, rounds as pure functions, and the trainer with checkpoints, metrics and evaluation.

`train` does a whole run from a `TrainConfig` (a small model on one of the tasks) or a `TextConfig` (a pretrained model
on a data file). `make_round` returns one round as pure functions, for loops of your own. `memory_plan` and
`fit_workload` estimate the device memory that a run needs.
"""

from __future__ import annotations

from dps_jax.training._checkpoints import CheckpointError
from dps_jax.training._config import ModelConfig, TaskConfig, TrainConfig
from dps_jax.training._curves import cost_to_reach
from dps_jax.training._interrupts import Terminated
from dps_jax.training._memory import MemoryPlan, Workload, fit_workload, memory_plan
from dps_jax.training._mesh import MeshConfig
from dps_jax.training._round import Round, RoundInfo, TrainState, make_round
from dps_jax.training._run_config import LearnerConfig, RolloutConfig, RunConfig
from dps_jax.training._run_log import read_metrics
from dps_jax.training._selector_config import SelectorConfig
from dps_jax.training._text_config import GraderConfig, PromptsConfig, TextConfig, TextRolloutConfig
from dps_jax.training._trainer import TrainingError, train

__all__ = [
    "CheckpointError",
    "GraderConfig",
    "LearnerConfig",
    "MemoryPlan",
    "MeshConfig",
    "ModelConfig",
    "PromptsConfig",
    "RolloutConfig",
    "Round",
    "RoundInfo",
    "RunConfig",
    "SelectorConfig",
    "TaskConfig",
    "Terminated",
    "TextConfig",
    "TextRolloutConfig",
    "TrainConfig",
    "TrainState",
    "TrainingError",
    "Workload",
    "cost_to_reach",
    "fit_workload",
    "make_round",
    "memory_plan",
    "read_metrics",
    "train",
]
