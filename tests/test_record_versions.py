"""The table of versions in the documentation is that of runs that passed."""

import importlib.util
import json
import platform
from pathlib import Path

import jax
import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "record_versions.py"
CASE = '<testcase classname="tests.a" name="{}">{}</testcase>'


def suite(*cases):
    return (
        f'<testsuites><testsuite name="pytest">{"".join(CASE.format(*case) for case in cases)}</testsuite></testsuites>'
    )


PASSING = suite(*((f"test_{number}", "") for number in range(1200)), ("test_slow", "<skipped/>"))
FAILING = suite(("test_0", '<failure message="assert"/>'), ("test_1", ""))


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("record_versions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "index.md").write_text("a\n<!-- compatibility:begin -->\nold\n<!-- compatibility:end -->\nb\n")
    return tmp_path


def test_runs_are_recorded_by_name(script, root):
    for name in ("lowest", "newest", "lowest"):
        path = root / f"versions-{name}.xml"
        path.write_text(PASSING)
        script.main([path], root)
    assert list(json.loads((root / "docs" / "results" / "compatibility.json").read_text())) == ["lowest", "newest"]
    page = (root / "docs" / "index.md").read_text()
    assert page.startswith("a\n<!-- compatibility:begin -->\n| Python | jax |")
    assert page.endswith("<!-- compatibility:end -->\nb\n")
    row = f"| {platform.python_version()} | {jax.__version__} |"
    assert page.count(row) == 2
    assert page.count("| 1,200 |") == 2


def test_a_suite_that_failed_is_not_recorded(script, root):
    path = root / "versions-lowest.xml"
    path.write_text(FAILING)
    with pytest.raises(SystemExit, match=r"got 1 tests that did and these that did not: .*tests.a::test_0"):
        script.main([path], root)
    assert "old" in (root / "docs" / "index.md").read_text()
    again = root / "again.xml"
    again.write_text(suite(("test_0", "")))
    script.main([path, again], root)
    assert "| 2 |" in (root / "docs" / "index.md").read_text()
