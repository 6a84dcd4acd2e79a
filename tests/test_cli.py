"""Help texts of commands: docstrings of fields as paragraphs, and the name of the command."""

import dataclasses

import pytest

from dps_jax import _cli


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
