"""The table of versions in the documentation is that of runs that passed."""

import importlib.util
import json
import platform
from pathlib import Path

import jax
import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "record_versions.py"
SUITE = '<testsuites><testsuite name="pytest" tests="1203" failures="{}" errors="0" skipped="3"/></testsuites>'


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
        path.write_text(SUITE.format(0))
        script.main(path, root)
    assert list(json.loads((root / "docs" / "results" / "compatibility.json").read_text())) == ["lowest", "newest"]
    page = (root / "docs" / "index.md").read_text()
    assert page.startswith("a\n<!-- compatibility:begin -->\n| Python | jax |")
    assert page.endswith("<!-- compatibility:end -->\nb\n")
    row = f"| {platform.python_version()} | {jax.__version__} |"
    assert page.count(row) == 2
    assert page.count("| 1,200 |") == 2


def test_a_suite_that_failed_is_not_recorded(script, root):
    path = root / "versions-lowest.xml"
    path.write_text(SUITE.format(1))
    with pytest.raises(SystemExit, match=r"expected a suite that passed, got .*'failures': 1"):
        script.main(path, root)
    assert "old" in (root / "docs" / "index.md").read_text()
