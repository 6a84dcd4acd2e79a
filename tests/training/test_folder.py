import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from dps_jax.training import _config as configs
from dps_jax.training import _folder, _options
from tests.training import runs


@pytest.fixture
def config(tmp_path, monkeypatch) -> configs.TrainConfig:
    runs.share_programs(monkeypatch)
    (tmp_path / "runs").mkdir()
    return runs.tiny(tmp_path / "runs", num_rounds=1)


def content(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["thesis.tex", "config.json", "checkpoints", "run.lock"])
def test_what_is_no_run_is_left_alone(config, resume, name):
    config.folder.mkdir()
    (config.folder / name).write_text('{"task": "mine"}')
    before = content(config.folder)
    with pytest.raises(ValueError, match=rf"run: expected an empty folder or that of a run, got .*{name}.*--name"):
        runs.run(dataclasses.replace(config, resume=resume))
    assert content(config.folder) == before
    assert [path.name for path in config.out_dir.iterdir()] == ["run"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(config):
    config.folder.write_text("precious")
    with pytest.raises(ValueError, match=r"run: expected a folder, got a file; choose another --name"):
        runs.run(dataclasses.replace(config, resume=False))
    assert config.folder.read_text() == "precious"


def test_no_resume_moves_the_old_run_aside(config):
    runs.run(config)
    (config.folder / "notes.txt").write_text("mine")
    first = content(config.folder)
    for number in (1, 2):
        _, text = runs.run(dataclasses.replace(config, resume=False, eval_every=number))
        assert f"the run that was in {config.folder} is in {config.folder}.old-{number} now" in text
        assert "resuming" not in text
    aside = content(config.folder.with_name("run.old-1"))
    del aside["run.lock"], first["run.lock"]
    assert aside == first
    assert not (config.folder / "notes.txt").exists()
    assert _options.read(config.folder)["eval_every"] == 2


def test_a_refused_start_changes_nothing_and_the_corrected_command_is_accepted(config, tmp_path):
    runs.run(config)
    before = content(config.folder)
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    bad = dataclasses.replace(config, resume=False, model=configs.ModelConfig(weights=tmp_path / "bad.safetensors"))
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        runs.run(bad)
    assert content(config.folder) == before
    other = dataclasses.replace(bad, name="other")
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        runs.run(other)
    assert not other.folder.exists()
    assert runs.run(dataclasses.replace(config, name="other"))[0]["rounds"] == 1


HOLDER = """
import sys, time
from pathlib import Path
from dps_jax.training import _folder
with _folder.locked(Path(sys.argv[1]), print):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_processes_alone_until_it_ends(config):
    config.folder.mkdir()
    command = [sys.executable, "-c", HOLDER, str(config.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            for resume in (True, False):
                with pytest.raises(ValueError, match=rf"but process {process.pid} on {os.uname().nodename} does; wait"):
                    runs.run(dataclasses.replace(config, resume=resume))
            assert [path.name for path in config.folder.iterdir()] == ["run.lock"]
        finally:
            process.kill()
    assert runs.run(config)[0]["rounds"] == 1


def test_two_runs_of_one_process_are_kept_apart_too(tmp_path):
    tmp_path = tmp_path / "run"
    with _folder.opened(tmp_path, resume=True, report=print):
        found = []

        def other():
            try:
                with _folder.opened(tmp_path, resume=True, report=print):
                    found.append("entered")
            except ValueError as error:
                found.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in found[0]
    (tmp_path / "run.lock").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="expected an empty folder"):
        _folder.check(tmp_path)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(_folder.fcntl, "flock", no_locks)
    reports = []
    with _folder.locked(tmp_path, reports.append):
        pass
    assert "this file system has no locks" in reports[0]


def test_a_read_only_disk_is_told(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(_folder, "open", read_only, raising=False)
    with (
        pytest.raises(OSError, match=r"Read-only file system; make it writable .*run\.lock'"),
        _folder.locked(tmp_path, print),
    ):
        pass


def test_a_folder_that_is_moved_aside_meanwhile_is_not_written_to(tmp_path, monkeypatch):
    """Another process moves it between the moments when this one opens the lock and gets it."""
    directory = tmp_path / "run"
    directory.mkdir()
    flock = fcntl.flock

    def moved(*arguments):
        directory.rename(tmp_path / "run.old-1")
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", moved)
    with (
        pytest.raises(ValueError, match=r"run: expected no other process .* has just moved it aside"),
        _folder.locked(directory, print),
    ):
        pytest.fail("it was locked")
    assert (tmp_path / "run.old-1" / _folder.LOCK).read_bytes() == b""


def test_options_that_may_change_are_recorded_and_others_refused(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    config = runs.tiny(tmp_path, model=configs.ModelConfig(weights=weights))
    config.folder.mkdir()
    _options.write(config, [], _options.weights_checksum(config))
    saved = _options.read(config.folder)
    moved = tmp_path / "elsewhere" / "other.safetensors"
    moved.parent.mkdir()
    weights.rename(moved)
    changed = dataclasses.replace(
        config,
        name="renamed",
        model=configs.ModelConfig(weights=moved),
        eval_every=5,
        checkpoint_every=7,
        keep_last=9,
        learner=configs.LearnerConfig(learning_rate=1e-5),
    )
    _options.check_same(changed, saved)
    _options.check_weights(changed, saved)
    assert _options.changes(changed, saved, 4) == [
        {"round": 4, "option": "checkpoint_every", "was": 2, "is": 7},
        {"round": 4, "option": "eval_every", "was": 3, "is": 5},
        {"round": 4, "option": "keep_last", "was": 2, "is": 9},
        {"round": 4, "option": "learner.learning_rate", "was": 3e-4, "is": 1e-5},
    ]
    moved.write_bytes(b"two")
    message = r"model: expected the weights that .* was started from, got .* another content; name those"
    for started in (saved, saved | {"weights_checksum": None}):
        with pytest.raises(ValueError, match=message):
            _options.check_weights(changed, started)
    with pytest.raises(ValueError, match=r"seed = 3 \(was 0\)"):
        _options.check_same(dataclasses.replace(config, seed=3), saved)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[" * 100_000, "[1]", json.dumps({"task": 1}), "\0" * 50], ids=range(6)
)
def test_damaged_options_are_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: expected the options of a run, got .*; put it back"):
        _options.read(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: expected the options of a run, got none \(No such file"):
        _options.read(tmp_path)
