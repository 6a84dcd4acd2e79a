"""python -m dps_jax: versions, devices, where to start."""

import re
import subprocess
import sys

import jax
import pytest

import dps_jax
from dps_jax import __main__ as command


def test_the_command_prints_versions_devices_and_where_to_start():
    done = subprocess.run([sys.executable, "-m", "dps_jax"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"dps_jax {dps_jax.__version__}, Python {sys.version.split()[0]}")
    assert f"jax               {jax.__version__}\n" in done.stdout
    assert f"(backend {jax.default_backend()}, 1 process)" in done.stdout
    # Every command that it names is there.
    for module in re.findall(r"python -m (dps_jax\.\w+)", done.stdout):
        help_text = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        assert "usage" in help_text.stdout
    for name in re.findall(r"(?<!-m )dps_jax\.([A-Z]\w+)", done.stdout):
        assert getattr(dps_jax, name).__doc__


def test_a_backend_that_does_not_start_is_a_line(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", fail)
    assert "Devices: none, because JAX failed to start: Unable to initialize backend 'tpu'" in command.report()


def test_packages_that_are_missing_are_named(monkeypatch):
    known = command.version_of
    monkeypatch.setattr(command, "version_of", lambda name: "not installed" if name == "flax" else known(name))
    assert "flax              not installed" in command.report()
    monkeypatch.setattr(command.importlib.metadata, "requires", lambda name: ["nothing-such>=1 ; extra == 'parquet'"])
    assert command.extras() == {"parquet": ["nothing-such"]}
    assert "Extras: none; not installed: parquet" in command.report()


def test_an_argument_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["train"])
    assert "unrecognized arguments: train" in capsys.readouterr().err
