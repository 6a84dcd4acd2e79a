"""Patches of rasters in prompts: embedding, sampling, training and files; models without patches are as they were."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dps_jax import models
from dps_jax.models import _weights
from tests.models import cases

BITS, V = 6, cases.SMALL["vocab_size"]
# Of models without patches, at the commit before there were any: SHA-256 of the parameters, and some logits.
GOLDEN = {
    "bare": ("7fe9e9145f43d0c3", [-0.9817477, -0.5608100, -1.2845055, -0.2652117]),
    "qwen3": ("310a4271759d60f1", [-1.7046003, -5.2710381, 1.7079508, -1.4169600]),
}


def prompts(seed=0):
    """Returns prompts of patches and tokens, the second one padded, int32 [2, 6]."""
    patches = V + jax.random.randint(jax.random.key(seed), (2, 3), 0, 2**BITS)
    tokens = jax.random.randint(jax.random.key(seed + 1), (2, 2), 2, V)
    pad = jnp.full((2, 1), cases.PAD)
    return jnp.concatenate([pad, patches, tokens], axis=1).at[0, 0].set(4).astype(jnp.int32)


@nnx.jit
def logits(model, rows, is_token=None):
    """Returns what the model does; one program is compiled faster than every operation by itself."""
    return model(rows, is_token)


@pytest.mark.parametrize("kind", sorted(GOLDEN))
def test_models_without_patches_are_what_they_were(kind):
    digest, expected = GOLDEN[kind]
    model = cases.decoder(kind)
    leaves = jax.tree.leaves(nnx.split(model)[1])
    assert hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()[:16] == digest
    rows = jax.random.randint(jax.random.key(0), (2, 5), 0, V)
    np.testing.assert_allclose(logits(model, rows)[1, -1, :4], expected, rtol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_embedding_equals_a_loop_over_bits(dtype):
    graphdef, params = nnx.split(cases.decoder(patch_bits=BITS))
    model = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(dtype), params))
    ids = np.array([0, V - 1, V, V + 1, V + 2, V + 37, V + 2**BITS - 1])
    found = model.embed(jnp.asarray(ids))
    assert found.dtype == dtype
    table, kernel, bias = (
        np.asarray(leaf[...], np.float64)
        for leaf in (model.embedding.embedding, model.patches.kernel, model.patches.bias)
    )
    for token, row in zip(ids, np.asarray(found, np.float64), strict=True):
        expected = table[token] if token < V else bias.copy()
        for bit in range(BITS if token >= V else 0):
            if (token - V) // 2**bit % 2 == 1:
                expected = expected + kernel[bit]
        np.testing.assert_allclose(row, expected, atol=1e-6 if dtype == jnp.float32 else 0.02)


@pytest.mark.parametrize("kind", ["qwen2", "untied"])
def test_sampling_and_scoring_agree_behind_patches(kind):
    model, rows = cases.decoder(kind, patch_bits=BITS), prompts()
    options = {"group_size": 3, "completion_length": 5, "end_id": cases.END, "pad_id": cases.PAD}
    found = nnx.jit(lambda model: models.sample(model, rows, jax.random.key(2), **options))(model)
    assert found.tokens.max() < V
    score = nnx.jit(lambda model: models.completion_log_probs(model, rows, found.tokens, pad_id=cases.PAD))
    scored, _ = score(model)
    np.testing.assert_allclose(found.log_probs, jnp.where(found.mask, scored, 0), atol=1e-4)
    plain = logits(model, rows, rows != cases.PAD)
    assert plain.shape == (2, 6, V)
    first = jax.nn.log_softmax(plain[:, -1])
    np.testing.assert_allclose(
        found.log_probs[:, :, 0], jnp.take_along_axis(first, found.tokens[:, :, 0], axis=1), atol=1e-4
    )
    # What is in a patch matters.
    other = logits(model, rows.at[:, 2].set(V + (rows[:, 2] - V ^ 5)), rows != cases.PAD)
    assert np.all(np.abs(other[:, -1] - plain[:, -1]).max(axis=-1) > 1e-3)


def test_a_step_of_training_changes_the_patch_layer_and_lowers_the_loss():
    graphdef, params = nnx.split(cases.decoder(scale=0.1, patch_bits=BITS))
    rows, completions = prompts(), jnp.array([[[3, 5, cases.END]], [[7, 2, cases.END]]])

    @jax.jit
    def loss(params):
        log_probs, _ = models.completion_log_probs(nnx.merge(graphdef, params), rows, completions, pad_id=cases.PAD)
        return -log_probs.mean()

    optimizer = optax.sgd(0.1)
    before, grads = jax.value_and_grad(loss)(params)
    moved = optax.apply_updates(params, optimizer.update(grads, optimizer.init(params))[0])
    assert loss(moved) < before
    patches, trained = params["patches"], moved["patches"]
    is_set = np.any((np.asarray(rows)[:, 1:4, None] - V >> np.arange(BITS)) & 1, axis=(0, 1))
    np.testing.assert_array_equal(np.any(np.asarray(patches["kernel"][...] != trained["kernel"][...]), axis=1), is_set)
    assert np.all(patches["bias"][...] != trained["bias"][...])


def test_patches_that_the_model_does_not_know_are_refused():
    options = {"group_size": 1, "completion_length": 1, "end_id": cases.END, "pad_id": cases.PAD}
    model = cases.decoder(patch_bits=BITS)
    last = V + 2**BITS - 1
    known = np.array([[last, 3]])
    found = nnx.jit(lambda model: models.sample(model, known, jax.random.key(0), **options))(model)
    assert found.tokens.shape == (1, 1, 1)
    with pytest.raises(ValueError, match=rf"prompts: expected tokens in \[0, {last + 1}\), got {last + 1}; .*patches"):
        models.sample(model, np.array([[last + 1, 3]]), jax.random.key(0), **options)
    with pytest.raises(ValueError, match=rf"prompts: expected tokens in \[0, {V}\), got {last}; .*patches"):
        models.sample(cases.decoder(), np.array([[last, 3]]), jax.random.key(0), **options)


@pytest.mark.parametrize("value", [-1, 31, 2.0, True])
def test_bad_numbers_of_bits_are_refused(value):
    with pytest.raises(ValueError, match=rf"patch_bits: expected an integer >= 0 and <= 30, got {value}"):
        cases.config(patch_bits=value)


def test_models_with_patches_are_saved_and_loaded(tmp_path):
    model, path = cases.decoder("untied", patch_bits=BITS), tmp_path / "model.safetensors"
    _weights.save(model, path)
    loaded, _ = _weights.load(path)
    assert loaded.config == model.config
    np.testing.assert_array_equal(logits(loaded, prompts()), logits(model, prompts()))
    assert _weights.shapes_of(model.config)["model.embed_patches.weight"] == (24, BITS)
    # Files of models without patches do not have the field.
    _weights.save(cases.decoder(), path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert "patch" not in header["__metadata__"]["dps_jax_config"]
    tensors = _weights.to_hugging_face(model)
    with pytest.raises(
        ValueError, match=r"tensors: expected the tensors of .*unexpected \['model\.embed_patches\.bias'"
    ):
        _weights.from_hugging_face(cases.config("untied"), tensors)


def test_no_family_of_hugging_face_has_patches(tmp_path):
    with pytest.raises(ValueError, match=r"patch_bits: expected 0, got 6; no family of Hugging Face has patches"):
        models.save_pretrained(cases.decoder(patch_bits=BITS), tmp_path / "model")
    assert not (tmp_path / "model").exists()
