"""Checks the sdist and the wheel of `python -m build`, and that the wheel works in an empty environment.

    python .ci/check_package.py FOLDER

FOLDER holds one .tar.gz and one .whl. The wheel is installed with its dependencies into a new environment, and used
there.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

# Programs that a user runs first, as arguments of Python; each runs in a folder with a file trace.csv.
PROGRAMS = {
    "the command": ["-m", "dps_jax"],
    "a selector": [
        "-c",
        "import dps_jax, numpy as np; s = dps_jax.PromptSelector(50, method='instructive', group_size=8); "
        "ids = s.select(8); s.observe(ids, np.arange(8), 8); print(sorted(s.metrics()))",
    ],
    "every public part": [
        "-c",
        "import dps_jax; print([getattr(dps_jax, name).__name__ for name in dps_jax.__all__])",
    ],
    "the advice": ["-m", "dps_jax.advise", "trace.csv"],
    "the report": ["-m", "dps_jax.report", "trace.csv", "--out", "report.html"],
}
TRACE = "round,prompt_id,successes,count\n" + "".join(f"{t},{n},{(t + n) % 5},4\n" for t in range(8) for n in range(6))
SOURCES = {
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "PKG-INFO",
    "README.md",
    "pyproject.toml",
    "setup.cfg",
}


def check_names(wheel: Path, sdist: Path, package: Path) -> None:
    """Raises SystemExit unless wheel and sdist have all files of the package, and no others but `SOURCES`."""
    expected = {
        str(PurePosixPath(package.name, *path.relative_to(package).parts))
        for path in package.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    found = {name for name in names if ".dist-info/" not in name}
    if found != expected:
        sys.exit(f"{wheel.name}: expected the files of the package, got a difference: {sorted(found ^ expected)}")
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    others = {name for name in files - expected - SOURCES if ".egg-info/" not in name}
    if others or not expected | SOURCES <= files:
        missing = sorted((expected | SOURCES) - files)
        sys.exit(f"{sdist.name}: expected sources alone, got {sorted(others)} too, and not {missing}")


def check_use(wheel: Path) -> None:
    """Raises CalledProcessError unless the wheel installs into an empty environment and works there."""
    with tempfile.TemporaryDirectory() as folder:
        environment, work = Path(folder, "environment"), Path(folder, "work")
        work.mkdir()
        (work / "trace.csv").write_text(TRACE, encoding="utf-8")
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", wheel.resolve()], check=True)
        for what, arguments in PROGRAMS.items():
            print(f"-- {what}")
            subprocess.run([python, *arguments], cwd=work, check=True)


def main(folder: Path) -> None:
    """Checks the one wheel and the one sdist of a folder."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    check_names(wheel, sdist, Path(__file__).resolve().parents[1] / "dps_jax")
    check_use(wheel)
    print(f"{wheel.name} and {sdist.name} are as they should be.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
