"""Weights on disk: round trips, the names and the arithmetic of transformers, damaged and foreign files."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dps_jax import models, tasks
from dps_jax.models import _weights
from tests.models import cases

DATA = Path(__file__).parents[2] / "experiments" / "data"


@pytest.mark.parametrize("kind", sorted(cases.KINDS))
def test_what_is_saved_is_loaded(kind, tmp_path):
    model, facts = cases.decoder(kind), {"task": "countdown", "vocabulary": ["a", "b"]}
    _weights.save(model, tmp_path / "new" / "model.safetensors", facts)
    loaded, found = _weights.load(tmp_path / "new" / "model.safetensors")
    assert loaded.config == model.config
    assert found == facts
    # Also across processes, whose hashes differ: the header is sorted.
    content = (tmp_path / "new" / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    rows = cases.prompts([4, 4], width=4)
    np.testing.assert_array_equal(loaded(rows), model(rows))


@pytest.mark.transformers
@pytest.mark.parametrize("kind", sorted(cases.KINDS))
def test_logits_equal_those_of_transformers(kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = cases.decoder(kind)
    fields = _weights.to_hugging_face_config(model.config)
    family = fields["model_type"].capitalize()
    theirs = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**fields)).eval()
    tensors = {name: torch.from_numpy(tensor.copy()) for name, tensor in _weights.to_hugging_face(model).items()}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    rows = np.array(cases.prompts([6, 6], width=6))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(rows).long()).logits.numpy()
    np.testing.assert_allclose(model(rows), expected, rtol=1e-4, atol=1e-4)


def test_a_file_says_what_it_is(tmp_path):
    path = tmp_path / "model.safetensors"
    _weights.save(cases.decoder(), path, {"command": "python experiments/pretrain.py"})
    tensors = load_file(path)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (16, 24)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())


def test_no_family_has_norms_and_biases():
    with pytest.raises(ValueError, match=r"config: expected has_qk_norm .* got both"):
        _weights.to_hugging_face_config(cases.config("qwen3", has_qkv_bias=True))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "folder"])
def test_damaged_files_are_refused(damage, tmp_path):
    path = tmp_path / "model.safetensors"
    _weights.save(cases.decoder(), path)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        header = bytes([data[0] ^ 0xFF]) + data[1:]
        path.write_bytes({"cut": data[:-9], "flipped": header, "empty": b"", "text": b"weights"}[damage])
    with pytest.raises(ValueError, match=r"path: expected a \.safetensors file, got '.*model\.safetensors'"):
        _weights.load(path)


def test_foreign_files_are_refused(tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"path: expected a file written by dps_jax"):
        _weights.load(tmp_path / "x.safetensors")


def test_tensors_must_be_all_there_and_of_the_right_shape():
    model = cases.decoder()
    tensors = _weights.to_hugging_face(model)
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=r"tensors: expected the tensors of .*up_proj"):
        _weights.from_hugging_face(model.config, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ValueError, match=r"tensors: expected the tensors of .*more"):
        _weights.from_hugging_face(model.config, tensors | {"more": np.zeros(1)})
    with pytest.raises(ValueError, match=r"tensors\['.*up_proj\.weight'\]: expected shape \[40, 24\], got \[24, 40\]"):
        _weights.from_hugging_face(model.config, tensors | {name: tensors[name].T})


@pytest.mark.parametrize("kind", sorted(cases.KINDS))
def test_shapes_are_known_without_building_a_model(kind):
    found = {name: tensor.shape for name, tensor in _weights.to_hugging_face(cases.decoder(kind)).items()}
    assert _weights.shapes_of(cases.config(kind)) == found


def test_a_tied_model_may_hold_its_embedding_twice_if_it_is_the_same(tmp_path):
    model = cases.decoder()
    assert model.config.is_tied
    tensors = _weights.to_hugging_face(model)
    embedding = tensors["model.embed_tokens.weight"]
    loaded = _weights.from_hugging_face(model.config, tensors | {"lm_head.weight": embedding.copy()})
    np.testing.assert_array_equal(_weights.to_hugging_face(loaded)["model.embed_tokens.weight"], embedding)
    with pytest.raises(ValueError, match=r"tensors\['lm_head.weight'\]: expected the embedding .* got other numbers"):
        _weights.from_hugging_face(model.config, tensors | {"lm_head.weight": embedding + 1})
    with pytest.raises(ValueError, match=r"tensors\['lm_head.weight'\]: expected shape"):
        _weights.from_hugging_face(model.config, tensors | {"lm_head.weight": embedding.T})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    path, tensors = tmp_path / "model.safetensors", _weights.to_hugging_face(cases.decoder())
    _weights.save(cases.decoder(), path)
    tensors["model.norm.weight"] = np.where(np.arange(24) == 3, np.float32(value), 1)
    save_file(tensors, path, {"dps_jax_config": json.dumps(cases.config().__dict__)})
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: tensors\['model.norm.weight'\]: .* got {value} at \[3\]"
    ):
        _weights.load(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "metadata: expected the shape of a model"),
        ("[" * 100_000, "metadata: expected the shape of a model"),
        ("3", "metadata: expected the shape of a model"),
        ('{"vocab_size": 20, "colour": 3}', "metadata: .*colour"),
        ('{"vocab_size": "20"}', "metadata: .*vocab_size: expected an integer"),
        ('{"vocab_size": 20, "rope_theta": NaN}', "metadata: .*rope_theta: expected a finite number"),
    ],
)
def test_a_bad_description_is_refused(config, message, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path, {"dps_jax_config": config})
    with pytest.raises(ValueError, match=rf"model\.safetensors: {message}"):
        _weights.load(path)


@pytest.mark.parametrize("name", ["chain_sum", "countdown", "geometry", "steps"])
def test_the_pretrained_weights_fit_the_task_and_say_where_they_are_from(name):
    path = DATA / f"{name}.safetensors"
    assert path.stat().st_size <= 4_000_000
    model, facts = _weights.load(path)
    assert tuple(facts["vocabulary"]) == tasks.build(name).vocabulary
    assert facts["command"].startswith("python experiments/pretrain.py")
    assert sum(leaf.size for leaf in jax.tree.leaves(_weights.to_hugging_face(model))) < 1_000_000
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["config"]["seed"] == facts["pretraining"]["seed"]


def test_sizes_are_configs():
    for size in models.SIZES:
        assert models.DecoderConfig(vocab_size=10, **models.SIZES[size]).num_layers >= 2
