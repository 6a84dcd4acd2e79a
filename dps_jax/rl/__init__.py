"""Policy gradients with verifiable rewards: collect a batch, turn rewards into advantages, update the policy."""

from __future__ import annotations

from dps_jax.rl.advantages import ADVANTAGES
from dps_jax.rl.collection import Collection, Selection, collect_dynamic, collect_plain
from dps_jax.rl.inclusion import INCLUSION_WEIGHTS, check_inclusion_weights
from dps_jax.rl.learner import Learner, learner
from dps_jax.rl.losses import KL_ESTIMATORS, LOSSES
from dps_jax.rl.policy_gradient import UpdateInfo
from dps_jax.rl.rollout import Batch, rollout

__all__ = [
    "ADVANTAGES",
    "INCLUSION_WEIGHTS",
    "KL_ESTIMATORS",
    "LOSSES",
    "Batch",
    "Collection",
    "Learner",
    "Selection",
    "UpdateInfo",
    "check_inclusion_weights",
    "collect_dynamic",
    "collect_plain",
    "learner",
    "rollout",
]
