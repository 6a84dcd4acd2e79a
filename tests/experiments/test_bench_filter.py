import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# Every contestant is compiled for this alone; each has faster tests of its own.
@pytest.mark.slow
def test_quick_run_measures_every_contestant(tmp_path):
    """The script itself checks that all contestants agree before it measures."""
    command = [sys.executable, str(ROOT / "experiments" / "bench_filter.py"), "--quick", "--out-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    found = {row["contestant"] for row in results["measurements"]}
    expected = {"loop", "vmap", "dps", "dps: observe", "dps: select", "dps, compact", "binomial_hmm", "top_k", "floor"}
    assert expected | {"copy"} <= found
    assert all(row["median_s"] > 0 for row in results["measurements"])
    assert max(results["agreement"]["1000"].values()) < 1e-2
    assert (tmp_path / "time_per_cycle.png").stat().st_size > 10_000
    assert "| dps |" in (tmp_path / "table.md").read_text()
