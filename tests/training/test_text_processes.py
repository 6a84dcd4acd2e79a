"""Runs on data files by two processes, beside the same run of one."""

import json
import time

import jax
import numpy as np
import pytest
from flax import nnx

from dps_jax import models, traces
from tests.training import programs, runs, text_runs

NUM_ROUNDS = 4
# On two idle cores the three tests take a minute together; on busy ones a test fails rather than wait for longer.
LIMIT_S = 300


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    found = tmp_path_factory.mktemp("processes")
    text_runs.make_model(found / "model")
    text_runs.make_sums(found / "sums.jsonl")
    return found


@pytest.fixture(scope="module")
def alone(directory):
    run_alone(directory, "alone")
    return directory / "alone"


def run_alone(directory, name):
    return programs.run(1, "text_hosts_program.py", directory, name, NUM_ROUNDS, 1, 1, limit_s=LIMIT_S)


def run_two(directory, name, data, fsdp, *end):
    port = programs.free_port()
    pair = [(directory, name, NUM_ROUNDS, data, fsdp, index, 2, port, *end) for index in range(2)]
    return programs.run_together(1, "text_hosts_program.py", *pair, limit_s=LIMIT_S)


def assert_same_run(folder, expected):
    """Checks that picks, rewards and failures are the same, and that figures and weights differ by rounding."""
    of_both = (runs.timeless(path / "metrics.jsonl") for path in (folder, expected))
    for found, wanted in zip(*of_both, strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), name
    found, wanted = (traces.read_trace(path / "trace.npz") for path in (folder, expected))
    for left, right in zip(found[:4], wanted[:4], strict=True):
        np.testing.assert_array_equal(left, right)
    found, wanted = (jax.tree.leaves(nnx.state(models.load_pretrained(path / "policy"))) for path in (folder, expected))
    for left, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def graded(directory, name, index):
    """Returns which prompts a process has graded, chunk by chunk."""
    lines = (directory / f"{name}.{index}.graded").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_the_first_writes(directory, alone):
    for code, _, errors in run_two(directory, "pair", 2, 1):
        assert code == 0, errors[-3000:]
    assert_same_run(directory / "pair", alone)
    written = [(directory / f"pair.{index}.written").read_text() for index in range(2)]
    assert "pair/metrics.jsonl" in written[0]
    assert written[1] == ""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (directory / "pair", alone)]
    assert names[0] == names[1]
    num_halved = 0
    of_all = zip(*(graded(directory, "pair", index) for index in range(2)), graded(directory, "alone", 0), strict=True)
    for first, second, whole in of_all:
        half = -(-len(whole) // 2)
        assert (first, second) == (whole[:half], whole[half:])
        num_halved += len(whole) > 1
    assert num_halved >= NUM_ROUNDS


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(directory, alone):
    for code, _, errors in run_two(directory, "killed", 1, 2, "kill"):
        assert code == -9, errors[-3000:]
    output = run_alone(directory, "killed")
    assert "after 2 rounds" in output
    assert "mesh.fsdp: 2 until now, 1 from here on" in output
    assert_same_run(directory / "killed", alone)


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_other_with_a_sentence(directory):
    start = time.monotonic()
    (code, _, errors), (other_code, _, other_errors) = run_two(directory, "broken", 2, 1, "raise")
    assert time.monotonic() - start < LIMIT_S
    assert other_code == 1, other_errors[-3000:]
    assert "ValueError: ids: expected nothing at all" in other_errors
    assert code == 1, errors[-3000:]
    assert "error: process 1 of 2 has ended with ValueError: ids: expected nothing at all" in errors
    assert "continues from the last checkpoint" in errors
