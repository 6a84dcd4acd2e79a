"""A task of one's own is found by its name."""

import numpy as np
import pytest

from dps_jax import tasks, training


@pytest.fixture
def named():
    def easy_steps(format_reward=0.0, levels=((1, 1, 1.0),), test_levels=None):
        return tasks.steps(levels=levels, test_levels=test_levels, format_reward=format_reward)

    yield tasks.register(easy_steps)
    del tasks.TASKS["easy_steps"]


def test_a_registered_task_is_built_and_accepted_by_configs(named):
    task = tasks.build("easy_steps", format_reward=0.5)
    assert len(task.make_problems(0, "train", np.arange(3)).prompts) == 3
    assert training.TaskConfig(name="easy_steps").name == "easy_steps"
    with pytest.raises(ValueError, match="options of task 'easy_steps'"):
        tasks.build("easy_steps", size=3)


def test_the_same_factory_may_come_twice_and_another_may_not(named):
    assert tasks.register(named) is named

    def easy_steps():
        raise AssertionError

    with pytest.raises(ValueError, match="expected a name that no other task has, got 'easy_steps'"):
        tasks.register(easy_steps)
    assert tasks.TASKS["easy_steps"] is named
