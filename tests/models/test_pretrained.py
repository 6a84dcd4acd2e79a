"""Folders of published models: what transformers computes with them, round trips, memory, and what is refused."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from dps_jax import models
from dps_jax.models import _hub_config, _pretrained, _saving, _tensor_files, _weights
from tests.models import cases, golden

ROOT = pathlib.Path(__file__).parents[2]
PLAIN = "qwen3-default-untied"


@pytest.fixture(scope="module")
def expected():
    """What `make_golden.py` measured, by case."""
    with np.load(golden.PATH) as found:
        assert list(found["names"]) == list(golden.CASES)
        rows = zip(found["seeds"], found["logits"], found["greedy"], strict=True)
        return dict(zip(golden.CASES, rows, strict=True))


def write(folder, case=PLAIN, seed=0, fields=(), without=(), **more):
    """Writes a case with other fields in config.json, or without some."""
    config = {**golden.CASES[case], **dict(fields)}
    golden.write(folder, config, seed, **more)
    left = {name: value for name, value in config.items() if name not in without}
    (folder / "config.json").write_text(json.dumps(left))
    return folder


def model_of(case=PLAIN, seed=0):
    """Returns a case as a decoder."""
    config = golden.CASES[case]
    return _weights.from_hugging_face(_hub_config.from_hugging_face_config(config), golden.tensors(config, seed))


def params(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))


def assert_equal(model, other):
    assert model.config == other.config
    jax.tree.map(np.testing.assert_array_equal, params(model), params(other))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("case", golden.CASES)
def test_logits_and_greedy_tokens_equal_those_of_transformers(case, expected, tmp_path):
    seed, logits, greedy = expected[case]
    golden.write(tmp_path, golden.CASES[case], int(seed))
    model = models.load_pretrained(tmp_path)
    prompts, width = golden.padded(), golden.padded().shape[1]
    rows = np.concatenate([prompts, greedy], axis=1)
    is_token = np.concatenate([prompts != golden.PAD, np.ones(greedy.shape, bool)], axis=1)
    # One more row, padded on the right.
    behind = (0, rows.shape[1] - len(golden.ROW))
    rows = np.concatenate([rows, np.pad(golden.ROW, behind)[None]])
    is_token = np.concatenate([is_token, np.pad(np.ones(len(golden.ROW), bool), behind)[None]])
    found = np.asarray(model(jnp.asarray(rows, jnp.int32), jnp.asarray(is_token)))
    assert np.std(logits) > 1
    np.testing.assert_allclose(found[-1, golden.POSITIONS], logits, atol=1e-4, rtol=0)
    # Every token is the likeliest after those before it.
    np.testing.assert_array_equal(np.argmax(found[:-1, width - 1 : -1], axis=-1), greedy)


@pytest.mark.parametrize("case", ["qwen2-yarn-untied", "qwen3-linear-tied", "llama-llama3-untied"])
def test_cached_greedy_sampling_equals_that_of_transformers(case, expected, tmp_path):
    seed, _, greedy = expected[case]
    golden.write(tmp_path, golden.CASES[case], int(seed))
    graph, state = nnx.split(models.load_pretrained(tmp_path))
    options = {"group_size": 1, "completion_length": golden.NUM_GREEDY, "end_ids": (), "pad_id": golden.PAD}
    run = lambda state, prompts: models.sample(
        nnx.merge(graph, state), prompts, jax.random.key(0), temperature=1e-6, **options
    )
    found = jax.jit(run)(state, jnp.asarray(golden.padded()))
    np.testing.assert_array_equal(found.tokens[:, 0], greedy)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 9_000])
@pytest.mark.parametrize("case", ["qwen2-yarn-tied", "qwen3-linear-untied", "llama-llama3-tied", "llama-yarn-untied"])
def test_what_is_saved_is_loaded(case, max_shard_bytes, tmp_path):
    golden.write(tmp_path / "hub", golden.CASES[case], 0)
    model = models.load_pretrained(tmp_path / "hub")
    models.save_pretrained(model, tmp_path / "own", max_shard_bytes=max_shard_bytes)
    assert_equal(models.load_pretrained(tmp_path / "own"), model)
    found = {}
    for path in (tmp_path / "own").glob("*.safetensors"):
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= max_shard_bytes
        found |= tensors
    theirs = golden.tensors(golden.CASES[case], 0)
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert ("model.safetensors.index.json" in names(tmp_path / "own")) == (max_shard_bytes == 9_000)
    _weights.save(model, tmp_path / "policy.safetensors")
    assert_equal(_weights.load(tmp_path / "policy.safetensors")[0], model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes(dtype, tmp_path):
    model = models.load_pretrained(write(tmp_path / "hub"), dtype=dtype)
    leaves = jax.tree.leaves(nnx.state(model))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}
    whole = models.load_pretrained(tmp_path / "hub")
    assert whole.embedding.embedding[...].dtype == jnp.float32
    np.testing.assert_array_equal(
        model.embedding.embedding[...], np.asarray(whole.embedding.embedding[...]).astype(jnp.dtype(dtype))
    )
    # As they are, and cast on the way to the disk.
    models.save_pretrained(model, tmp_path / "own")
    models.save_pretrained(whole, tmp_path / "cast", dtype=jnp.dtype(dtype))
    for folder in ("own", "cast"):
        fields = json.loads((tmp_path / folder / "config.json").read_text())
        assert fields["dtype"] == fields["torch_dtype"] == dtype
        again = models.load_pretrained(tmp_path / folder, dtype=None)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(again))} == {jnp.dtype(dtype)}
        wide = models.load_pretrained(tmp_path / folder)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(wide))} == {jnp.dtype("float32")}
        assert_equal(again, model)


@pytest.mark.parametrize(("fields", "dtype"), [({}, "float32"), ({"torch_dtype": "bfloat16"}, "bfloat16")])
def test_files_of_several_types_are_of_that_of_the_config(fields, dtype, tmp_path):
    write(tmp_path, fields=fields, without=() if fields else ("torch_dtype",))
    tensors = load_file(tmp_path / "model.safetensors")
    halves = {name: tensor.astype(jnp.bfloat16) if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    save_file(halves, tmp_path / "model.safetensors")
    model = models.load_pretrained(tmp_path, dtype=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(dtype)}


def test_a_model_of_several_types_is_saved_without_a_change(tmp_path):
    graph, state = nnx.split(models.load_pretrained(write(tmp_path / "hub")))
    model = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim == 1 else leaf, state))
    models.save_pretrained(model, tmp_path)
    assert _tensor_files.read_header(tmp_path / "model.safetensors")[0]["model.norm.weight"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, params(models.load_pretrained(tmp_path)), params(model))


# The same model in other words.
SPELLINGS = {
    "old names": ("qwen3-yarn-untied", {}, ()),
    "type": (
        "qwen3-yarn-untied",
        {"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 8.0, "beta_slow": 2}},
        (),
    ),
    "no heads": ("qwen3-yarn-untied", {"num_key_value_heads": 2}, ("attention_bias", "layer_types", "hidden_act")),
    "both": ("llama-llama3-untied", {}, ()),
    "null": ("llama-default-untied", {"rope_parameters": None, "quantization_config": None}, ("num_key_value_heads",)),
    "default": (
        "llama-default-untied",
        {"rope_scaling": {"rope_type": "default", "rope_theta": 500.0}},
        ("rope_theta",),
    ),
    "whole": ("llama-default-untied", {"partial_rotary_factor": 1.0, "pretraining_tp": 1}, ("head_dim",)),
    "bias": ("qwen2-default-untied", {"attention_bias": True}, ("sliding_window",)),
    "last": ("qwen2-default-untied", {"use_sliding_window": True, "max_window_layers": 2}, ()),
    "unknown": ("qwen2-default-untied", {"auto_map": {}, "bos_token_id": 3, "transformers_version": "4.40"}, ()),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling):
    case, changes, without = SPELLINGS[spelling]
    fields = {**golden.CASES[case], **changes}
    if spelling == "type":
        fields["rope_scaling"] |= {"truncate": False, "original_max_position_embeddings": 256}
    if spelling == "both":
        fields["rope_parameters"] = {**fields["rope_scaling"], "rope_theta": fields["rope_theta"]}
    fields = {name: value for name, value in fields.items() if name not in without}
    found = _hub_config.from_hugging_face_config(fields)
    assert found == _hub_config.from_hugging_face_config(golden.CASES[case])
    assert hash(found) == hash(models.DecoderConfig(**json.loads(json.dumps(vars(found), default=vars))))


def test_lengths_of_yarn_come_from_where_transformers_takes_them():
    fields = golden.CASES["qwen2-yarn-untied"]
    scaling = {"rope_type": "yarn", "factor": 2.0}
    read = lambda **more: _hub_config.from_hugging_face_config({**fields, "rope_scaling": scaling, **more}).rope
    assert read().original_length == 1024
    assert read(original_max_position_embeddings=128).original_length == 128
    scaling |= {"factor": None, "original_max_position_embeddings": 512}
    assert read().factor == 2
    assert read().original_length == 512


def test_an_output_that_is_there_although_tied_is_compared(tmp_path):
    case = "qwen3-default-tied"
    embedding = golden.tensors(golden.CASES[case], 0)["model.embed_tokens.weight"]
    model = models.load_pretrained(write(tmp_path / "equal", case, **{"lm_head.weight": embedding.copy()}))
    np.testing.assert_array_equal(model.embedding.embedding[...], embedding)
    assert not hasattr(model, "output")
    for output in (embedding + 1, embedding.astype(np.float16)):
        write(tmp_path / "other", case, **{"lm_head.weight": output})
        with pytest.raises(ValueError, match=r"model\.safetensors: tensors\['lm_head\.weight'\].*tie_word_embeddings"):
            models.load_pretrained(tmp_path / "other")


def test_tensors_that_follow_from_the_config_are_left_out(tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert_equal(
        models.load_pretrained(write(tmp_path / "old", **{name: np.ones(8, np.float32)})),
        models.load_pretrained(write(tmp_path / "plain")),
    )


# Changes of config.json that are refused, and what the message has after the name of the file.
REFUSED = {
    "model_type: expected one of 'qwen2', 'qwen3', 'llama', got 'gemma3'": {"model_type": "gemma3"},
    "model_type: expected one of .* got None": {"model_type": None},
    "hidden_act: expected 'silu', got 'gelu'": {"hidden_act": "gelu"},
    "attention_bias: expected false in a model of qwen3, got true": {"attention_bias": True},
    "attention_bias: expected true or false, got 1": {"attention_bias": 1},
    "mlp_bias: expected false in a model of llama, got true": {"model_type": "llama", "mlp_bias": True},
    r"quantization_config: expected none, got \{'bits': 4\}": {"quantization_config": {"bits": 4}},
    "partial_rotary_factor: expected 1, got 0.5": {"partial_rotary_factor": 0.5},
    "sliding_window: .* got 64": {
        "layer_types": None,
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 1,
    },
    "layer_types: expected 'full_attention' .* got 'sliding_attention'": {
        "layer_types": ["full_attention", "sliding_attention"]
    },
    "rope_scaling.rope_type: expected one of .*'llama3', got 'longrope'": {"rope_scaling": {"rope_type": "longrope"}},
    "rope_scaling.type: expected one of .* got 'dynamic'": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "rope_scaling.rope_type: expected the same as type": {
        "rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2.0}
    },
    r"rope_scaling: expected an object or null, got \[1\]": {"rope_scaling": [1]},
    r"rope_scaling\.factor: expected a finite number > 0, got None": {"rope_scaling": {"rope_type": "linear"}},
    r"rope_scaling\.factor: expected a finite number > 0, got 'a'": {"rope_scaling": {"type": "yarn", "factor": "a"}},
    r"rope_scaling\.high_freq_factor: expected .* got None": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    },
    "rope_scaling: high_factor: expected more than low_factor": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}
    },
    r"rope_scaling\.truncate: expected true or false, got 'no'": {
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "truncate": "no"}
    },
    r"rope_parameters\.partial_rotary_factor: expected 1, got 0\.25": {
        "rope_parameters": {"partial_rotary_factor": 0.25}
    },
    "rope_parameters: expected one for all layers": {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    r"rope_theta: expected the same as in rope_parameters, got 500\.0 beside 7\.0": {
        "rope_parameters": {"rope_theta": 7.0}
    },
    "rope_scaling: expected the same as rope_parameters": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "rope_theta: expected a finite number > 0, got -1": {"rope_theta": -1},
    "rms_norm_eps: expected a finite number > 0, got 'small'": {"rms_norm_eps": "small"},
    "hidden_size: expected an integer >= 1, got None": {"hidden_size": None},
    "hidden_size: expected a multiple of num_attention_heads = 5": {
        "head_dim": None,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    },
    "num_key_value_heads: expected a divisor of num_attention_heads = 4, got 3": {"num_key_value_heads": 3},
    r"num_hidden_layers: expected an integer >= 1, got 2\.0": {"num_hidden_layers": 2.0},
    "vocab_size: expected an integer >= 1, got '97'": {"vocab_size": "97"},
    "head_dim: expected an even number": {"head_dim": 7},
    "tie_word_embeddings: expected true or false, got 'yes'": {"tie_word_embeddings": "yes"},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder that is read, and is not changed."""
    folder = write(tmp_path_factory.mktemp("models") / "plain")
    models.load_pretrained(folder)
    return folder


