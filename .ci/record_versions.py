"""Records the versions that the test suite passed with, and writes the table of docs/index.md.

    python .ci/record_versions.py runs/versions-lowest.xml

Run by the Python of the environment that the tests ran in; the file is what `pytest --junitxml` wrote.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "flax", "optax", "numpyro", "orbax-checkpoint", "numpy")


def summary(path: Path) -> dict[str, int]:
    """Returns the numbers of tests by outcome.

    Raises:
      SystemExit: if a test failed, or none ran.
    """
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    found = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in found:
            found[name] += int(suite.get(name, "0"))
    if found["failures"] or found["errors"] or found["tests"] <= found["skipped"]:
        sys.exit(f"{path}: expected a suite that passed, got {found}; nothing was recorded")
    return found


def table(rows: dict[str, dict[str, str]]) -> str:
    """Returns the rows as a table."""
    lines = ["| Python | " + " | ".join(PACKAGES) + " | tests passed | date |", "|---" * (len(PACKAGES) + 3) + "|"]
    for row in rows.values():
        versions = [row[name] for name in ("python", *PACKAGES)]
        lines.append(f"| {' | '.join([*versions, row['passed'], row['date']])} |")
    return "\n".join(lines)


def main(path: Path, root: Path = ROOT) -> None:
    """Records one run; a former one under the same name is replaced."""
    found = summary(path)
    record = root / "docs" / "results" / "compatibility.json"
    rows = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    rows[path.stem.rpartition("-")[2]] = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "passed": f"{found['tests'] - found['skipped']:,}",
        "date": datetime.date.today().isoformat(),
    }
    rows = dict(sorted(rows.items()))
    record.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    page = root / "docs" / "index.md"
    pattern = re.compile(r"(<!-- compatibility:begin -->\n).*?(<!-- compatibility:end -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    page.write_text(pattern.sub(lambda match: match[1] + table(rows) + "\n" + match[2], text), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
