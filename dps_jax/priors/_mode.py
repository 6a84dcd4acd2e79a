"""Searches for the mode of a density by L-BFGS.

With a binomial emission, a posterior has many local modes, whose log densities differ by hundreds of nats. A
first-order method would take thousands of steps to reach one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

# A pass of L-BFGS ends when a step reduces the loss by less than this share, which is about the resolution of float32.
_RELATIVE_GAIN = 1e-7
# L-BFGS sometimes stops early, as the loss is in float32. It is restarted from its last point until a pass reduces the
# loss by less than this, nats.
_GAIN_OF_A_PASS = 0.1
# Unconstrained values beyond this correspond to probabilities that float32 cannot distinguish from 0 or 1.
_BOUND = 15.0
# Losses that are not finite are replaced by this value, so that the line search tries a shorter step.
_WORST = 1e30

Loss = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Mode(NamedTuple):
    """The result of a search from one starting point.

    Attributes:
      values: last values, float64 [D].
      losses: loss at every evaluation, nats, float64 [evaluations].
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
    """Returns the local minimum that L-BFGS reaches from one starting point.

    Args:
      loss: jitted function, values [D] -> loss and gradient.
      start: initial values, [D].
      max_evaluations: largest number of evaluations of the loss; the last line search may exceed it.
      report: function that is called after every evaluation.
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