def copy(plain, folder):
    folder.mkdir()
    for path in plain.iterdir():
        os.link(path, folder / path.name)
    return folder


@pytest.mark.parametrize("message", REFUSED)
def test_configs_of_other_models_are_refused(message, plain, tmp_path):
    folder = copy(plain, tmp_path / "model")
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**golden.CASES[PLAIN], **REFUSED[message]}))
    with pytest.raises(ValueError, match=rf"model/config\.json: {message}"):
        models.load_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the description of a model, got"),
        ("[]", "expected the description of a model, got list"),
        ("[" * 100_000, "expected the description of a model, got lists or objects nested too deeply"),
        ('{"vocab_size": 9, "vocab_size": 8}', "expected .* got the key 'vocab_size' twice"),
        ('{"rope_theta": NaN}', "expected .* got NaN"),
        (None, r"expected the description of a model, got none \(No such file"),
    ],
)
def test_damaged_configs_are_refused(text, message, plain, tmp_path):
    folder = copy(plain, tmp_path / "model")
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json: {message}.*; download the model again"):
        models.load_pretrained(folder)


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"folder: expected a folder with config\.json .* got 'Qwen/Qwen3-0\.6B'.*download"
    ):
        models.load_pretrained("Qwen/Qwen3-0.6B")
    (tmp_path / "config.json").write_text(json.dumps(golden.CASES[PLAIN]))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors: expected this file or .*index\.json, got neither"):
        models.load_pretrained(tmp_path)


