"""Low-rank additions to a decoder: unchanged at the start, gradients by the chain rule in NumPy, files as PEFT's."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from dps_jax import models
from dps_jax.models import _layout, _lora
from tests.models import cases, golden

TOKENS = np.random.default_rng(5).integers(2, cases.SMALL["vocab_size"], (2, 9))
# Layers are looped over in a model of nine.
KINDS = [("qwen2", {}), ("qwen3", {}), ("untied", {"num_layers": 9})]


def parts(kind="qwen3", rank=3, *, is_moved=True, targets=tuple(_lora.TARGETS), **fields):
    """Returns the graph and the parameters of a base, and adapters; A and B at random, or B zero as at the start."""
    model = cases.decoder(kind, **fields)
    adapters = _lora.init(model.config, jax.random.key(1), _lora.lora(rank, targets=targets))
    if is_moved:
        leaves, structure = jax.tree.flatten(adapters)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        moved = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
        adapters = jax.tree.unflatten(structure, moved)
    return *nnx.split(model), adapters


def log_probs(model):
    tokens = jnp.asarray(TOKENS)
    return models.completion_log_probs(model, tokens[:, :4], tokens[:, None, 4:], pad_id=cases.PAD)[0]


def of_adapted(graphdef, scale, adapters, params):
    return log_probs(_lora.adapted(graphdef, params, adapters, scale))


def of_merged(graphdef, scale, adapters, params):
    config = nnx.merge(graphdef, params).config
    return log_probs(nnx.merge(graphdef, _lora.merged(config, params, adapters, scale)))


def total(compute, graphdef, scale, adapters, params):
    """Returns a weighted sum: a plain one would be nearly symmetric."""
    found = compute(graphdef, scale, adapters, params)
    return jnp.sum(found * (1 + jnp.arange(found.size, dtype=jnp.float32).reshape(found.shape)))


@pytest.mark.parametrize(("kind", "fields"), KINDS)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_policy_is_unchanged_at_the_start(kind, fields, transform):
    graphdef, params, adapters = parts(kind, is_moved=False, **fields)
    expected = transform(lambda params: log_probs(nnx.merge(graphdef, params)))(params)
    for compute in (of_adapted, of_merged):
        found = transform(functools.partial(compute, graphdef, 4.0))(adapters, params)
        np.testing.assert_array_equal(found, expected)
    assert all(np.abs(adapter.a).max() <= adapter.a.shape[0] ** -0.5 for adapter in adapters.values())
    assert len({float(adapter.a[0, 0]) for adapter in adapters.values()}) == len(adapters)


@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_both_ways_compute_the_same(kind, fields):
    graphdef, params, adapters = parts(kind, **fields)
    found, expected = (
        jax.jit(functools.partial(way, graphdef, 0.7))(adapters, params) for way in (of_adapted, of_merged)
    )
    start = jax.jit(functools.partial(of_merged, graphdef, 0.0))(adapters, params)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4)
    assert np.abs(expected - start).max() > 0.1


@pytest.mark.parametrize("targets", [("q", "up"), ("v", "down"), tuple(_lora.TARGETS)])
def test_merged_matrices_are_sums_and_nothing_else_changes(targets):
    graphdef, params, adapters = parts("qwen2", targets=targets)
    model = nnx.merge(graphdef, params)
    merged = nnx.merge(graphdef, _lora.merged(model.config, params, adapters, 0.7))
    num_found = 0
    for parameter in _layout.parameters(model.config):
        value, found = (np.asarray(_layout.get(of, parameter.path)[...]) for of in (model, merged))
        for part in parameter.parts:
            before, after = parameter.view(value, part), parameter.view(found, part)
            name = part.name.removesuffix(".weight")
            if name in adapters:
                a, b = (np.asarray(leaf, np.float64) for leaf in adapters[name])
                np.testing.assert_allclose(after, before + 0.7 * (a @ b).T, atol=1e-6)
                num_found += 1
            else:
                np.testing.assert_array_equal(after, before)
    assert num_found == len(adapters) == 2 * len(targets)


@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_gradients_are_those_of_the_matrices_by_the_chain_rule(kind, fields):
    scale = 0.7
    graphdef, params, adapters = parts(kind, **fields)
    config = nnx.merge(graphdef, params).config
    merged = _lora.merged(config, params, adapters, scale)
    of_params = lambda params: total(of_merged, graphdef, 0.0, adapters, params)
    full = nnx.merge(graphdef, jax.jit(jax.grad(of_params))(merged))
    found = jax.jit(jax.grad(functools.partial(total, of_adapted, graphdef, scale)))(adapters, params)
    for parameter in _layout.parameters(config):
        value = np.asarray(_layout.get(full, parameter.path)[...], np.float64)
        for part in parameter.parts:
            name = part.name.removesuffix(".weight")
            if name not in adapters:
                continue
            grad_of_matrix = value[:, part.start : part.stop]
            a, b = (np.asarray(leaf, np.float64) for leaf in adapters[name])
            for leaf, expected in zip(found[name], (grad_of_matrix @ b.T, a.T @ grad_of_matrix), strict=True):
                expected = scale * expected
                np.testing.assert_allclose(leaf, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


def test_bfloat16_computes_in_it_and_merges_in_float32():
    graphdef, params, adapters = parts()
    half, half_adapters = (models.for_computing(tree, "bfloat16") for tree in (params, adapters))
    model = _lora.adapted(graphdef, half, half_adapters, 0.7)
    assert model.extend(jnp.asarray(TOKENS)[:, None], None)[0].dtype == jnp.bfloat16
    merged = _lora.merged(model.config, half, adapters, 0.7)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("float32")}


BAD = [
    ({"rank": 0}, r"rank: expected an integer >= 1, got 0"),
    ({"rank": 2.5}, r"rank: expected an integer"),
    ({"alpha": 0}, r"alpha: expected a finite number > 0, got 0; 16 is the default"),
    ({"alpha": float("inf")}, r"alpha: expected a finite number > 0, got inf"),
    ({"targets": ("q", "qkv")}, r"targets: expected one of .*gate.*, got 'qkv'"),
    (
        {"targets": ()},
        r"targets: expected a tuple of some of q, k, v, o, gate, up, down, got \(\); leave it out for all",
    ),
    ({"targets": "qkv"}, r"targets: expected a tuple of some of .*, got 'qkv'"),
    ({"targets": ("q", "v", "q")}, r"targets: expected each name once, got q v q; remove"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_bad_shapes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        _lora.lora(**{"rank": 4, **fields})


def test_a_rank_above_the_smaller_side_is_refused():
    config = cases.config("qwen2")
    _lora.init(config, jax.random.key(0), _lora.lora(8))
    message = r"rank: expected at most 8, the smaller side of model\.layers\.0\.self_attn\.k_proj \[24, 8\], got 9; use"
    with pytest.raises(ValueError, match=message):
        _lora.init(config, jax.random.key(0), _lora.lora(9))
    _lora.init(config, jax.random.key(0), _lora.lora(9, targets=("q", "down")))


def test_files_have_the_names_and_the_layout_of_peft(tmp_path):
    _, _, adapters = parts("qwen2", targets=("down", "k"))
    shape = _lora.lora(3, alpha=6, targets=("down", "k"))
    for _ in range(2):
        _lora.save_adapters(adapters, tmp_path / "adapter", shape, "base")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items() if ".layers.1." in name} == {
        "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight": (3, 24),
        "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight": (8, 3),
        "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight": (3, 40),
        "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight": (24, 3),
    }
    assert len(tensors) == 8
    name = "model.layers.1.mlp.down_proj"
    np.testing.assert_array_equal(tensors[f"base_model.model.{name}.lora_A.weight"], adapters[name].a.T)
    np.testing.assert_array_equal(tensors[f"base_model.model.{name}.lora_B.weight"], adapters[name].b.T)
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    expected = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "bias": "none"}
    expected |= {"fan_in_fan_out": False, "base_model_name_or_path": "base", "target_modules": ["k_proj", "down_proj"]}
    assert described.items() >= expected.items()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("moment", ["adapter_model.safetensors", "adapter_config.json"])
def test_adapters_that_cannot_be_written_leave_no_description_of_a_mixture(moment, tmp_path):
    _, _, adapters = parts()
    (tmp_path / moment).mkdir()
    with pytest.raises(OSError, match="adapter_"):
        _lora.save_adapters(adapters, tmp_path, _lora.lora(3), "base")
    assert not (tmp_path / "adapter_config.json").is_file()


# By PEFT 0.21 in transformers 5.24.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.transformers
@pytest.mark.parametrize("targets", [("q", "v"), tuple(_lora.TARGETS)])
@pytest.mark.parametrize("case", ["qwen2-default-tied", "qwen3-yarn-untied", "llama-llama3-untied"])
def test_peft_computes_the_same_from_the_files(case, targets, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    golden.write(tmp_path / "base", golden.CASES[case], 3)
    model = models.load_pretrained(tmp_path / "base")
    shape = _lora.lora(5, alpha=7.5, targets=targets)
    adapters = _lora.init(model.config, jax.random.key(0), shape)
    keys = dict(zip(adapters, jax.random.split(jax.random.key(1), len(adapters)), strict=True))
    adapters = {
        name: adapter._replace(b=0.2 * jax.random.normal(keys[name], adapter.b.shape))
        for name, adapter in adapters.items()
    }
    _lora.save_adapters(adapters, tmp_path / "adapter", shape, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    row = torch.from_numpy(golden.ROW)[None]
    with torch.no_grad():
        start = base.eval()(row).logits[0].numpy()
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(row).logits[0].numpy()
    graphdef, params = nnx.split(model)
    tokens = jnp.asarray(golden.ROW)[None]
    merged = nnx.merge(graphdef, _lora.merged(model.config, params, adapters, shape.scale))
    np.testing.assert_allclose(merged(tokens)[0], theirs, atol=1e-4, rtol=0)
    beside = _lora.adapted(graphdef, params, adapters, shape.scale)
    np.testing.assert_allclose(beside(tokens)[0], theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - start).max() > 0.1
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", attn_implementation="eager")
    with torch.no_grad():
        np.testing.assert_allclose(alone.eval()(row).logits[0].numpy(), theirs, atol=1e-5, rtol=0)
    # Merged weights make a round trip through files bit by bit.
    models.save_pretrained(merged, tmp_path / "merged")
    loaded = nnx.state(models.load_pretrained(tmp_path / "merged"))
    jax.tree.map(np.testing.assert_array_equal, loaded, nnx.state(merged))
