"""Policy gradients with verifiable rewards: collect a batch, turn rewards into advantages, update the policy."""

from __future__ import annotations

from dps_jax.rl.advantages import ADVANTAGES
from dps_jax.rl.collection import Collection, Selection, collect_plain, plain_collection
from dps_jax.rl.dynamic import collect_dynamic
from dps_jax.rl.inclusion import INCLUSION_WEIGHTS, check_inclusion_weights
from dps_jax.rl.learner import Learner, learner
from dps_jax.rl.losses import KL_ESTIMATORS, LOSSES
from dps_jax.rl.partly_trained import PartlyTrained, trained_part, with_trained_part
from dps_jax.rl.policy_gradient import UpdateInfo
from dps_jax.rl.rollout import Batch, Sampled, assemble, rollout, sampled
from dps_jax.rl.schedules import SCHEDULES, learning_rate_schedule

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
    "check_inclusion_weights",
    "collect_dynamic",
    "collect_plain",
    "learner",
    "learning_rate_schedule",
    "plain_collection",
    "rollout",
    "sampled",
    "trained_part",
    "with_trained_part",
]
