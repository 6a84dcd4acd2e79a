import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.rl import _losses
from tests.reference import policy_gradient as reference


@pytest.mark.parametrize("name", _losses.LOSSES)
def test_weights_match_float64_loop(name, strict):
    rng = np.random.default_rng(0)
    mask = np.arange(7) < rng.integers(1, 8, (5, 3))[..., None]
    is_used = np.array([True, False, True, True, False])
    weights = _losses.LOSSES[name](jnp.asarray(mask), jnp.asarray(is_used))
    np.testing.assert_allclose(weights, reference.token_weights(name, mask, is_used), rtol=1e-6)
    nothing = _losses.LOSSES[name](jnp.asarray(mask), jnp.zeros(5, bool))
    assert np.all(np.asarray(nothing) == 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "is_clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.0, -2.0, 2.0, 2.0, False),
        (1.25, 2.0, -2.5, -2.5, False),  # above 1 + clip_low, below 1 + clip_high
        (1.5, 2.0, -2.56, 0.0, True),
        (1.5, -2.0, 3.0, 3.0, False),
        (0.5, 2.0, -1.0, -1.0, False),
        (0.5, -2.0, 1.6, 0.0, True),
        (0.75, -2.0, 1.6, 0.0, True),
        (1.5, 0.0, 0.0, 0.0, False),
        (1e30, 2.0, -2.56, 0.0, True),
    ],
)
def test_clip_by_hand(ratio, advantage, loss, slope, is_clipped):
    def total(log_probs):
        values, is_beyond = _losses.clipped_policy_loss(
            log_probs, jnp.zeros((1, 1)), jnp.full((1,), advantage), 0.2, 0.28
        )
        return values.sum(), is_beyond

    (value, beyond), gradient = jax.value_and_grad(total, has_aux=True)(jnp.full((1, 1), np.log(ratio)))
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)
    assert bool(beyond[0, 0]) is is_clipped


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_ratio_that_overflows_is_clipped(advantage):
    """exp(200) is infinite in float32; of the two signs that the clip cuts off, it must leave no NaN."""
    log_prob = -200.0 if advantage < 0 else 200.0
    total = lambda x: _losses.clipped_policy_loss(x, jnp.zeros((1, 1)), jnp.full((1,), advantage), 0.2, 0.28)[0].sum()
    value, gradient = jax.value_and_grad(total)(jnp.full((1, 1), log_prob))
    assert np.isfinite(value)
    assert float(gradient[0, 0]) == 0


def test_the_clip_can_be_turned_off():
    run = lambda x, advantage, low, high: _losses.clipped_policy_loss(x, 0 * x, jnp.full((1,), advantage), low, high)[0]
    np.testing.assert_allclose(run(jnp.full((1, 1), 3.0), 1.0, 0.2, float("inf")), -np.exp(3.0), rtol=1e-6)
    np.testing.assert_allclose(run(jnp.full((1, 1), -3.0), -1.0, 1.0, 0.28), np.exp(-3.0), rtol=1e-6)


def divergence(log_p, log_q):
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def expected_gradient(name, logits, log_ref):
    """Of the estimate as a loss, over tokens drawn from the policy: exact, by enumeration."""
    probs = jax.lax.stop_gradient(jax.nn.softmax(logits))
    estimate = lambda logits: jnp.sum(probs * _losses.KL_ESTIMATORS[name](jax.nn.log_softmax(logits), log_ref))
    return jax.grad(estimate)(logits)


def test_what_the_gradients_of_the_kl_estimators_are():
    rng = np.random.default_rng(3)
    logits, ref_logits = jnp.asarray(rng.normal(size=(2, 6)), jnp.float32)
    log_ref = jax.nn.log_softmax(ref_logits)
    reverse = jax.grad(lambda x: divergence(jax.nn.log_softmax(x), log_ref))(logits)
    forward = jax.grad(lambda x: divergence(log_ref, jax.nn.log_softmax(x)))(logits)
    assert np.abs(reverse - forward).max() > 0.05
    np.testing.assert_allclose(expected_gradient("k1", logits, log_ref), np.zeros(6), atol=1e-6)
    np.testing.assert_allclose(expected_gradient("k2", logits, log_ref), reverse, atol=1e-6)
    np.testing.assert_allclose(expected_gradient("k3", logits, log_ref), forward, atol=1e-6)


def test_what_the_values_of_the_kl_estimators_are():
    rng = np.random.default_rng(4)
    log_p, log_ref = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(2, 6)), jnp.float32))
    expectation = {
        name: float(jnp.sum(jnp.exp(log_p) * fn(log_p, log_ref))) for name, fn in _losses.KL_ESTIMATORS.items()
    }
    exact = float(divergence(log_p, log_ref))
    assert expectation["k1"] == pytest.approx(exact, abs=1e-6)
    assert expectation["k3"] == pytest.approx(exact, abs=1e-6)
    assert abs(expectation["k2"] - exact) > 0.01
    assert float(_losses.k1(log_p, log_ref).min()) < 0
    assert float(_losses.k3(log_p, log_ref).min()) >= 0