def test_arguments_are_checked(plain):
    for dtype in ("int8", "float64", "half precision", 3):
        with pytest.raises(ValueError, match=rf"dtype: expected one of 'bfloat16', .* got {dtype!r}"):
            models.load_pretrained(plain, dtype=dtype)
    with pytest.raises(ValueError, match=r"mesh: expected a jax\.sharding\.Mesh or None, got tuple"):
        models.load_pretrained(plain, mesh=(8,))


NAME = "model.layers.1.mlp.up_proj.weight"


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    file = r"model\.safetensors: "
    with pytest.raises(ValueError, match=file + r"tensors: expected .* missing \['lm_head.weight'\].*config\.json"):
        _load_with(tmp_path / "a", "qwen3-default-tied", {"tie_word_embeddings": False})
    with pytest.raises(ValueError, match=file + r"tensors\['.*'\]: expected shape \[32, 60\], got \[32, 48\]"):
        _load_with(tmp_path / "b", PLAIN, {"intermediate_size": 60})
    with pytest.raises(ValueError, match=file + r"tensors: expected .* unexpected \['more'\]"):
        models.load_pretrained(write(tmp_path / "c", more=np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match=file + r"tensors\['more'\]: expected one of F64.* got I8; quantised"):
        models.load_pretrained(write(tmp_path / "d", more=np.zeros(3, np.int8)))
    with pytest.raises(ValueError, match=file + r"tensors: expected 1000000000 layers"):
        _load_with(tmp_path / "e", PLAIN, {"num_hidden_layers": 10**9, "layer_types": None})


def _load_with(folder, case, changes):
    """Loads a folder whose config.json was changed after the weights were written."""
    golden.write(folder, golden.CASES[case], 0)
    (folder / "config.json").write_text(json.dumps({**golden.CASES[case], **changes}))
    return models.load_pretrained(folder)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    weight = golden.tensors(golden.CASES[PLAIN], 0)[NAME]
    weight[41, 3] = value
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: tensors\['{NAME}'\]: .* got {value} at \[41, 3\] and 0 more"
    ):
        models.load_pretrained(write(tmp_path, **{NAME: weight}))
    weight[41, 3] = 1e5
    write(tmp_path, **{NAME: weight})
    with pytest.raises(ValueError, match=rf"tensors\['{NAME}'\]: expected numbers that fit float16, got 100000"):
        models.load_pretrained(tmp_path, dtype="float16")
    assert models.load_pretrained(tmp_path).blocks[1].gate_up.kernel[...].max() == 1e5


