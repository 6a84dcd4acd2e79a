"""Traces: which prompt was rolled out when, and how often it was solved; their files, a recorder and simulators."""

from dps_jax.traces._files import read_named_trace, read_trace, write_trace
from dps_jax.traces._format import Trace, concatenate
from dps_jax.traces._layouts import ColumnNames
from dps_jax.traces._learners import REGIMES, Learners, Regime
from dps_jax.traces._recorder import TraceLog
from dps_jax.traces._simulate import (
    SimulatedHMM,
    SimulatedLearners,
    simulate_hmm,
    simulate_learners,
)

__all__ = [
    "REGIMES",
    "ColumnNames",
    "Learners",
    "Regime",
    "SimulatedHMM",
    "SimulatedLearners",
    "Trace",
    "TraceLog",
    "concatenate",
    "read_named_trace",
    "read_trace",
    "simulate_hmm",
    "simulate_learners",
    "write_trace",
]
