"""Records the versions that the test suite passed with, and writes the table of docs/index.md.

    python .ci/record_versions.py runs/versions-lowest.xml [MORE.xml ...]

The script must run in the Python environment of the tests. The files were written by `pytest --junitxml`; further files
are from tests that were run again, such as those that failed.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "flax", "optax", "numpyro", "orbax-checkpoint", "numpy")


def summary(paths: Sequence[Path]) -> int:
    """Returns the number of tests that passed; if several files have a test, the last file counts.

    Raises:
      SystemExit: if a test failed, or none ran.
    """
    outcomes: dict[tuple[str | None, str | None], str] = {}
    for path in paths:
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
            outcomes[case.get("classname"), case.get("name")] = min(kinds, default="passed")
    failed = sorted(
        f"{place}::{name}" for (place, name), outcome in outcomes.items() if outcome in ("failure", "error")
    )
    passed = sum(outcome == "passed" for outcome in outcomes.values())
    if failed or not passed:
        sys.exit(
            f"{paths[-1]}: expected a suite that passed, got {passed} tests that did and these that did not: "
            f"{failed[:5]}"
        )
    return passed


def table(rows: dict[str, dict[str, str]]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| Python | " + " | ".join(PACKAGES) + " | tests passed | date |", "|---" * (len(PACKAGES) + 3) + "|"]
    for row in rows.values():
        versions = [row[name] for name in ("python", *PACKAGES)]
        lines.append(f"| {' | '.join([*versions, row['passed'], row['date']])} |")
    return "\n".join(lines)


def main(paths: Sequence[Path], root: Path = ROOT) -> None:
    """Records a run of the tests, with those that were run again; replaces an earlier run of the same name."""
    passed = summary(paths)
    record = root / "docs" / "results" / "compatibility.json"
    rows = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    rows[paths[0].stem.rpartition("-")[2]] = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "passed": f"{passed:,}",
        "date": datetime.date.today().isoformat(),
    }
    rows = dict(sorted(rows.items()))
    record.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    page = root / "docs" / "index.md"
    pattern = re.compile(r"(<!-- compatibility:begin -->\n).*?(<!-- compatibility:end -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    page.write_text(pattern.sub(lambda match: match[1] + table(rows) + "\n" + match[2], text), encoding="utf-8")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
