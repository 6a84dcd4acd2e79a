"""Text runs that train low-rank additions: what is trained, what is kept, and what it takes."""

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from dps_jax import models, rl
from dps_jax.models import _lora
from dps_jax.training import _checkpoints, _manifest, _text_policy, _text_setup, _trainer
from dps_jax.training import _config as configs
from dps_jax.training._phases import Phases
from tests.models import cases
from tests.training import runs, text_runs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return text_runs.make_model(folder / "model"), text_runs.make_sums(folder / "sums.jsonl")


def tiny(files, out_dir, **fields):
    config = text_runs.tiny(*files, out_dir)
    return text_runs.changed(config, "learner", **{"lora_rank": 2, "learning_rate": 1e-2, **fields})


def train(config):
    return _trainer.train(config, runs.quiet())


def leaves_of(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A run with a reference policy and more than one step per batch."""
    config = tiny(files, tmp_path_factory.mktemp("whole"), kl_coef=0.05, num_minibatches=2, num_epochs=2)
    before = (files[0] / "model.safetensors").read_bytes()
    train(config)
    assert (files[0] / "model.safetensors").read_bytes() == before
    return config


def test_a_killed_run_goes_on_to_the_same_end(finished, tmp_path):
    stopped = dataclasses.replace(finished, out_dir=tmp_path, num_rounds=2)
    train(stopped)
    resumed = dataclasses.replace(stopped, num_rounds=4)
    train(resumed)
    assert runs.timeless(finished.folder / "metrics.jsonl") == runs.timeless(resumed.folder / "metrics.jsonl")
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        for policy in ("policy", "policy_best"):
            assert (finished.folder / policy / name).read_bytes() == (resumed.folder / policy / name).read_bytes()
    # The best policy is written again from its checkpoint, which has the adapters only, and from the base.
    shutil.rmtree(resumed.folder / "policy_best")
    train(resumed)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        paths = (run.folder / "policy_best" / name for run in (finished, resumed))
        assert len({path.read_bytes() for path in paths}) == 1


def test_the_policy_is_the_base_with_the_adapters_in_it(finished, files):
    base, policy = (models.load_pretrained(folder) for folder in (files[0], finished.folder / "policy"))
    tensors = load_file(finished.folder / "policy" / "adapter" / "adapter_model.safetensors")
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    names = [name.removeprefix(prefix).removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    of = lambda name, kind: jnp.asarray(tensors[f"{prefix}{name}.{kind}.weight"].T)
    adapters = {name: _lora.Adapter(of(name, "lora_A"), of(name, "lora_B")) for name in names}
    assert len(adapters) == 2 * 7
    assert all(np.any(adapter.b) for adapter in adapters.values())
    described = json.loads((finished.folder / "policy" / "adapter" / "adapter_config.json").read_text())
    scale = described["lora_alpha"] / described["r"]
    assert (scale, described["base_model_name_or_path"]) == (8, str(files[0]))
    merged = _lora.merged(base.config, nnx.state(base), adapters, scale)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(merged), leaves_of(policy))
    changed = [
        "/".join(map(str, path))
        for (path, one), (_, other) in zip(
            nnx.to_flat_state(nnx.state(base)), nnx.to_flat_state(nnx.state(policy)), strict=True
        )
        if np.any(one[...] != other[...])
    ]
    kernels = ("attention_out", "gate_up", "mlp_out", "qkv")
    assert changed == [f"blocks/{index}/{name}/kernel" for index in range(2) for name in kernels]


def test_checkpoints_hold_what_is_trained(finished):
    with _checkpoints.Checkpoints(finished.folder / "checkpoints") as store:
        last = finished.folder / "checkpoints" / f"round_{store.rounds()[-1]:010d}"
    leaves = _manifest.read(last)["leaves"]
    assert not any("kernel" in name or "embedding" in name for name in leaves)
    sizes = {name: math.prod(json.loads(kind[kind.index("[") :])) for name, kind in leaves.items()}
    of_params = [size for name, size in sizes.items() if name.startswith("params.")]
    assert "params.model.layers.1.mlp.down_proj.a" in sizes
    assert len(of_params) == 2 * 7 * 2
    # Of A and B: themselves, two moments, and the reference.
    assert sum(size for name, size in sizes.items() if "_proj" in name) == 4 * sum(of_params)


def test_other_weights_under_a_checkpoint_are_refused(finished, files, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved / finished.name)
    config = dataclasses.replace(finished, out_dir=moved, num_rounds=5)
    other = text_runs.make_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"model: expected the weights that .* was started from, got .*other.*another"):
        train(dataclasses.replace(config, model=other))
    with pytest.raises(ValueError, match=r"resume: expected the options .* learner\.lora_rank = 3 \(was 2\)"):
        train(text_runs.changed(config, "learner", lora_rank=3))
    with pytest.raises(ValueError, match=r"resume: expected the options .* learner\.lora_rank = None \(was 2\)"):
        train(text_runs.changed(config, "learner", lora_rank=None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_moves_the_adapters_the_right_way_and_leaves_the_base(files, tmp_path, dtype):
    parts = _text_setup.build(dataclasses.replace(tiny(files, tmp_path), dtype=dtype))
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    phases = Phases(parts.round, parts.collect)
    for _ in range(4):
        start = jax.tree.map(jnp.copy, state.params)
        state, collection, info, _ = phases.run(state)
        if float(info.update.grad_norm) > 0:
            break
    parts.close()
    batch = collection.batch
    score = jax.jit(functools.partial(_text_policy.log_probs, parts.policy, 1.0))
    first, second = (np.asarray(score(params, batch.prompts, batch.completions)[0]) for params in (start, state.params))
    advantages = np.asarray(batch.rewards - batch.rewards.mean(axis=1, keepdims=True))[..., None]
    mask = np.asarray(batch.mask)
    assert float(info.update.grad_norm) > 0
    assert np.sum(advantages * mask * (second - first)) > 0
    np.testing.assert_allclose(
        first[mask], np.asarray(batch.old_log_probs)[mask], atol=1e-4 if dtype == "float32" else 0.05
    )
    jax.tree.map(np.testing.assert_array_equal, state.params.frozen, before.frozen)
    moved = jax.tree.map(lambda one, other: bool(np.any(one != other)), state.params.trained, before.trained)
    assert all(adapter.b for adapter in moved.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params.trained)} == {jnp.dtype("float32")}


def test_rounds_hand_the_base_on_without_a_copy(files, tmp_path):
    parts = _text_setup.build(tiny(files, tmp_path))
    made = jax.jit(lambda params: _trainer._kept(parts.round.init(params, jax.random.key(0))))(parts.params)
    state = _trainer._whole(made, parts.params)
    places = lambda params: [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params.frozen)]
    phases, found = Phases(parts.round, parts.collect), []
    for _ in range(3):
        before, (state, *_) = state, phases.run(state)
        phases.take_over()
        # What was donated is gone, so that there is one base at any time.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params.frozen))
        found.append(places(state.params))
    parts.close()
    # What was read from files may be moved once, where its memory belongs to NumPy.
    assert found[0] == found[1] == found[2]


def test_a_base_in_bfloat16_files_stays_in_bfloat16(files, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(files[0], half)
    (half / "model.safetensors").unlink()
    models.save_pretrained(models.load_pretrained(files[0]), half, dtype="bfloat16", fields={"eos_token_id": 257})
    tokenizer = _text_setup.text.load_tokenizer(half)
    load = lambda **changes: _text_setup.load_policy(
        dataclasses.replace(tiny((half, files[1]), tmp_path), **changes), tokenizer
    )[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(load(dtype="bfloat16").frozen)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(load().frozen)} == {jnp.dtype("float32")}


def wide(rank):
    """Returns the learner, the parameters and a batch of a model whose matrices are larger than its activations."""
    fields = {"hidden_size": 128, "head_dim": 32, "mlp_size": 512, "num_heads": 4, "num_kv_heads": 2}
    config = cases.config("qwen3", **fields)
    make = lambda: nnx.split(models.Decoder(config, rngs=nnx.Rngs(0)))[1]
    graphdef = nnx.split(nnx.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0))))[0]
    params, shape = jax.eval_shape(make), None
    if rank is not None:
        shape = _lora.lora(rank)
        adapters = jax.eval_shape(lambda: _lora.init(config, jax.random.key(0), shape))
        params = rl.PartlyTrained(trained=adapters, frozen=params)
    policy = _text_policy.TextPolicy(graphdef, (cases.END,), cases.PAD, config.vocab_size, 3, "float32", shape)
    learner = rl.learner(functools.partial(_text_policy.log_probs, policy, 1.0), learning_rate=1e-3)
    leaf, rows = jax.ShapeDtypeStruct, (2, 2)
    batch = rl.Batch(
        ids=leaf((2,), jnp.int32), prompts=leaf((2, 4), jnp.int32), completions=leaf((*rows, 3), jnp.int32),
        mask=leaf((*rows, 3), bool), old_log_probs=leaf((*rows, 3), jnp.float32), rewards=leaf(rows, jnp.float32),
        is_correct=leaf(rows, bool), is_used=leaf((2,), bool), inclusion_probs=None,
    )  # fmt: skip
    return learner, params, batch


def equations(jaxpr):
    """Yields the equations of a program and of all programs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products_as_large_as_a_matrix(learner, params, batch):
    program = jax.make_jaxpr(learner.gradient)(params, batch).jaxpr
    shapes = [
        equation.outvars[0].aval.shape for equation in equations(program) if equation.primitive.name == "dot_general"
    ]
    assert shapes
    return [shape for shape in shapes if len(shape) == 2 and np.prod(shape) >= 128 * 128]


def test_no_gradient_and_no_moments_of_the_base_are_there():
    learner, params, batch = wide(2)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    trained, gradient = size(params.trained), jax.eval_shape(learner.gradient, params, batch)[0]
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params.trained)
    assert size(jax.eval_shape(learner.init, params)) <= 2 * trained + 2
    assert products_as_large_as_a_matrix(learner, params, batch) == []
    # Of two layers with four matrices each, in prompts and in completions.
    assert len(products_as_large_as_a_matrix(*wide(None))) == 2 * 4 * 2


