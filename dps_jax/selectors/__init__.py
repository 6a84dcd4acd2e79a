"""Which prompts next? One named method per file, all behind `types.Selector`.

`register` adds a method of your own, made by `from_predictor`; see there.
"""

from __future__ import annotations

from dps_jax.selectors.acquisition import Acquisition
from dps_jax.selectors.arcsine import arcsine
from dps_jax.selectors.binomial_hmm import binomial_hmm
from dps_jax.selectors.composition import from_predictor
from dps_jax.selectors.dps import dps
from dps_jax.selectors.ema_variance import ema_variance
from dps_jax.selectors.history import history
from dps_jax.selectors.instructive import instructive
from dps_jax.selectors.last_state import last_state
from dps_jax.selectors.logit_kalman import logit_kalman
from dps_jax.selectors.mopps import mopps
from dps_jax.selectors.options import AcquisitionOptions
from dps_jax.selectors.queue import queue
from dps_jax.selectors.registry import SELECTORS, build, option_names, register
from dps_jax.selectors.shared_net import shared_net
from dps_jax.selectors.uniform import uniform

__all__ = [
    "SELECTORS",
    "Acquisition",
    "AcquisitionOptions",
    "arcsine",
    "binomial_hmm",
    "build",
    "dps",
    "ema_variance",
    "from_predictor",
    "history",
    "instructive",
    "last_state",
    "logit_kalman",
    "mopps",
    "option_names",
    "queue",
    "register",
    "shared_net",
    "uniform",
]
