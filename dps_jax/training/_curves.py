"""Curves of accuracy against what it cost: smoothed, and where they reach a target."""

from __future__ import annotations

import numpy as np


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the best non-decreasing fit (pool adjacent violators), so that one lucky evaluation is no crossing.

    Args:
      values: accuracies, [E]; what is not finite is left out.
    """
    blocks: list[list[float]] = []
    for value in values[np.isfinite(values)]:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (one, size), (other, more) = blocks[-2:]
            blocks[-2:] = [[(one * size + other * more) / (size + more), size + more]]
    return np.concatenate([np.full(int(size), value) for value, size in blocks])


def cost_to_reach(costs: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """Returns the cost at which a curve reaches a target, interpolated; infinity if it does not.

    Args:
      costs: in total at every evaluation, increasing, [E].
      accuracy: at every evaluation, [E]; what is not finite is left out.
      target: accuracy.
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
