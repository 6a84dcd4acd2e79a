"""Runs on meshes of eight virtual devices, and of two processes, beside the same runs on one device."""

import functools
import json

import jax
import numpy as np
import pytest

from dps_jax import traces
from dps_jax.training import _config as configs
from dps_jax.training import _mesh
from tests.training import programs, runs


def result(part, directory):
    return json.loads(programs.run(8, "mesh_program.py", part, directory).splitlines()[-1])


@pytest.fixture(scope="module")
def of_model(tmp_path_factory):
    return result("model", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("devices", "fsdp"), [("1 x 8", 8), ("2 x 4", 4)])
def test_samples_and_gradients_are_those_of_one_device_and_bytes_are_split(of_model, devices, fsdp):
    found = of_model[devices]
    assert found["is_same_sample"]
    assert found["log_probs"] < 1e-5
    assert found["gradients"] < 1e-5
    assert found["share_of_bytes"] < 1.1 / fsdp


@pytest.mark.slow
def test_runs_are_those_of_one_device_and_go_on_with_other_devices(tmp_path):
    found = result("task", tmp_path)
    assert found["1 x 8"]["is_same_trace"]
    assert found["1 x 8"]["largest"] < 1e-5
    # Adam's first steps are about learning rate * sign(gradient), so that rounding shows where gradients are near 0.
    assert found["weights"] < 1e-3
    assert found["moved"]["is_same_trace"]
    assert found["moved"]["largest"] < 1e-5
    assert found["is_recorded"]


@pytest.mark.slow
def test_runs_on_data_files_are_those_of_one_device(tmp_path):
    found = result("text", tmp_path)
    assert found["is_same_trace"]
    assert found["largest"] < 1e-5


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_one_goes_on_from_their_checkpoint(tmp_path):
    port = programs.free_port()
    pair = [(tmp_path, "pair", 2, 2, index, 2, port) for index in range(2)]
    for code, _, errors in programs.run_together(1, "hosts_program.py", *pair):
        assert code == -9, errors[-3000:]
    for name in ("pair", "single"):
        programs.run(1, "hosts_program.py", tmp_path, name, 4, 1)
    of_pair, of_single = (runs.timeless(tmp_path / name / "metrics.jsonl") for name in ("pair", "single"))
    assert len(of_pair) == len(of_single) == 4
    for left, right in zip(of_pair, of_single, strict=True):
        for name in left.keys() & right.keys():
            if isinstance(left[name], float):
                assert left[name] == pytest.approx(right[name], abs=1e-5), name
    found, expected = (traces.read_trace(tmp_path / name / "trace.npz") for name in ("pair", "single"))
    for left, right in zip(found[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(left, right)


def test_devices_that_do_not_fit_are_refused(tmp_path):
    make = functools.partial(runs.tiny, tmp_path)
    with pytest.raises(ValueError, match=r"mesh.fsdp: expected an integer >= 1, got 0"):
        _mesh.MeshConfig(fsdp=0)
    with pytest.raises(ValueError, match=r"mesh.coordinator: expected HOST:PORT of the first of 2 .* set --mesh"):
        _mesh.MeshConfig(num_processes=2)
    with pytest.raises(ValueError, match=r"mesh.process_index: expected an integer >= 0 and <= 0, got 1"):
        _mesh.MeshConfig(process_index=1)
    too_many = 2 * jax.device_count()
    with pytest.raises(ValueError, match=rf"mesh: expected at most .* got mesh.data \* mesh.fsdp = {too_many} \* 1; "):
        _mesh.make_mesh(_mesh.MeshConfig(data=too_many))
    with pytest.raises(ValueError, match=r"rollout.batch_size: expected a multiple of mesh.data \* mesh.fsdp = 1 \* 8"):
        make(mesh=_mesh.MeshConfig(fsdp=8))
    learner = configs.LearnerConfig(rows_per_step=2)
    with pytest.raises(ValueError, match=r"learner.rows_per_step: expected None or at least .* = 2 \* 2, .* got 2"):
        make(mesh=_mesh.MeshConfig(2, 2), learner=learner)


def test_one_device_is_no_mesh():
    assert _mesh.make_mesh(_mesh.MeshConfig()) is None
    assert _mesh.placing_of(None) is _mesh.of_prompts(None) is None
