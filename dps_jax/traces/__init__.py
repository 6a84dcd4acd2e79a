"""Traces: tables of the visits of a training run, with files to read and write, a recorder and simulators.

A trace has one row per visit: the round, the prompt, and how many of its completions were correct.
"""

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
