"""The same picks on one device, on eight virtual devices, and on two processes, without gathering [N] arrays.

The same on every type of mesh axis, and with states that were moved between meshes of different sizes.
"""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import selectors

PROGRAM = pathlib.Path(__file__).parent / "sharded_program.py"
MESH_PROGRAM = pathlib.Path(__file__).parent / "mesh_program.py"
ROOT = PROGRAM.parents[2]
# Not a multiple of eight: the last shard is padded.
NUM_PROMPTS = 64_003


def start(methods, num_devices, *arguments):
    return start_program(num_devices, PROGRAM, json.dumps(methods), NUM_PROMPTS, *arguments)


def start_program(num_devices, program, *arguments):
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process):
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


METHODS = ("binomial_hmm, options", "dps", "dps, groups", "history", "mopps", "uniform")


@functools.cache
def on_all_topologies(methods):
    """Returns what methods come to on one device, on eight, and on either of two processes of four; by method."""
    single, eight = (result(start(methods, count, count)) for count in (1, 8))
    port = free_port()
    pair = [start(methods, 4, 8, index, 2, port) for index in range(2)]
    return single, eight, *map(result, pair)


# What binomial_hmm ranks by without options is tested with few prompts, and takes as long again to compile.
@pytest.mark.parametrize("method", [*METHODS, pytest.param("binomial_hmm", marks=pytest.mark.slow)])
def test_shards_and_processes_pick_what_one_device_picks(method):
    found = on_all_topologies(METHODS if method in METHODS else (method,))
    single, eight, first, second = (of_methods[method] for of_methods in found)
    assert eight["picks"] == single["picks"]
    assert first["picks"] == second["picks"] == single["picks"]
    for sharded in (eight, first):
        # Half a shard: no array over prompts is exchanged. What binomial_hmm learned from all takes 3,840 numbers.
        assert 0 < sharded["largest_collective"] < NUM_PROMPTS // 16
        assert sharded["num_impossible"] == single["num_impossible"]
        assert sharded["shapes"] == single["shapes"]
        np.testing.assert_allclose(sharded["predictions"], single["predictions"], atol=1e-5)


# The mesh divides 104, so that predictions stay sharded, and does not divide 101.
CASES = (("dps", 101), ("last_state", 104))
# Either number with the other method, which compiles for a minute.
OTHER_CASES = (("dps", 104), ("last_state", 101))


@functools.cache
def on_all_meshes(cases):
    """Returns what the cases come to on meshes of every kind."""
    return dict(zip(cases, result(start_program(8, MESH_PROGRAM, "rounds", json.dumps(cases))), strict=True))


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in OTHER_CASES)])
def test_axis_types_make_no_difference_and_states_can_be_moved(case):
    found = dict(on_all_meshes(CASES if case in CASES else OTHER_CASES)[case])
    expected = found.pop("one device")
    assert set(found) == {"default", "Auto", "Explicit", "Manual", "set_mesh", "moved"}
    for kind, of_kind in found.items():
        assert of_kind["picks"] == expected["picks"], kind
        for field, wanted in zip(of_kind["figures"], expected["figures"], strict=True):
            np.testing.assert_allclose(field, wanted, atol=1e-6, err_msg=kind)


def test_states_of_every_method_are_moved_exactly():
    methods = sorted(set(selectors.SELECTORS) - {"instructive"})  # which is binomial_hmm with other defaults
    assert result(start_program(8, MESH_PROGRAM, "portable", *methods)) == "exact"


@pytest.mark.parametrize("method", ["dps", "uniform"])
def test_a_portable_state_is_a_copy_and_is_checked(method):
    selector = selectors.build(method, 20)
    state = selector.init(jax.random.key(0))
    arrays = selector.to_portable(state)
    later = jax.jit(selector.observe, donate_argnums=0)(
        selector.from_portable(arrays), jnp.arange(3), jnp.full(3, 2), jnp.full(3, 8)
    )
    chex.assert_trees_all_equal(arrays, selector.to_portable(state))
    assert jax.tree.structure(later) == jax.tree.structure(arrays)
    with pytest.raises(ValueError, match=r"arrays: expected a state of structure .*, got PyTreeDef"):
        selector.from_portable(jax.tree.leaves(arrays)[:1])
    with pytest.raises(ValueError, match=r"arrays.*: expected .*, got .*; build the selector with the same options"):
        selector.from_portable(jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 2), leaf.dtype), arrays))
