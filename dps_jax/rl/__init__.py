"""Policy gradients with verifiable rewards: collect a batch, turn rewards into advantages, update the policy."""

from __future__ import annotations

from dps_jax.rl._advantages import ADVANTAGES
from dps_jax.rl._collection import Collection, Selection, collect_plain, plain_collection
from dps_jax.rl._dynamic import collect_dynamic
from dps_jax.rl._inclusion import INCLUSION_WEIGHTS
from dps_jax.rl._learner import Learner, learner
from dps_jax.rl._losses import KL_ESTIMATORS, LOSSES
from dps_jax.rl._partly_trained import PartlyTrained
from dps_jax.rl._policy_gradient import UpdateInfo
from dps_jax.rl._rollout import Batch, Sampled, assemble, rollout, sampled
from dps_jax.rl._schedules import SCHEDULES, learning_rate_schedule

__all__ = [
    "ADVANTAGES",
    "INCLUSION_WEIGHTS",
    "KL_ESTIMATORS",
    "LOSSES",
    "SCHEDULES",
    "Batch",
    "Collection",
    "Learner",
    "PartlyTrained",
    "Sampled",
    "Selection",
    "UpdateInfo",
    "assemble",
    "collect_dynamic",
    "collect_plain",
    "learner",
    "learning_rate_schedule",
    "plain_collection",
    "rollout",
    "sampled",
]