def test_rows_are_counted_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(_tensor_files, "_BLOCK_BYTES", 500)
    weight = golden.tensors(golden.CASES[PLAIN], 0)[NAME]
    weight[41, 3] = np.nan
    with pytest.raises(ValueError, match=r"got nan at \[41, 3\]"):
        models.load_pretrained(write(tmp_path / "bad", **{NAME: weight}))
    found = models.load_pretrained(write(tmp_path / "good"))
    monkeypatch.undo()
    assert_equal(found, models.load_pretrained(tmp_path / "good"))


@pytest.fixture(scope="module")
def sharded(plain):
    folder = plain.parent / "sharded"
    models.save_pretrained(models.load_pretrained(plain), folder, max_shard_bytes=20_000)
    assert len(names(folder)) >= 5
    return folder


def _cut(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-100])


def _map(change):
    """Returns a damage of the index that changes its entries."""

    def damage(folder):
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        path.unlink()
        index["weight_map"] = change(index["weight_map"])
        path.write_text(json.dumps(index))

    return damage


SHARD, OUTSIDE = "model-00002-of-", "weight_map: expected names of files in the folder, got"
DAMAGES = {
    f"{SHARD}.*: expected a file that model.safetensors.index.json lists, got none": lambda folder: next(
        folder.glob(f"{SHARD}*")
    ).unlink(),
    f"{SHARD}.*: expected a whole .safetensors file, got an error": lambda folder: _cut(next(folder.glob(f"{SHARD}*"))),
    f"index.json: {OUTSIDE} '../other.safetensors'": _map(lambda places: places | {NAME: "../other.safetensors"}),
    f"index.json: {OUTSIDE} '/etc/passwd'": _map(lambda places: places | {NAME: "/etc/passwd"}),
    f"index.json: {OUTSIDE} '..'": _map(lambda places: places | {NAME: ".."}),
    f"index.json: {OUTSIDE} 'sub/model.safetensors'": _map(lambda places: places | {NAME: "sub/model.safetensors"}),
    "index.json: weight_map: expected the name of a file per tensor, got None": _map(lambda places: None),
    "index.json: weight_map: expected the name of a file per tensor, got {'x': 3}": _map(lambda places: {"x": 3}),
    "index.json: tensors: expected .* missing": _map(
        lambda places: {name: place for name, place in places.items() if name != NAME}
    ),
    "model-00001-of-.*: tensors: expected 'more' as in model.safetensors.index.json, got none": _map(
        lambda places: places | {"more": places["model.norm.weight"]}
    ),
    "index.json: expected an object with a weight_map, got": lambda folder: _cut(
        folder / "model.safetensors.index.json"
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_shards_are_refused(message, sharded, tmp_path):
    folder = copy(sharded, tmp_path / "model")
    assert models.load_pretrained(folder).config.num_layers == 2
    DAMAGES[message](folder)
    with pytest.raises(
        ValueError, match=f"{re.sub('[.](?![*])', '[.]', message)}.*download the model again".replace("{", r"\{")
    ):
        models.load_pretrained(folder)


def test_saving_replaces_what_it_wrote_and_nothing_else(tmp_path):
    small, large = model_of(seed=0), model_of("llama-yarn-tied", seed=1)
    for name in ("tokenizer.json", "model-card.md", "training.safetensors"):
        (tmp_path / name).write_text(name)
    others = names(tmp_path)
    models.save_pretrained(large, tmp_path, max_shard_bytes=10_000)
    num_shards = len(names(tmp_path)) - len(others) - 2
    assert num_shards > 2
    models.save_pretrained(small, tmp_path)
    assert names(tmp_path) == sorted([*others, "config.json", "model.safetensors"])
    assert_equal(models.load_pretrained(tmp_path), small)
    models.save_pretrained(large, tmp_path, max_shard_bytes=10_000)
    assert "model.safetensors" not in names(tmp_path)
    assert_equal(models.load_pretrained(tmp_path), large)
    assert all((tmp_path / name).read_text() == name for name in others)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
)
@pytest.mark.parametrize("content", ["", "{}", "theirs"])
def test_models_of_other_programs_are_not_replaced(name, content, plain, tmp_path):
    content = (plain / name).read_bytes() if content == "theirs" and (plain / name).exists() else content.encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: expected no file of this name, .*choose another folder"):
        models.save_pretrained(model_of(), tmp_path)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == content


def test_a_disk_that_is_full_leaves_the_old_model(tmp_path, monkeypatch):
    models.save_pretrained(model_of(seed=0), tmp_path, max_shard_bytes=10_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_rows, calls = _saving._write_rows, []

    def full(file, tensor, value):
        calls.append(tensor)
        if len(calls) == 9:
            raise OSError(28, "No space left on device")
        write_rows(file, tensor, value)

    monkeypatch.setattr(_saving, "_write_rows", full)
    with pytest.raises(OSError, match=r"free space there.*model-0000[2-9]-of-\d+\.safetensors"):
        models.save_pretrained(model_of(seed=1), tmp_path, max_shard_bytes=10_000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_kill_between_names_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    models.save_pretrained(model_of(seed=0), tmp_path, max_shard_bytes=10_000)
    replace, calls = os.replace, []

    def killed(source, target):
        calls.append(target)
        if len(calls) >= 2:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            models.save_pretrained(model_of(seed=1), tmp_path, max_shard_bytes=10_000)
    with pytest.raises(ValueError, match=r"config\.json: expected the description of a model, got none"):
        models.load_pretrained(tmp_path)
    models.save_pretrained(model_of(seed=1), tmp_path)
    assert_equal(models.load_pretrained(tmp_path), model_of(seed=1))


def test_models_that_no_family_has_are_not_saved(tmp_path):
    model = model_of()
    with pytest.raises(ValueError, match="fields: expected none that the model determines, got hidden_size"):
        models.save_pretrained(model, tmp_path, fields={"hidden_size": 3, "eos_token_id": 1})
    with pytest.raises(ValueError, match=r"max_shard_bytes: expected an integer >= 1 .*, got 0"):
        models.save_pretrained(model, tmp_path, max_shard_bytes=0)
    with pytest.raises(ValueError, match="dtype: expected one of"):
        models.save_pretrained(model, tmp_path, dtype="int4")
    abstract = nnx.eval_shape(lambda: models.Decoder(cases.config("qwen3", has_qkv_bias=True), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"config: expected .* got both"):
        models.save_pretrained(abstract, tmp_path)
    model.norm.scale[...] = model.norm.scale[...].at[2].set(jnp.nan)
    with pytest.raises(
        ValueError, match=r"tensors\['model\.norm\.weight'\]: expected finite numbers, got nan at \[2\]"
    ):
        models.save_pretrained(model, tmp_path)
    assert names(tmp_path) == []
    models.save_pretrained(model_of(), tmp_path, fields={"eos_token_id": 1, "max_position_embeddings": 77})
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["eos_token_id"], fields["max_position_embeddings"]) == (1, 77)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "ntk"}, "kind: expected one of 'linear', 'yarn', 'llama3', got 'ntk'"),
        ({"factor": 0.0}, r"factor: expected a finite number > 0, got 0\.0"),
        ({"original_length": None}, "original_length: expected an integer >= 1, got None"),
        ({"attention_factor": -1.0}, "attention_factor: expected a finite number > 0"),
        ({"is_truncated": 1}, "is_truncated: expected True or False, got 1"),
    ],
)
def test_bad_scalings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        models.RopeScaling(**{"kind": "yarn", "factor": 4.0, "original_length": 100, **fields})


