"""Attention by kernels: equal to `plain` where a query is a token, values and gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dps_jax import models
from dps_jax.models import _attention, _decoder, _fused_attention
from dps_jax.models._key_values import KeyValues, Seen
from tests.models import cases

KERNELS = {
    "cudnn": functools.partial(_fused_attention.attend_by_lengths, implementation="xla"),
    "splash": functools.partial(_fused_attention.splash, is_interpreted=True),
}
B, G, P, S, H, KV_HEADS, HEAD_DIM = 3, 2, 5, 7, 4, 2, 8
PADDED_LEFT = jnp.arange(P) >= jnp.array([[2], [0], [4]])
PADDED_RIGHT = jnp.arange(S) < jax.random.randint(jax.random.key(9), (B, G, 1), 3, S)
SCATTERED = jnp.array([[[1, 0, 1, 1, 0, 0, 1]]]).astype(bool) | jnp.zeros((B, G, 1), bool)


def draw(dtype, seed=0):
    """Returns queries, the keys and values of a prompt, own ones, and weights of what is found."""
    shapes = {
        "queries": (B, G, S, H, HEAD_DIM),
        "keys": (B, 1, P, KV_HEADS, HEAD_DIM),
        "values": (B, 1, P, KV_HEADS, HEAD_DIM),
        "own keys": (B, G, S, KV_HEADS, HEAD_DIM),
        "own values": (B, G, S, KV_HEADS, HEAD_DIM),
        "weights": (B, G, S, H, HEAD_DIM),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    queries, *cached, weights = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes.values(), strict=True)
    )
    return (queries, KeyValues(*cached[:2]), KeyValues(*cached[2:])), weights


# Stretches that queries see, of the prompt and of their own, and which queries are tokens.
STRETCHES = {
    "own": lambda prompt, own: ([Seen(own, None, True)], None),
    "own, padded on the right": lambda prompt, own: ([Seen(own, PADDED_RIGHT, True)], PADDED_RIGHT),
    "own, padded here and there": lambda prompt, own: ([Seen(own, SCATTERED, True)], SCATTERED),
    "prompt and own": lambda prompt, own: ([Seen(prompt, PADDED_LEFT[:, None], False), Seen(own, None, True)], None),
    "prompt and own, both padded": lambda prompt, own: (
        [Seen(prompt, PADDED_LEFT[:, None], False), Seen(own, PADDED_RIGHT, True)],
        PADDED_RIGHT,
    ),
    "own and a whole prompt": lambda prompt, own: ([Seen(own, None, True), Seen(prompt, None, False)], None),
    "prompt": lambda prompt, own: ([Seen(prompt, PADDED_LEFT[:, None], False)], None),
    "two, none causal": lambda prompt, own: ([Seen(prompt, None, False), Seen(own, SCATTERED, False)], None),
}


def value_and_gradient(attend, stretches, arrays, weights):
    def loss(queries, prompt, own):
        seen, is_query = STRETCHES[stretches](prompt, own)
        found = attend(queries, seen).astype(jnp.float32)
        found = found if is_query is None else jnp.where(is_query[..., None, None], found, 0.0)
        return jnp.sum(found * weights), found

    (_, found), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return found, grads


def assert_close(one, other, tolerance):
    for found, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        found, expected = (np.asarray(leaf, np.float32) for leaf in (found, expected))
        np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("stretches", STRETCHES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_values_and_gradients_are_those_of_plain(kernel, stretches):
    arrays, weights = draw("float32")
    expected = value_and_gradient(_attention.plain, stretches, arrays, weights)
    assert_close(value_and_gradient(KERNELS[kernel], stretches, arrays, weights), expected, 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_rounds(kernel):
    """To 8 bits: by 2 ** -8 of the largest entry of an array, and a little more where several are added."""
    arrays, weights = draw("bfloat16")
    in_float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), arrays)
    expected = value_and_gradient(_attention.plain, "prompt and own", in_float32, weights)
    found = value_and_gradient(KERNELS[kernel], "prompt and own", arrays, weights)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found[1])} == {"bfloat16"}
    assert_close(found, expected, 0.015)


@pytest.mark.parametrize("kernel", KERNELS)
def test_several_blocks_of_queries_and_keys(kernel, monkeypatch):
    monkeypatch.setattr(_fused_attention, "_MAX_BLOCK", 128)
    keys = jax.random.split(jax.random.key(0), 5)
    queries = jax.random.normal(keys[0], (1, 1, 200, 2, 8))
    prompt, own = (
        KeyValues(*(jax.random.normal(key, (1, 1, length, 1, 8)) for key in pair))
        for pair, length in ((keys[1:3], 150), (keys[3:], 200))
    )
    is_token = (jnp.arange(150) >= 140)[None, None]

    def loss(attend, queries, prompt, own):
        found = attend(queries, [Seen(prompt, is_token, False), Seen(own, None, True)])
        return jnp.sum(found**2), found

    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, attend), argnums=(0, 1, 2), has_aux=True))(
            queries, prompt, own
        )
        for attend in (KERNELS[kernel], _attention.plain)
    )
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_padding_are_finite(kernel):
    """Queries that see nothing, and prompts without a token."""
    arrays, weights = draw("float32")
    nothing = jnp.zeros((B, 1, P), bool)

    def loss(queries, prompt, own):
        after = KERNELS[kernel](queries, [Seen(prompt, nothing, False), Seen(own, PADDED_RIGHT[..., ::-1], True)])
        alone = KERNELS[kernel](queries, [Seen(own, jnp.zeros((B, G, S), bool), True)])
        return jnp.sum((after + alone) * weights)

    found = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("is_rematerialised", [False, True], ids=["layers", "scan and checkpoint"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_decoder_computes_with_it(kernel, is_rematerialised, monkeypatch):
    monkeypatch.setitem(_attention.ATTENTIONS, kernel, lambda *args, num_devices: KERNELS[kernel](*args))
    model = cases.decoder("qwen3")
    expected = cases.scores_and_gradient(model, attention="plain", is_rematerialised=False)
    found = cases.scores_and_gradient(model, attention=kernel, is_rematerialised=is_rematerialised)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_decoder_of_scanned_layers_computes_with_it(kernel, monkeypatch):
    monkeypatch.setitem(_attention.ATTENTIONS, kernel, lambda *args, num_devices: KERNELS[kernel](*args))
    monkeypatch.setattr(_decoder, "_MIN_SCANNED_LAYERS", 2)
    model = cases.decoder("qwen2")
    expected = cases.scores_and_gradient(model, attention="plain", is_rematerialised=False)
    assert_close(cases.scores_and_gradient(model, attention=kernel, is_rematerialised=False), expected, 1e-5)


def lowered(attend, platform, dtype="bfloat16"):
    """Returns the program of a value and a gradient, as text, for a platform that need not be here."""
    arrays, weights = draw(dtype)

    def loss(queries, prompt, own):
        seen, _ = STRETCHES["prompt and own"](prompt, own)
        return jnp.sum(attend(queries, seen).astype(jnp.float32) * weights)

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return program.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def test_cudnn_kernels_are_called(monkeypatch):
    """Lowered without a GPU; only the version of cuDNN is made up."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    text = lowered(functools.partial(_fused_attention.attend_by_lengths, implementation="cudnn"), "cuda")
    assert sorted(set(re.findall(r"__cudnn\$\w+", text))) == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert "PADDING_CAUSAL" in text


