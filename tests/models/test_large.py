"""Large vocabularies, long sequences and many layers: equal to what is computed at once, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dps_jax import models, rl
from dps_jax.models import _attention, _decoder, _key_values, _scoring
from tests.models import cases


def assert_close(one, other, tolerance=1e-5):
    for found, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("kind", sorted(cases.KINDS))
def test_pieces_blocks_and_loops_change_neither_values_nor_gradients(kind, monkeypatch):
    model = cases.decoder(kind)
    options = {"temperature": 0.7, "num_tokens": 12}
    expected = cases.scores_and_gradient(model, attention="plain", is_rematerialised=False, **options)
    assert_close(cases.scores_and_gradient(model, is_rematerialised=True, **options), expected)
    # 4 of 11 positions at a time, 5 of 7 and 3 of 10 queries, and a loop of two layers.
    monkeypatch.setattr(_scoring, "_MAX_LOGITS", 4 * 12 * 13)
    monkeypatch.setattr(_attention, "_MAX_SCORES", 12 * 3 * 17 * model.config.num_heads)
    monkeypatch.setattr(_decoder, "_MIN_SCANNED_LAYERS", 2)
    for is_rematerialised in (False, True):
        assert_close(cases.scores_and_gradient(model, is_rematerialised=is_rematerialised, **options), expected)


def test_blocks_are_what_fits(monkeypatch):
    sizes = []
    attend = _attention._attend

    def noted(seen, queries, start):
        sizes.append(queries.shape[2])
        return attend(seen, queries, start)

    monkeypatch.setattr(_attention, "_attend", noted)
    monkeypatch.setattr(_attention, "_MAX_SCORES", 2 * 4 * 20 * 3)
    cache = _key_values.KeyValues(*(jax.random.normal(jax.random.key(seed), (1, 2, 20, 2, 8)) for seed in (0, 1)))
    queries = jax.random.normal(jax.random.key(2), (1, 2, 20, 4, 8))
    seen = [_key_values.Seen(cache, None, is_causal=True)]
    found = _attention.blockwise(queries, seen)
    assert sizes == [3]
    np.testing.assert_allclose(found, _attention.plain(queries, seen), atol=1e-6)
    with pytest.raises(
        ValueError, match="attention: expected one of 'plain', 'blockwise', 'cudnn', 'splash', got 'flash'"
    ):
        cases.scores_and_gradient(cases.decoder(), attention="flash")


@functools.cache
def compiled(vocab_size, num_layers, *, width="qwen2.5-0.5b", length=1024):
    """Returns the compiled gradient of 8 rows of a prompt of 64 tokens."""
    shape = models.DecoderConfig(vocab_size=vocab_size, **(models.SIZES[width] | {"num_layers": num_layers}))
    graphdef, params = nnx.split(nnx.eval_shape(lambda: models.Decoder(shape, rngs=nnx.Rngs(0))))

    def loss(params, prompts, completions):
        log_probs, _ = models.completion_log_probs(nnx.merge(graphdef, params), prompts, completions, pad_id=0)
        return log_probs.sum()

    arrays = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 64), (1, 8, length)))
    return jax.jit(jax.grad(loss)).lower(params, *arrays).compile()


@pytest.mark.slow
def test_memory_of_the_gradient_does_not_grow_with_the_vocabulary():
    temporaries = lambda size: compiled(size, 2).memory_analysis().temp_size_in_bytes
    assert temporaries(151_936) < 3 * 2**30
    assert temporaries(151_936) < 1.2 * temporaries(32_000)


@pytest.mark.slow
def test_bfloat16_compute_follows_float32_and_bfloat16_weights_do_not():
    """50 steps at a learning rate of 1e-6, of which a weight of bfloat16 rounds every one away."""
    sizes = {"hidden_size": 64, "head_dim": 16, "mlp_size": 128, "num_heads": 4, "num_kv_heads": 2}
    graphdef, params = nnx.split(models.Decoder(models.DecoderConfig(vocab_size=64, **sizes), rngs=nnx.Rngs(0)))
    prompts, is_token = jax.random.randint(jax.random.key(1), (8, 6), 2, 64), jnp.ones((8, 6), bool)
    sampled = models.sample(
        nnx.merge(graphdef, params),
        prompts,
        jax.random.key(2),
        group_size=8,
        completion_length=12,
        end_ids=[],
        pad_id=0,
    )
    rewards = jnp.mean(sampled.tokens % 3 == 0, axis=-1, dtype=jnp.float32)
    batch = rl.Batch(
        ids=jnp.arange(8, dtype=jnp.int32),
        prompts=prompts,
        completions=sampled.tokens,
        mask=sampled.mask,
        old_log_probs=sampled.log_probs,
        rewards=rewards,
        is_correct=rewards > 0.4,
        is_used=jnp.ones(8, bool),
    )

    def log_probs(dtype, params, *arrays):
        model = nnx.merge(graphdef, models.for_computing(params, dtype))
        return models.completion_log_probs(model, *arrays, pad_id=0, is_prompt_token=is_token)

    def gain(dtype, master):
        """Returns by how much training raises the log-probs of what was rewarded, in float32."""
        learner = rl.learner(functools.partial(log_probs, dtype), learning_rate=1e-6, rows_per_step=64)
        trained = jax.tree.map(lambda leaf: leaf.astype(master), params)
        opt_state, update = learner.init(trained), jax.jit(learner.update)
        for step in range(50):
            trained, opt_state, _ = update(trained, opt_state, batch, jax.random.key(step))
        trained = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained)
        moved = log_probs("float32", trained, prompts, sampled.tokens)[0] - sampled.log_probs
        return float(jnp.sum(moved * (rewards - rewards.mean(axis=1, keepdims=True))[..., None]))

    expected = gain("float32", jnp.float32)
    assert expected > 0.1
    assert gain("bfloat16", jnp.float32) == pytest.approx(expected, rel=0.01)
    assert gain("float32", jnp.bfloat16) < 0.5 * expected
