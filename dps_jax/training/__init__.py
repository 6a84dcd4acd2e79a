"""The training loop and what is around it: configuration, rounds, checkpoints, metrics, evaluation and figures."""

from __future__ import annotations

from dps_jax.training._checkpoints import CheckpointError
from dps_jax.training._config import ModelConfig, TaskConfig, TrainConfig
from dps_jax.training._curves import cost_to_reach
from dps_jax.training._interrupts import Terminated
from dps_jax.training._memory import MemoryPlan, Workload, memory_plan
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
    "make_round",
    "memory_plan",
    "read_metrics",
    "train",
]