@pytest.mark.parametrize("is_rematerialised", [False, True], ids=["layers", "scan and checkpoint"])
@pytest.mark.parametrize(("kernel", "backend", "platform"), [("cudnn", "gpu", "cuda"), ("splash", "tpu", "tpu")])
def test_the_gradient_of_a_decoder_in_bfloat16_is_lowered(kernel, backend, platform, is_rematerialised, monkeypatch):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    graphdef, params = nnx.split(cases.decoder("qwen3"))

    def loss(params):
        model = nnx.merge(graphdef, models.for_computing(params, "bfloat16"))
        options = {"attention": kernel, "is_rematerialised": is_rematerialised}
        return jnp.sum(
            models.completion_log_probs(model, cases.PROMPTS, cases.COMPLETIONS, pad_id=cases.PAD, **options)[0]
        )

    text = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=(platform,)).as_text()
    assert ("__cudnn$fmhaSoftmaxBackward" if kernel == "cudnn" else "splash_mha_dkv") in text


def test_splash_kernels_are_called(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    text = lowered(_fused_attention.splash, "tpu")
    assert text.count("tpu_custom_call") >= 3
    assert {"fwd", "dq", "dkv"} <= set(re.findall(r"splash_mha_(\w+?)_", text))


def test_what_cannot_be_computed_is_refused():
    (queries, _, own), _ = draw("bfloat16")
    seen = [Seen(own, None, True)]
    for kernel, device in (("cudnn", "an NVIDIA GPU"), ("splash", "a TPU")):
        with pytest.raises(
            ValueError, match=f"attention: expected .* backend 'cpu', got '{kernel}', which needs {device}"
        ):
            _attention.ATTENTIONS[kernel](queries, seen)
        with pytest.raises(ValueError, match=f"rows are split over 2 devices, got '{kernel}'; use 'blockwise'"):
            _attention.ATTENTIONS[kernel](queries, seen, num_devices=2)
    with pytest.raises(ValueError, match="in float32, got 'cudnn', which computes in float16 or bfloat16; compute in"):
        _attention.ATTENTIONS["cudnn"](queries.astype(jnp.float32), seen)
    with pytest.raises(ValueError, match="seen: expected at most one causal segment, got 2"):
        KERNELS["cudnn"](queries, [*seen, *seen])
