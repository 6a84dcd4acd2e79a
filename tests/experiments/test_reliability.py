"""A few kills of a tiny run; tests/training/test_damage.py has the damages, in one process."""

import importlib
import json
from pathlib import Path

import pytest


@pytest.fixture
def script(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    return importlib.import_module("reliability")


def test_killed_runs_come_to_the_same_end(script, tmp_path, monkeypatch):
    # The processes share what was compiled before.
    config = script.Config(num_kills=3, cases=("dps",), num_rounds=4, weights=None, has_damages=False, out_dir=tmp_path)
    monkeypatch.setattr(script.shutil, "rmtree", keep_whole(script.shutil.rmtree))
    results = script.main(config)
    found = results["kills"]["dps"]
    assert sum(found["kills"].values()) == 3
    assert found["different"] == []
    assert found["writes"] > 20
    assert script.is_fine(results)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert f"| dps | {found['kills']['time']} | {found['kills']['operation']} | {found['runs']} | 0 |" in (
        (tmp_path / "table.md").read_text()
    )
    # Another end would have been seen.
    (folder,) = tmp_path.glob("runs-*")
    whole, killed = (folder / name for name in ("dps-whole", "dps-killed"))
    assert script.differences(whole, killed) == []
    for name in ("policy.safetensors", "summary.json", "metrics.jsonl"):
        path = killed / name
        content = path.read_bytes()
        path.write_bytes(
            content[:-1] + b"\0" if name.startswith("policy") else content.replace(b"accuracy", b"acuracy")
        )
        assert script.differences(whole, killed) == [name]
        path.write_bytes(content)


def keep_whole(rmtree):
    """Returns a function that removes all but the folder of all runs, at which the test looks at the end."""
    return lambda path, **options: None if Path(path).name.startswith("runs-") else rmtree(path, **options)


def test_outcomes_are_judged(script, tmp_path):
    assert script.judge("trace.npz", "runs/trace.npz: bad", tmp_path, tmp_path) == "error that names the file"
    assert script.judge("an array of a checkpoint", "x/checkpoints: bad", tmp_path, tmp_path).startswith("error")
    assert script.judge("trace.npz", "it is bad", tmp_path, tmp_path) == "wrong: it is bad"
    results = {"kills": {}, "damages": [{"file": "a", "damage": "empty", "outcome": "wrong: it is bad"}]}
    assert not script.is_fine(results)
    assert script.is_fine({"kills": {}, "damages": []})
    with pytest.raises(ValueError, match=r"cases: expected one of 'dps', .* got 'mopps'"):
        script.Config(cases=("mopps",))


def test_the_page_says_what_the_results_say(script, request):
    root = request.config.rootpath
    page = (root / "docs" / "reliability.md").read_text()
    text = script.to_markdown(json.loads((root / "docs" / "results" / "reliability.json").read_text()))
    assert f"<!-- reliability:begin -->\n{text.rstrip()}\n<!-- reliability:end -->" in page