def test_an_update_takes_less_memory_than_one_more_base_would():
    def num_bytes(rank):
        learner, params, batch = wide(rank)
        update = jax.jit(learner.update, donate_argnums=(0, 1))
        key = jax.eval_shape(lambda: jax.random.key(0))
        found = update.lower(params, jax.eval_shape(learner.init, params), batch, key).compile().memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes

    base = sum(leaf.size * 4 for leaf in jax.tree.leaves(wide(None)[1]))
    assert num_bytes(2) < 0.5 * base
    assert num_bytes(None) > base


BAD = [
    ({"lora_rank": 0}, r"^learner\.lora_rank: expected an integer >= 1, got 0"),
    ({"lora_alpha": 0.0}, r"^learner\.lora_alpha: expected a finite number > 0, got 0\.0; 16 is the default"),
    ({"lora_rank": None, "lora_alpha": -1.0}, r"^learner\.lora_alpha: expected a finite number > 0, got -1\.0"),
    ({"lora_targets": ("q", "qkv")}, r"^learner\.lora_targets: expected one of .*'gate'.*, got 'qkv'"),
    ({"lora_targets": ()}, r"^learner\.lora_targets: expected a tuple of .*, got \(\); leave it out for all"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        configs.LearnerConfig(**{"lora_rank": 2, **fields})


def test_options_that_do_not_fit_the_model_or_the_run_are_refused(files, tmp_path):
    with pytest.raises(
        ValueError, match=r"^learner\.lora_rank: expected at most 16, the smaller side of .*k_proj .* 17"
    ):
        _text_setup.build(tiny(files, tmp_path, lora_rank=17))
    with pytest.raises(
        ValueError, match=r"^learner\.lora_rank: expected None in a run on a task, got 2; .*train_llm\.py"
    ):
        configs.TrainConfig(learner=configs.LearnerConfig(lora_rank=2))
