"""Figures of predictions: beliefs over rounds, calibration, coverage of prompts, and current predictions.

The functions that draw return a new `matplotlib.figure.Figure`, which `save` writes and a notebook displays. They do
not change the global state of matplotlib, and import matplotlib only when they are called. `dps_jax.traces.read_trace`
reads traces.
"""

from __future__ import annotations

from dps_jax.viz._beliefs import beliefs
from dps_jax.viz._calibration import calibration, reliability_diagram
from dps_jax.viz._confusion import confusion_matrix
from dps_jax.viz._coverage import coverage
from dps_jax.viz._predictions import predictions
from dps_jax.viz._style import COLORS, moving_average, save

__all__ = [
    "COLORS",
    "beliefs",
    "calibration",
    "confusion_matrix",
    "coverage",
    "moving_average",
    "predictions",
    "reliability_diagram",
    "save",
]
