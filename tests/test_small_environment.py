"""The selector needs jax, numpy, scipy and optax alone; the other dependencies of the project may be missing."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

NEEDED = ("jax", "numpy", "scipy", "optax")
ROOT = Path(__file__).parents[1]
# Select, observe, save and load with every method, and a training loop of one's own.
PROGRAM = """
import sys
import numpy as np
from dps_jax import PromptSelector, selectors
from dps_jax.integrations import _building, _fingerprints, _outcomes, _states, _versions
from dps_jax.integrations.torch import SelectedPrompts

folder = sys.argv[1]
groups, features = np.arange(12) % 3, np.random.default_rng(0).normal(size=(12, 2))
for method in selectors.SELECTORS:
    selector = PromptSelector(12, method, groups=groups, features=features)
    ids = selector.select(4)
    _outcomes.observe(selector, np.repeat(ids, 2), [0, 1] * 4, None, "reward")
    selector.commit()
    selector.save(f"{folder}/{method}.npz")
    loaded = PromptSelector.load(f"{folder}/{method}.npz")
    assert loaded.select(4).tolist() == selector.select(4).tolist(), method

rows = [{"prompt": str(number)} for number in range(12)]
selector = _building.default_selector(12, 2)
prompts, other = (SelectedPrompts(made, rows, 4) for made in (selector, _building.default_selector(12, 2)))
ids = [prompts[0]["prompt_id"] for _ in range(4)]
prompts.observe(ids, [[0, 1]] * 4)
other.load_state_dict(prompts.state_dict())
assert [other[0] for _ in range(4)] == [prompts[0] for _ in range(4)]
_states.save(folder, selector, _fingerprints.fingerprint(rows))
_states.restore(folder, other.selector, _fingerprints.fingerprint(rows))
assert _versions.require("numpy", "1", "99") is np
print(len(selectors.SELECTORS), "methods")
"""


def with_dependencies(names):
    """Returns names of distributions, with all that they need, as installed here."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            needed = [text for text in importlib.metadata.requires(name) or [] if "extra ==" not in text]
            waiting += [re.match(r"[\w.-]+", text).group() for text in needed]
    return found


def test_other_packages_are_not_imported(tmp_path):
    # Others refuse to be imported. SciPy and JAX ask for some that they can do without.
    own = {"dps_jax", "jax_plugins"}
    packages = importlib.metadata.packages_distributions()
    allowed = with_dependencies(NEEDED)
    known = {
        package for package, names in packages.items() if any(n.lower().replace("_", "-") in allowed for n in names)
    }
    refused = sorted(set(packages) - known - own)
    finder = f"""
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder)
"""
    assert {"flax", "numpyro", "tyro", "rich", "orbax"} <= set(refused)
    command = [sys.executable, "-c", finder + PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("methods\n")


@pytest.mark.slow
def test_an_environment_without_dependencies(tmp_path):
    """The wheel of the project, installed without its dependencies beside the four packages."""
    wheels, environment, results = tmp_path / "wheels", tmp_path / "environment", tmp_path / "results"
    results.mkdir()
    # A build leaves files beside the sources.
    sources = tmp_path / "sources"
    shutil.copytree(ROOT / "dps_jax", sources / "dps_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, sources)
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Linked and not installed, which takes no time.
    for name in with_dependencies(NEEDED):
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(importlib.metadata.distribution(name).locate_file(top))
    (wheel,) = wheels.iterdir()
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    listed = run(*pip, "--python", python, "list")
    assert "dps-jax" in listed
    assert "flax" not in listed
    assert run(python, "-c", PROGRAM, results).endswith("methods\n")
