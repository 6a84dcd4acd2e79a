import numpy as np
import pytest

from dps_jax import rl


def rates(*arguments, **options):
    schedule = rl.learning_rate_schedule(*arguments, **options)
    return [float(schedule(step)) for step in range(8)]


def test_a_constant_rate_without_warm_up_is_the_number_itself():
    assert rl.learning_rate_schedule(0.3) == 0.3


def test_the_warm_up_grows_linearly_and_is_not_0_at_first():
    np.testing.assert_allclose(rates(1.0, warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(rates(1.0, warmup_steps=1), np.ones(8), rtol=1e-6)


def test_falling_rates_reach_0_at_the_end_and_stay_there():
    linear = rates(2.0, "linear", warmup_steps=2, decay_steps=6)
    np.testing.assert_allclose(linear, [1, 2, 2, 1.5, 1, 0.5, 0, 0], atol=1e-6)
    cosine = rates(2.0, "cosine", decay_steps=4)
    expected = [1 + np.cos(np.pi * min(step, 4) / 4) for step in range(8)]
    np.testing.assert_allclose(cosine, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "step"}, r"schedule: expected one of .*, got 'step'"),
        ({"warmup_steps": -1}, r"warmup_steps: expected an integer >= 0, got -1"),
        ({"schedule": "linear"}, r"decay_steps: expected a number of steps for schedule 'linear', got None"),
        ({"schedule": "cosine", "warmup_steps": 5, "decay_steps": 5}, r"decay_steps: expected an integer >= 6, got 5"),
        ({"learning_rate": -1.0}, r"learning_rate: expected .* >= 0, got -1\.0"),
    ],
)
def test_bad_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rl.learning_rate_schedule(**({"learning_rate": 1.0} | options))
