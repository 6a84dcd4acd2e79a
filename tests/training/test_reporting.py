import io

import pytest
from rich.console import Console

from dps_jax.training import _reporting
from dps_jax.training._reporting import Reporter, Standing

PATH = "/a/long/path/" + "x" * 150 + "/runs/train"


def lines_of(console):
    return console.file.getvalue().splitlines()


def test_a_message_is_one_line_wherever_it_goes():
    for options in ({"width": 40}, {"width": 80, "force_terminal": True}, {"width": 150}):
        console = Console(file=io.StringIO(), **options)
        _reporting.say(console, f"error: {PATH}: expected [red]a[/] folder")
        assert lines_of(console) == [f"error: {PATH}: expected [red]a[/] folder"]


@pytest.mark.parametrize("environment", [None, {"TERM": "dumb"}])
def test_without_a_terminal_there_is_a_line_now_and_then(environment, monkeypatch):
    options = {} if environment is None else {"_environ": environment, "force_terminal": True}
    console = Console(file=io.StringIO(), width=80, **options)
    clock = [0.0]
    monkeypatch.setattr(_reporting.time, "monotonic", lambda: clock[0])
    reporter = Reporter(console, "train", 200)
    assert not reporter.has_bar
    with reporter.shown(Standing(20)):
        for index in range(21, 81):
            clock[0] += 2.0
            reporter.update(Standing(index, 0.5, 0.25, 1600 * index))
    assert len(lines_of(console)) == 4
    expected = "round 35 of 200, 2.0 s each, about 6 min left: informative 0.50, test accuracy 0.25, 56,000 rollouts"
    assert lines_of(console)[0] == expected


@pytest.mark.parametrize("width", [40, 80, 150])
def test_a_bar_is_one_line_at_any_width(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, _environ={"TERM": "xterm", "LINES": "20"})
    reporter = Reporter(console, "a-run-with-a-rather-long-name-of-its-own", 200)
    assert reporter.has_bar
    with reporter.shown(Standing(0)):
        reporter.update(Standing(120, 0.5, 0.253, 4_000_000))
        reporter.say(PATH)
    assert PATH in console.file.getvalue()
    bar = _reporting._bar(Console(file=io.StringIO(), width=width))
    bar.add_task(
        "a-run-with-a-rather-long-name-of-its-own", total=200, completed=120, **reporter._fields(Standing(120))
    )
    shown = Console(file=io.StringIO(), width=width)
    shown.print(bar.get_renderable())
    (line,) = lines_of(shown)
    assert "120/200" in line
    assert "accuracy -" in line