def test_scalings_are_part_of_a_config():
    scaling = models.RopeScaling("yarn", 4.0, 100)
    assert cases.config(rope=vars(scaling)) == cases.config(rope=scaling)
    with pytest.raises(ValueError, match="rope: expected a RopeScaling or None, got 'yarn'"):
        cases.config(rope="yarn")
    with pytest.raises(ValueError, match=r"rope_theta: expected a number > 1 .* got 1\.0"):
        cases.config(rope=scaling, rope_theta=1.0)


def test_parameters_are_split_along_their_longest_axis_that_fits():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1] * 8).reshape(4, 2), ("data", "model"))
    spec = jax.sharding.PartitionSpec
    assert _pretrained.spec_of((24, 16), mesh) == spec(("data", "model"))
    assert _pretrained.spec_of((24, 25), mesh) == spec(("data", "model"))
    assert _pretrained.spec_of((16, 24), mesh) == spec(None, ("data", "model"))
    assert _pretrained.spec_of((25, 7), mesh) == spec()
    assert _pretrained.spec_of((7,), mesh) == spec()


def run(program, *arguments, **environment):
    """Runs a program and returns the JSON it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


MESH = """
import json, sys
import jax, numpy as np
from flax import nnx
from dps_jax import models
from tests.models import golden
kinds = (getattr(jax.sharding.AxisType, sys.argv[3]),) * 2
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
model = models.load_pretrained(sys.argv[1], mesh=mesh)
leaves = jax.tree.leaves(nnx.state(model))
held = lambda leaf: sum(shard.data.nbytes for shard in leaf.addressable_shards if shard.device == jax.devices()[3])
models.save_pretrained(model, sys.argv[2])
print(json.dumps({
    "shares": sorted({held(leaf) / leaf.nbytes for leaf in leaves}),
    "num_devices": sorted({len(leaf.sharding.device_set) for leaf in leaves}),
    "embedding": list(model.embedding.embedding[...].sharding.spec),
    "logits": np.asarray(nnx.jit(lambda model, rows: model(rows)[0])(model, golden.ROW[None])).tolist(),
}))
"""


@pytest.mark.parametrize("kind", [pytest.param("Auto", marks=pytest.mark.slow), "Explicit"])
def test_weights_are_placed_on_a_mesh(kind, expected, tmp_path):
    case = "qwen2-llama3-untied"
    seed, logits, _ = expected[case]
    write(tmp_path / "model", case, int(seed))
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"}
    found = run(MESH, tmp_path / "model", tmp_path / "saved", kind, **flags)
    assert found["num_devices"] == [8]
    assert found["shares"] == [1 / 8]
    # 97 tokens do not divide: the width does.
    assert found["embedding"] == [None, ["data", "model"]]
    np.testing.assert_allclose(np.array(found["logits"])[golden.POSITIONS], logits, atol=1e-4)
    assert_equal(models.load_pretrained(tmp_path / "saved"), models.load_pretrained(tmp_path / "model"))


# The high-water mark of this program: that of getrusage begins with that of the program which started it.
MEMORY = """
import json, re, sys, threading, time
import jax
from dps_jax import models
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
on_device = lambda: sum(array.nbytes for array in jax.live_arrays())
models.load_pretrained(sys.argv[1])
before, most, is_done = peak(), [on_device()], threading.Event()
def watch():
    while not is_done.wait(0.001):
        most.append(on_device())
