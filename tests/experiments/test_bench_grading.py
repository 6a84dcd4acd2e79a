import importlib
import json

import pytest


@pytest.mark.slow
def test_pool_and_loop_agree(monkeypatch, request, tmp_path):
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    bench_grading = importlib.import_module("bench_grading")
    results = bench_grading.main(bench_grading.Config(num=20, repeats=1, out_dir=tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert len(results["pairs"]) == 1
    assert set(results["start_s"]) == {"exact", "numeric", "math-verify", "countdown", "reasoning-gym"}
    with pytest.raises(ValueError, match="num: expected an integer >= 1, got 0"):
        bench_grading.Config(num=0)
