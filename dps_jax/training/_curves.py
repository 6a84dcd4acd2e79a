"""Curves of accuracy against cost: their smoothing, and the cost at which they reach a target."""

from __future__ import annotations

import numpy as np


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the non-decreasing least-squares fit (pool adjacent violators); one lucky evaluation changes it little.

    Args:
      values: accuracies, [E]; entries that are not finite are left out.
    """
    blocks: list[list[float]] = []
    for value in values[np.isfinite(values)]:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (one, size), (other, more) = blocks[-2:]
            blocks[-2:] = [[(one * size + other * more) / (size + more), size + more]]
    return np.concatenate([np.full(int(size), value) for value, size in blocks])


def cost_to_reach(costs: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """Returns the interpolated cost at which an accuracy curve reaches a target; infinity if it does not.

    The curve is made non-decreasing first, so that noise in a single evaluation has less influence.

    Args:
      costs: total cost, such as rollouts or seconds, at every evaluation, increasing, [E].
      accuracy: accuracy at every evaluation, [E]; entries that are not finite are left out.
      target: the accuracy to reach.

    Example:
      >>> import numpy as np
      >>> from dps_jax import training
      >>> rollouts, accuracy = np.array([0, 1000, 2000, 3000]), np.array([0.1, 0.2, 0.4, 0.5])
      >>> round(training.cost_to_reach(rollouts, accuracy, 0.3))
      1500
    """
    fitted, costs = smooth(accuracy), costs[np.isfinite(accuracy)]
    above = np.flatnonzero(fitted >= target)
    if not above.size:
        return float("inf")
    last = above[0]
    if last == 0:
        return float(costs[0])
    share = (target - fitted[last - 1]) / (fitted[last] - fitted[last - 1])
    return float(costs[last - 1] + share * (costs[last] - costs[last - 1]))
