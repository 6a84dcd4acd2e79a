"""Methods of prompt selection by name; each factory returns a `types.Selector`.

A method consists of a predictor and an acquisition, the rule that turns predictions into picks (`AcquisitionOptions`).
`register_predictor` makes any predictor a method that is available by its name; `from_predictor` and `register` do the
same in two steps, with a score and options of your own.
"""

from __future__ import annotations

from dps_jax.selectors._acquisition import Acquisition
from dps_jax.selectors._arcsine import arcsine
from dps_jax.selectors._binomial_hmm import binomial_hmm
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._dps import dps
from dps_jax.selectors._ema_variance import ema_variance
from dps_jax.selectors._history import history
from dps_jax.selectors._instructive import instructive
from dps_jax.selectors._last_state import last_state
from dps_jax.selectors._logit_kalman import logit_kalman
from dps_jax.selectors._mopps import mopps
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._queue import queue
from dps_jax.selectors._registry import SELECTORS, build, option_names, register, register_predictor
from dps_jax.selectors._shared_net import shared_net
from dps_jax.selectors._uniform import uniform

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
    "register_predictor",
    "shared_net",
    "uniform",
]
