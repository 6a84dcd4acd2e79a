"""The decoder against float64 NumPy, and what padding, transforms and configs do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dps_jax import models
from dps_jax.models import _weights
from tests.models import cases
from tests.reference import decoder as reference


def tokens(batch_size, length, vocab_size=13, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch_size, length), 0, vocab_size)


@nnx.jit
def logits(model, rows, is_token=None):
    """Returns what the model does; one program is compiled faster than every operation by itself."""
    return model(rows, is_token)


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", sorted(cases.KINDS))
def test_logits_match_the_reference(kind, transform):
    model = cases.decoder(kind)
    rows = tokens(3, 9)
    found = transform(lambda model, rows: model(rows))(model, rows)
    assert found.shape == (3, 9, 13)
    assert found.dtype == jnp.float32
    tensors = _weights.to_hugging_face(model)
    expected = np.stack([reference.logits(tensors, model.config, row) for row in rows])
    assert np.std(expected) > 0.5
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_padding_on_either_side_changes_nothing(kind):
    model, rows = cases.decoder(kind), tokens(2, 6)
    plain = logits(model, rows)
    for left, right in ((3, 0), (0, 2), (2, 3)):
        wide = jnp.pad(rows, ((0, 0), (left, right)), constant_values=5)
        is_token = jnp.pad(jnp.ones(rows.shape, bool), ((0, 0), (left, right)))
        found = logits(model, wide, is_token)
        assert np.all(np.isfinite(found))
        np.testing.assert_allclose(found[:, left : left + 6], plain, rtol=1e-5, atol=2e-5)


def test_no_token_sees_a_later_one():
    model, rows = cases.decoder(), tokens(1, 7)
    changed, plain = logits(model, rows.at[0, 4].set((rows[0, 4] + 1) % 13)), logits(model, rows)
    np.testing.assert_allclose(changed[:, :4], plain[:, :4], atol=1e-6)
    assert np.all(np.abs(changed[:, 4:] - plain[:, 4:]).max(axis=-1) > 1e-3)


def test_positions_matter():
    model = cases.decoder()
    apart = logits(model, jnp.array([[3, 4, 5]]))[0, -1] - logits(model, jnp.array([[4, 3, 5]]))[0, -1]
    assert np.abs(apart).max() > 0.05


def test_models_run_under_vmap_and_scan_over_their_weights():
    graphdef, params = zip(*(nnx.split(cases.decoder(seed=seed)) for seed in range(3)), strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    rows = tokens(2, 5)
    run = lambda params: nnx.merge(graphdef[0], params)(rows)
    expected = jnp.stack([logits(nnx.merge(graphdef[0], one), rows) for one in params])
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(stacked), expected, atol=2e-5)
    scanned = jax.lax.scan(lambda carry, one: (carry, run(one)), None, stacked)[1]
    np.testing.assert_allclose(scanned, expected, atol=2e-5)


def test_half_precision_weights_give_nearly_the_same():
    graphdef, params = nnx.split(cases.decoder(scale=0.1))
    rows = tokens(4, 8)
    full = logits(nnx.merge(graphdef, params), rows)
    half = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    hidden, caches = half.extend(rows[:, None], jnp.ones((4, 1, 8), bool))
    assert {leaf.dtype for leaf in jax.tree.leaves((hidden, caches))} == {jnp.dtype(jnp.bfloat16)}
    found = logits(half, rows)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, full, atol=0.1 * np.abs(full).max())


def test_gradients_are_finite_with_rows_of_padding():
    graphdef, params = nnx.split(cases.decoder())
    is_token = jnp.array([[False, False, True, True], [False, False, False, False]])
    with jax.debug_nans(True):
        grads = jax.grad(lambda params: nnx.merge(graphdef, params)(tokens(2, 4), is_token).sum())(params)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


# Counts of the published checkpoints; the first two are what the names promise.
@pytest.mark.parametrize(
    ("name", "vocab_size", "low", "high"),
    [
        ("0.1m", 110, 50_000, 150_000),
        ("0.8m", 110, 750_000, 850_000),
        ("3m", 110, 2_500_000, 3_500_000),
        ("13m", 110, 12_500_000, 13_500_000),
        ("qwen2.5-0.5b", 151_936, 494_032_768, 494_032_768),
        ("qwen2.5-1.5b", 151_936, 1_543_714_304, 1_543_714_304),
        ("qwen3-0.6b", 151_936, 596_049_920, 596_049_920),
    ],
)
def test_sizes_have_the_parameters_they_promise(name, vocab_size, low, high):
    config = models.DecoderConfig(vocab_size=vocab_size, **models.SIZES[name])
    params = jax.eval_shape(lambda: nnx.state(models.Decoder(config, rngs=nnx.Rngs(0)), nnx.Param))
    assert low <= sum(leaf.size for leaf in jax.tree.leaves(params)) <= high


BAD = {
    r"vocab_size: expected an integer >= 2, got 1": {"vocab_size": 1},
    r"hidden_size: expected an integer >= 1, got 0": {"hidden_size": 0},
    r"num_layers: expected an integer >= 1, got 1\.5": {"num_layers": 1.5},
    r"head_dim: expected an even number, .* got 7": {"head_dim": 7},
    r"num_kv_heads: expected a divisor of num_heads = 4, got 3": {"num_kv_heads": 3},
    r"rope_theta: expected a finite number > 0, got 0\.0": {"rope_theta": 0.0},
    r"rope_theta: expected a finite number > 0, got inf": {"rope_theta": float("inf")},
    r"norm_epsilon: expected a finite number > 0, got nan": {"norm_epsilon": float("nan")},
    r"is_tied: expected True or False, got 1": {"is_tied": 1},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_configs_are_refused(message):
    with pytest.raises(ValueError, match=message):
        cases.config(**BAD[message])
