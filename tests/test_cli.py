"""Help texts of commands: docstrings of fields as paragraphs, and the name of the command."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from dps_jax import _cli

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Inner:
    """An inner part."""

    rate: float = 0.5
    """First line of a help text
    and its second line."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """An outer part."""

    inner: Inner = dataclasses.field(default_factory=Inner)
    num: int = 3
    """One line
        and an indented one."""


def test_fields_of_all_levels_have_help_in_one_paragraph(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["command", "--help"])
    with pytest.raises(SystemExit):
        _cli.cli(Outer, description="What it does.", prog="python -m command")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: python -m command" in shown
    assert "What it does." in shown
    assert "First line of a help text and its second line. (default: 0.5)" in shown
    assert "One line and an indented one. (default: 3)" in shown


def test_arguments_become_the_config(monkeypatch):
    monkeypatch.setattr("sys.argv", ["command", "--inner.rate", "0.25"])
    assert _cli.cli(Outer) == Outer(inner=Inner(rate=0.25))


def test_modules_are_imported_first_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_rates.py").write_text("from tests import test_cli\n\ntest_cli.Inner.rate = 0.75\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Inner, "rate", 0.5)
    monkeypatch.setattr("sys.argv", ["command", "--import", "my_rates", "--num", "4"])
    path = list(sys.path)
    assert _cli.cli(Outer, may_import=True).num == 4
    assert Inner.rate == 0.75
    assert sys.path == path


def test_a_module_that_cannot_be_imported_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["command", "--import=no_such_module"])
    with pytest.raises(SystemExit, match=rf"error: import: expected a module in {tmp_path}.*got 'no_such_module'"):
        _cli.cli(Outer, may_import=True)


def test_help_describes_the_import(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["command", "--help"])
    with pytest.raises(SystemExit):
        _cli.cli(Outer, may_import=True)
    assert "--import MODULE" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        _cli.cli(Outer)
    assert "--import" not in capsys.readouterr().out


def test_a_reader_of_the_help_may_stop_early():
    command = f"{sys.executable} experiments/train.py --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""