watcher = threading.Thread(target=watch)
watcher.start()
model = models.load_pretrained(sys.argv[2])
is_done.set()
watcher.join()
loaded = peak()
most.append(on_device())
models.save_pretrained(model, sys.argv[3])
print(json.dumps({"loading": loaded - before, "on_device": max(most), "times": len(most), "saving": peak() - loaded}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has /proc/self/status")
def test_there_is_no_second_copy_of_the_weights(plain, tmp_path):
    config = golden.CASES[PLAIN] | {
        "vocab_size": 16_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 5,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "layer_types": None,
    }
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = _weights.shapes_of(_hub_config.from_hugging_face_config(config))
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(_tensor_files.header({name: (np.dtype(np.float32), shape) for name, shape in shapes.items()}, {}))
        for shape in shapes.values():
            file.write(np.ones(shape, np.float32).tobytes())
    size = path.stat().st_size
    assert 180e6 < size < 250e6
    found = run(MEMORY, plain, folder, tmp_path / "saved")
    # On a CPU the weights themselves are in the host's memory.
    assert 0.9 * size < found["loading"] < 1.2 * size
    # JAX's arrays, wherever they are: looked at again and again while the weights were loaded.
    assert found["times"] > 10
    assert 0.99 * size < found["on_device"] < 1.05 * size
    assert found["saving"] < 0.1 * size
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size >= size


@pytest.mark.transformers
@pytest.mark.parametrize("case", golden.CASES)
def test_transformers_reads_what_is_saved_and_writes_what_is_loaded(case, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    golden.write(tmp_path / "hub", golden.CASES[case], 3)
    read = lambda folder: transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()

    def logits(model):
        with torch.no_grad():
            return model(torch.from_numpy(golden.ROW)[None]).logits[0].numpy()

    theirs = read(tmp_path / "hub")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    model = models.load_pretrained(tmp_path / "theirs")
    found = model(jnp.asarray(golden.ROW)[None])[0]
    np.testing.assert_allclose(found, logits(theirs), atol=1e-4, rtol=0)
    models.save_pretrained(model, tmp_path / "ours", max_shard_bytes=20_000)
    again = read(tmp_path / "ours")
    assert again.dtype == torch.float32
    # By transformers the numbers are the same, so that only the rotary frequencies may differ, in the last bit.
    np.testing.assert_allclose(logits(again), logits(theirs), atol=1e-5, rtol=0)
