"""Trains on one device and on meshes of eight, and prints how they differ.

usage: mesh_program.py PART DIRECTORY
"""

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dps_jax import models, rl, traces
from dps_jax.models import _placing as placings
from dps_jax.training import _config as configs
from dps_jax.training import _figures, _mesh, _policy_files, _text_setup, _trainer
from tests.training import runs, text_runs

MESHES = {"one": (1, 1), "1 x 8": (1, 8), "2 x 4": (2, 4)}
NUM_ROUNDS = 4


def mesh_config(name):
    """Returns the devices by their name."""
    return _mesh.MeshConfig(*MESHES[name])


def tiny(out_dir, devices, **changes):
    """Returns the config of a run on a task, with prompts that eight devices do not divide."""
    fields = {
        "name": devices.replace(" ", ""),
        "num_rounds": NUM_ROUNDS,
        "eval_every": NUM_ROUNDS,
        "checkpoint_every": 2,
        "mesh": mesh_config(devices),
        "rollout": configs.RolloutConfig(batch_size=8, group_size=4),
    }
    return runs.tiny(out_dir, **(fields | changes))


def difference(one, other):
    """Returns the largest difference between figures that two runs have, and whether they picked the same."""
    largest = 0.0
    for left, right in zip(*(runs.timeless(run.folder / "metrics.jsonl") for run in (one, other)), strict=True):
        for name in left.keys() & right.keys():
            value = left[name]
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                largest = max(largest, abs(value - right[name]))
    trace, other_trace = (traces.read_trace(run.folder / "trace.npz") for run in (one, other))
    is_same = all(np.array_equal(left, right) for left, right in zip(trace[:4], other_trace[:4], strict=True))
    return {"largest": largest, "is_same_trace": is_same}


def weights_difference(one, other):
    """Returns the largest difference between the policies of two runs."""
    policies = [models._weights.load(run.folder / _policy_files.LAST)[0] for run in (one, other)]
    leaves = [jax.tree.leaves(nnx.state(policy)) for policy in policies]
    return max(float(jnp.max(jnp.abs(left - right))) for left, right in zip(*leaves, strict=True))


def of_task(directory):
    """Returns how runs on meshes, and one that changes its devices on the way, differ from one device."""
    configs_of = {name: tiny(directory, name) for name in MESHES}
    for name, config in configs_of.items():
        if name != "2 x 4":
            runs.run(config)
    # Two rounds on eight devices, one on one, one on two copies of four.
    for num_rounds, name in ((2, "1 x 8"), (3, "one"), (4, "2 x 4")):
        moved = tiny(directory, name, name="moved", num_rounds=num_rounds, eval_every=100)
        _, words = runs.run(moved)
    one, eight = configs_of["one"], configs_of["1 x 8"]
    found = {"1 x 8": difference(one, eight), "weights": weights_difference(one, eight)}
    return found | {"moved": difference(one, moved), "is_recorded": "mesh.fsdp: 1 until now, 4" in words}


def of_text(directory):
    """Returns how a run on a data file differs on a mesh, in steps of some rows."""
    model, data = text_runs.make_model(directory / "model"), text_runs.make_sums(directory / "sums.jsonl")
    found = []
    for name, chunk_size in (("one", None), ("2 x 4", 8)):
        rollout = text_runs._text_config.TextRolloutConfig(
            batch_size=16, group_size=4, completion_length=3, chunk_size=chunk_size
        )
        learner = configs.LearnerConfig(learning_rate=1e-3, rows_per_step=16)
        parts = {"rollout": rollout, "learner": learner, "mesh": mesh_config(name)}
        config = text_runs.tiny(model, data, directory, name=name.replace(" ", ""), num_rounds=2, **parts)
        _trainer.train(config, runs.quiet(), build=_text_setup.build)
        found.append(config)
    return difference(*found)


def decoder():
    """Returns a decoder whose matrices eight devices divide, deep enough for a loop over its layers."""
    config = models.DecoderConfig(
        vocab_size=256, hidden_size=64, num_layers=9, num_heads=4, num_kv_heads=2, head_dim=16, mlp_size=128
    )
    return models.Decoder(config, rngs=nnx.Rngs(0))


def gradient_of(graphdef, placing, is_rematerialised, params, prompts, completions):
    """Returns log-probs of completions and the gradient of a sum of theirs."""

    def loss(params):
        model = nnx.merge(graphdef, params)
        options = {"pad_id": 0, "is_rematerialised": is_rematerialised}
        found = models.completion_log_probs(model, prompts, completions, **options)
        weights = jnp.sin(jnp.arange(completions.size)).reshape(completions.shape)
        return jnp.sum(found[0] * weights) + jnp.sum(found[1]), found

    gradient, found = jax.grad(loss, has_aux=True)(params)
    return found, placings.split_weights(placing, gradient)


def on_devices(placing):
    """Returns what a decoder samples and its gradients on some devices, and bytes there with Adam's moments."""
    model = decoder()
    model.placing = placing
    graphdef, params = nnx.split(model)
    params = _mesh.put_weights(placing, params)
    prompts = jax.random.randint(jax.random.key(1), (8, 8), 1, 256)
    sample = jax.jit(
        lambda params: models.sample(
            nnx.merge(graphdef, params), prompts, jax.random.key(2), group_size=2, completion_length=6, end_ids=(0,),
            pad_id=0,
        )
    )  # fmt: skip
    completions = sample(params)
    gradients = []
    for is_rematerialised in (False, True):
        compute = functools.partial(gradient_of, graphdef, placing, is_rematerialised)
        gradients.append(jax.jit(compute)(params, prompts, completions.tokens))
    learner = rl.learner(lambda *_: None, learning_rate=1e-3)
    start = jax.jit(lambda params: placings.split_weights(placing, (params, learner.init(params))))(params)
    leaves = jax.tree.leaves(start)
    total = sum(leaf.nbytes for leaf in leaves)
    return completions, gradients, max(bytes_of(leaves, device) for device in jax.devices()) / total


def bytes_of(leaves, device):
    """Returns how much of some arrays is on a device."""
    return sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards if shard.device == device)


def of_model(_):
    """Returns how samples and gradients on a mesh differ, and the share of all bytes on one device."""
    found, on_one = {}, on_devices(None)
    for name in ("1 x 8", "2 x 4"):
        on_mesh = on_devices(_mesh.placing_of(_mesh.make_mesh(mesh_config(name))))
        pairs = zip(*(jax.tree.leaves(jax.device_get(one[1])) for one in (on_one, on_mesh)), strict=True)
        found[name] = {
            "is_same_sample": bool(np.array_equal(on_one[0].tokens, on_mesh[0].tokens)),
            "log_probs": float(np.max(np.abs(on_one[0].log_probs - np.asarray(on_mesh[0].log_probs)))),
            "gradients": float(max(np.max(np.abs(a - b)) / max(1, np.max(np.abs(a))) for a, b in pairs)),
            "share_of_bytes": on_mesh[2],
        }
    return found


PARTS = {"task": of_task, "text": of_text, "model": of_model}

if __name__ == "__main__":
    _figures.plot_run = lambda *arguments, **options: []
    print(json.dumps(PARTS[sys.argv[1]](Path(sys.argv[2]))))
