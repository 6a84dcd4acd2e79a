"""Predictors of the next completion group of each prompt; each factory returns a `types.Predictor`."""

from __future__ import annotations

from dps_jax.predictors._arcsine import arcsine
from dps_jax.predictors._binomial_hmm import binomial_hmm
from dps_jax.predictors._constant import constant
from dps_jax.predictors._ema_variance import ema_variance
from dps_jax.predictors._history import history
from dps_jax.predictors._hmm import hmm
from dps_jax.predictors._last_state import last_state
from dps_jax.predictors._logit_kalman import logit_kalman
from dps_jax.predictors._mopps import mopps
from dps_jax.predictors._queue import queue
from dps_jax.predictors._registry import PREDICTORS, build, register
from dps_jax.predictors._shared_net import shared_net

__all__ = [
    "PREDICTORS",
    "arcsine",
    "binomial_hmm",
    "build",
    "constant",
    "ema_variance",
    "history",
    "hmm",
    "last_state",
    "logit_kalman",
    "mopps",
    "queue",
    "register",
    "shared_net",
]
