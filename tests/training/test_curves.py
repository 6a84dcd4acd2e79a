"""Curves of accuracy against rollouts: smoothed, and where they reach a target."""

import numpy as np
import pytest

from dps_jax.training._curves import cost_to_reach, smooth


def test_one_lucky_evaluation_is_no_crossing():
    np.testing.assert_allclose(smooth(np.array([1.0, 3.0, 2.0, 4.0])), [1, 2.5, 2.5, 4])
    grid = np.arange(5.0)
    lucky = np.array([0.1, 0.9, 0.1, 0.1, 0.8])
    assert cost_to_reach(grid, lucky, 0.7) > 3
    assert cost_to_reach(grid, lucky, 0.95) == float("inf")
    assert cost_to_reach(grid, grid / 4, 0.6) == pytest.approx(2.4)
    gap = np.array([0.1, np.nan, 0.2, 0.4])
    assert cost_to_reach(np.arange(4) * 10.0, gap, 0.3) == pytest.approx(25)
