import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import rl
from tests.reference import policy_gradient as reference

GROUP_BASELINES = ("grpo", "dr-grpo", "rloo")


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_advantages_match_float64_loop(name, transform, strict):
    rng = np.random.default_rng(0)
    estimate = transform(rl.ADVANTAGES[name])
    for num_groups, group_size in ((1, 2), (5, 8), (7, 3)):
        rewards = rng.normal(size=(num_groups, group_size)).astype(np.float32)
        rewards[rng.random(num_groups) < 0.2] = 0.1
        # Some completions without a score; in the largest case also a group with a single one.
        rewards[rng.random(rewards.shape) < 0.2] = np.nan
        rewards[num_groups // 2, 1:] = np.nan if num_groups > 1 else 0.3
        is_used = rng.random(num_groups) < 0.8
        is_used[0] = True
        expected = reference.advantages(name, rewards, is_used)
        np.testing.assert_allclose(estimate(jnp.asarray(rewards), jnp.asarray(is_used)), expected, atol=2e-5)


@pytest.mark.parametrize("name", GROUP_BASELINES)
def test_a_group_without_contrast_is_exactly_zero(name):
    rewards = jnp.asarray([[0.1] * 7, [1 / 3] * 7, [0.0] * 6 + [1.0]], jnp.float32)
    with jax.debug_nans(True):
        advantages = rl.ADVANTAGES[name](rewards, jnp.ones(3, bool))
    assert np.all(np.asarray(advantages[:2]) == 0)
    assert np.all(np.asarray(advantages[2]) != 0)


def test_a_batch_without_contrast_is_exactly_zero():
    rewards = jnp.full((3, 7), 0.1).at[2].set(5.0)
    with jax.debug_nans(True):
        advantages = rl.ADVANTAGES["reinforce++"](rewards, jnp.array([True, True, False]))
        nothing = rl.ADVANTAGES["reinforce++"](rewards, jnp.zeros(3, bool))
        single = rl.ADVANTAGES["reinforce++"](rewards[:1, :1], jnp.ones(1, bool))
    for values in (advantages, nothing, single):
        assert np.all(np.asarray(values) == 0)


@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_padding_is_in_no_statistic(name):
    rng = np.random.default_rng(1)
    rewards = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    garbage = jnp.full((2, 5), jnp.nan).at[1].set(jnp.arange(5.0))
    whole = rl.ADVANTAGES[name](jnp.concatenate([rewards, garbage]), jnp.arange(6) < 4)
    np.testing.assert_allclose(whole[:4], rl.ADVANTAGES[name](rewards, jnp.ones(4, bool)), atol=1e-6)
    assert np.all(np.asarray(whole[4:]) == 0)


@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_scaling_and_shifting_rewards(name):
    """What tells the estimators apart: who divides by a standard deviation, and whose mean is taken off."""
    rng = np.random.default_rng(2)
    rewards, used = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32), jnp.ones(4, bool)
    base = rl.ADVANTAGES[name](rewards, used)
    tripled = rl.ADVANTAGES[name](3 * rewards, used)
    is_standardised = name in ("grpo", "reinforce++")
    np.testing.assert_allclose(tripled, base if is_standardised else 3 * base, rtol=1e-4)
    shifted = rl.ADVANTAGES[name](rewards + jnp.arange(4.0)[:, None], used)
    assert np.allclose(shifted, base, atol=1e-4) == (name in GROUP_BASELINES)


@pytest.mark.parametrize("name", GROUP_BASELINES)
@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_a_group_baseline_needs_a_group(name, shape):
    with pytest.raises(ValueError, match=rf"rewards: expected shape \[B, G\] with G >= 2 for advantage '{name}', got"):
        rl.ADVANTAGES[name](jnp.zeros(shape), jnp.ones(3, bool))


@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_rewards_that_are_equal_up_to_rounding_have_no_advantage(name):
    rewards = jnp.full((1, 8), 100.0).at[0, 0].set(100.000008)
    assert rewards[0, 0] != rewards[0, 1]
    assert np.all(np.asarray(rl.ADVANTAGES[name](rewards, jnp.ones(1, bool))) == 0)
    # What is small but no rounding counts.
    assert np.all(np.asarray(rl.ADVANTAGES[name](rewards.at[0, 0].set(100.001), jnp.ones(1, bool))) != 0)


@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_completions_without_a_score_are_not_there(name):
    rewards = jnp.array([[1.0, jnp.nan, 0.0, 0.5, jnp.nan], [jnp.nan, jnp.nan, 0.25, jnp.nan, jnp.nan]])
    with_gaps = np.asarray(rl.ADVANTAGES[name](rewards, jnp.ones(2, bool)))
    assert np.all(with_gaps[np.isnan(rewards)] == 0)
    if name in GROUP_BASELINES:
        shorter = rl.ADVANTAGES[name](rewards[:1, jnp.array([0, 2, 3])], jnp.ones(1, bool))
        np.testing.assert_allclose(with_gaps[0, [0, 2, 3]], shorter[0], rtol=1e-6)
        assert np.all(with_gaps[1] == 0)
