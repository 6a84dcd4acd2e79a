"""Figures of predictions: beliefs over rounds, calibration, coverage, and the present state of a selector.

Every function returns a `matplotlib.figure.Figure` of its own, for `save` or a notebook. Global state of matplotlib is
not changed, and matplotlib is imported when a function is called. Traces are read by `dps_jax.traces.read_trace`.
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
