"""Sampling beside transformers, at a size for tests."""

import importlib
import json

import pytest


@pytest.mark.transformers
def test_sampling_is_measured_beside_transformers(folder, monkeypatch, request, tmp_path):
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    bench = importlib.import_module("bench_sampling")
    sizes = {"batch_size": 2, "group_size": 2, "prompt_lengths": (2, 5), "completion_length": 3, "repeats": 1}
    bench.main(bench.Config(model=folder, **sizes, out_dir=tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    fixed, longer, until_stop = results["measurements"]
    for row in (fixed, longer):
        assert row["tokens"] == {"ours": [12], "transformers": [12]}
    assert all(4 <= sum(until_stop["tokens"][name]) <= 4 * 12 for name in ("ours", "transformers"))
    assert "P = 5, T = 3" in (tmp_path / "table.md").read_text()
