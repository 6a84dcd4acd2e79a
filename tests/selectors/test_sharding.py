"""The same picks on one device, on eight virtual devices, and on two processes, without gathering [N] arrays."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).parent / "sharded_program.py"
ROOT = PROGRAM.parents[2]
# Not a multiple of eight: the last shard is padded.
NUM_PROMPTS = 32_003


def start(method, num_devices, *arguments):
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, str(PROGRAM), method, str(NUM_PROMPTS), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    "method", ["binomial_hmm", "binomial_hmm, options", "dps", "dps, groups", "history", "mopps", "uniform"]
)
def test_shards_and_processes_pick_what_one_device_picks(method):
    single = result(start(method, 1, 1))
    eight = result(start(method, 8, 8))
    port = free_port()
    pair = [start(method, 4, 8, index, 2, port) for index in range(2)]
    first, second = (result(process) for process in pair)
    assert eight["picks"] == single["picks"]
    assert first["picks"] == second["picks"] == single["picks"]
    for sharded in (eight, first):
        # Half a shard: no array over prompts is exchanged. What binomial_hmm learned from all takes 2,160 numbers.
        assert 0 < sharded["largest_collective"] < NUM_PROMPTS // 16
        assert sharded["num_impossible"] == single["num_impossible"]
        np.testing.assert_allclose(sharded["predictions"], single["predictions"], atol=1e-5)
