import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEERS = {"dynamax": "one matrix: dynamax", "funsor": "one matrix: numpyro, enumeration"}


@pytest.mark.slow
def test_quick_run_measures_every_contestant(tmp_path):
    """The script itself checks that contestants agree before it measures; peers may not be installed."""
    command = [sys.executable, str(ROOT / "experiments" / "bench_priors.py"), "--quick", "--out-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    found = {f"{row['question']}: {row['contestant']}" for row in results["measurements"]}
    questions = ["one matrix", "two matrices", "beta-binomial", "online filter"]
    models = ["shared", "hierarchical", "grouped", "covariates", "online"]
    ours = {f"{question}: dps_jax" for question in [*questions, *(f"model {name}" for name in models)]}
    assert ours | {"online filter: vmap", "floor: floor"} <= found
    for package, label in PEERS.items():
        is_installed = importlib.util.find_spec(package) is not None
        assert (label in found) == is_installed
        assert (package in {entry["contestant"] for entry in results["skipped"]}) != is_installed
    assert all(row["median_s"] > 0 for row in results["measurements"])
    assert all(gap < 1e-3 for gaps in results["agreement"].values() for gap in gaps.values())
    assert "| one matrix: dps_jax |" in (tmp_path / "table.md").read_text()
