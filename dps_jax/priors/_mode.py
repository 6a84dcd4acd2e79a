"""The mode of a density, by L-BFGS from several starts.

A posterior under a binomial emission has many local modes, hundreds of nats apart, and a first-order method takes
thousands of steps to any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

# A pass ends when a step gains less than this share of the loss, which is about the resolution of float32.
_RELATIVE_GAIN = 1e-7
# L-BFGS in float32 sometimes stops early. It is restarted from its last point until a pass gains less than this, nats.
_GAIN_OF_A_PASS = 0.1
# Unconstrained values beyond this are probabilities that float32 cannot distinguish from 0 or 1.
_BOUND = 15.0
# Losses that are not finite are replaced by this, so that the line search turns back.
_WORST = 1e30

Loss = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Mode(NamedTuple):
    """The result of a search from one start.

    Attributes:
      values: last values, float64 [D].
      losses: loss of every evaluation, nats, float64.
      is_converged: whether the search ended before it reached the limit of evaluations.
    """

    values: np.ndarray
    losses: np.ndarray
    is_converged: bool

    @property
    def loss(self) -> float:
        """The smallest loss, nats."""
        return float(self.losses.min())


def minimise(loss: Loss, start: Any, *, max_evaluations: int, report: Callable[[], None] = lambda: None) -> Mode:
    """Returns a local minimum.

    Args:
      loss: values [D] -> loss and gradient; jitted.
      start: first values, [D].
      max_evaluations: largest number of evaluations of the loss; a line search that reaches this number is still
        finished.
      report: called after every evaluation.
    """
    losses: list[float] = []

    def evaluate(values: np.ndarray) -> tuple[float, np.ndarray]:
        found, gradient = jax.device_get(loss(jnp.asarray(values, jnp.float32)))
        is_usable = np.isfinite(found) and bool(np.all(np.isfinite(gradient)))
        losses.append(float(found) if is_usable else _WORST)
        report()
        return losses[-1], gradient.astype(np.float64) if is_usable else np.zeros_like(values)

    values, best, is_converged = np.asarray(start, np.float64), np.inf, False
    while len(losses) < max_evaluations and not is_converged:
        limits = {
            "maxfun": max_evaluations - len(losses),
            "maxiter": max_evaluations,
            "ftol": _RELATIVE_GAIN,
            "gtol": 0,
        }
        bounds = [(-_BOUND, _BOUND)] * values.size
        found = optimize.minimize(evaluate, values, jac=True, method="L-BFGS-B", bounds=bounds, options=limits)
        is_converged = len(losses) < max_evaluations and best - found.fun < _GAIN_OF_A_PASS
        values, best = found.x, found.fun
    return Mode(values, np.asarray(losses), is_converged)


def is_finite(mode: Mode) -> bool:
    """Returns whether the search found a finite loss."""
    return mode.loss < _WORST
