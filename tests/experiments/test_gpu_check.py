"""The check of a GPU, at sizes of seconds."""

import dataclasses
import functools
import importlib
import json
import math
import subprocess
import sys

import jax
import pytest
from flax import nnx

from dps_jax import models

# What a script must not import, and that a machine may lack.
BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tyro", "orbax", "tokenizers", "jinja2", "pyarrow"):
            raise ImportError(f"blocked: {name}")

sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv.pop(1))
"""


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        yield importlib.import_module("gpu_check")


def test_a_small_run_imports_no_tyro_and_measures_everything(request, tmp_path):
    """In a process of its own, which ends the way it does on a GPU."""
    out = tmp_path / "new" / "results.json"
    code = (
        BLOCKED + "import runpy\nrunpy.run_module('gpu_check', run_name='__main__')\nassert 'tyro' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(request.config.rootpath / "experiments"), "--small", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(out.read_text())
    rows = {row["name"]: row for row in results["measurements"]}
    assert list(rows) == [
        *("copy", "matmul bfloat16", "matmul float32", "matmul float32, highest"),
        *("update 0.1m", "decode 0.1m, 8 rows", "dps, N = 4,096"),
    ]
    assert {row["status"] for row in rows.values()} == {"done"}
    assert results["is_complete"]
    assert results["machine"]["backend"] == "cpu"
    assert set(results["versions"]) == {"jax", "jaxlib", "flax", "optax", "numpy"}
    filtered, decoded, updated = rows["dps, N = 4,096"], rows["decode 0.1m, 8 rows"], rows["update 0.1m"]
    # Nine counts read, two odds read and written, one value written; and the value is read by selection.
    assert filtered["observe_bytes"] == 4096 * 4 * (9 + 2 * 2 + 1)
    assert filtered["cycle_bytes"] == filtered["observe_bytes"] + 4096 * 4
    assert filtered["share"] == pytest.approx(
        filtered["observe_bytes"] / filtered["observe_s"] / rows["copy"]["bytes_per_s"]
    )
    assert decoded["tokens_per_s"] > 128 / decoded["seconds"]
    assert decoded["share"] == pytest.approx(decoded["tokens_per_s"] / decoded["bound_tokens_per_s"])
    assert updated["share"] == pytest.approx(updated["flop_per_s"] / rows["matmul bfloat16"]["flop_per_s"])
    assert done.stdout.index("matmul bfloat16") < done.stdout.index("dps, N = 4,096")
    table = done.stdout[done.stdout.rindex("gpu_check") :]
    assert all(name in table for name in rows)


def test_an_exhausted_budget_is_listed(script, tmp_path, capsys):
    out = tmp_path / "results.json"
    results = script.main(["--small", "--only", "decode", "filter", "--budget-s", "0", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(results))
    assert {row["status"] for row in results["measurements"]} == {"left out"}
    assert {row["kind"] for row in results["measurements"]} == {"rate", "decode", "filter"}
    assert not results["is_complete"]
    assert "left out: 0 s of the budget were left" in capsys.readouterr().out


def planned(script, name, measure):
    return script.Planned("decode", name, measure)


def test_failures_are_recorded_and_the_others_go_on(script, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.json"

    def fail(error, rates):
        # A kill would lose nothing: what is being measured is in the file.
        assert json.loads(out.read_text())["measurements"][-1]["reason"] == "the run ended before"
        raise error

    found = {"tokens_per_s": 5.0, "bound_tokens_per_s": math.nan, "share": math.nan}
    plans = [
        planned(script, "broken", functools.partial(fail, jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out\nmore"))),
        planned(script, "too large", functools.partial(fail, script._gpu_check.DoesNotFit("it needs 9 GiB"))),
        planned(script, "good", lambda rates: found),
    ]
    monkeypatch.setattr(script, "plan", lambda sizes, kinds: plans)
    results = script.main(["--small", "--out", str(out)])
    assert json.loads(json.dumps(results)) == json.loads(out.read_text())
    broken, too_large, good = results["measurements"]
    assert (broken["status"], broken["reason"]) == ("failed", "JaxRuntimeError: RESOURCE_EXHAUSTED: out")
    assert broken["error"] == "RESOURCE_EXHAUSTED: out\nmore"
    assert (too_large["status"], too_large["reason"]) == ("left out", "it needs 9 GiB")
    # Rates of the device are missing here, and JSON has no NaN.
    assert (good["status"], good["tokens_per_s"], good["share"]) == ("done", 5.0, None)
    printed = capsys.readouterr().out
    assert "failed: JaxRuntimeError: RESOURCE_EXHAUSTED: out" in printed
    assert not results["is_complete"]


def test_a_measurement_that_outlasts_the_budget_is_stopped(request, tmp_path):
    out = tmp_path / "results.json"
    code = (
        "import sys, time\nsys.path.insert(0, sys.argv.pop(1))\nimport gpu_check\n"
        "slow = [gpu_check.Planned('rate', name, lambda rates: time.sleep(300)) for name in ('first', 'second')]\n"
        "gpu_check.plan = lambda sizes, kinds: slow\n"
        "gpu_check.main(is_stopped=True)\n"
    )
    command = [sys.executable, "-c", code, str(request.config.rootpath / "experiments"), "--small", "--out", str(out)]
    done = subprocess.run([*command, "--budget-s", "2"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["status"] for row in json.loads(out.read_text())["measurements"]] == ["stopped", "left out"]
    assert "stopped: the budget was over" in done.stdout
    assert "left out: the run ended before" in done.stdout


def test_what_does_not_fit_is_not_started(script, monkeypatch):
    monkeypatch.setattr(script._gpu_check._machine, "memory_bytes", lambda: (10**5, 10**5))
    sizes = script._gpu_check.SMALL
    for measure in (script._gpu_models.measure_decode, script._gpu_models.measure_update):
        args = ("0.1m", 8) if measure is script._gpu_models.measure_decode else ("0.1m",)
        with pytest.raises(script._gpu_check.DoesNotFit, match=r"0.1m.* needs 0\.0 GiB, 0\.0 GiB are free"):
            measure(*args, sizes, {})
    with pytest.raises(script._gpu_check.DoesNotFit, match="dps at N = 4,096 needs"):
        script._gpu_check.measure_filter("dps", 4096, sizes, {})


def test_the_full_plan(script):
    full = script._gpu_check.FULL
    names = [planned.name for planned in script.plan(full, script.KINDS)]
    assert len(names) == len(set(names)) == 4 + 9 + 6 + 3
    assert names[4:7] == [f"{name}, N = 10,000,000" for name in ("dps, compact", "binomial_hmm", "dps")]
    assert names[-4:] == ["dps, N = 1,000,000,000", *(f"decode {name}, 1024 rows" for name in full.shapes)]
    only = script.plan(full, ["update"])
    assert {planned.kind for planned in only} == {"rate", "update"}


def test_a_gpu_computes_updates_by_cudnn_too_and_a_failure_is_a_row(script, tmp_path, monkeypatch):
    small = script._gpu_check.SMALL
    with monkeypatch.context() as patch:
        patch.setattr(script.jax, "default_backend", lambda: "gpu")
        plans = script.plan(small, ["update"])[-2:]
    assert [planned.name for planned in plans] == ["update 0.1m", "update 0.1m, cudnn"]
    monkeypatch.setattr(script, "plan", lambda sizes, kinds: plans)
    results = script.main(["--small", "--out", str(tmp_path / "results.json")])
    blockwise, cudnn = results["measurements"]
    assert (blockwise["status"], blockwise["attention"]) == ("done", "blockwise")
    assert (cudnn["status"], cudnn["reason"][:30]) == ("failed", "ValueError: attention: expecte")


def test_bounds_count_what_a_model_needs(script):
    """Against counts by hand, of shapes as published."""
    full, gpu_models = script._gpu_check.FULL, script._gpu_models
    config = gpu_models.shape_of("qwen2.5-0.5b", full)
    moved = gpu_models.decode_bytes(config, 256, full)
    assert moved["weights"] == 2 * 494_032_768
    # 24 layers of 2 heads of 64 numbers, keys and values, 2 bytes: 12,288 bytes a token.
    assert moved["key_values"] == 12_288 * (32 * 256 + 256 * 512)
    assert moved["step"] == moved["weights"] + moved["key_values"]
    assert moved["caches"] == 12_288 * 256 * 1280
    params = jax.eval_shape(lambda: nnx.state(models.Decoder(config, rngs=nnx.Rngs(0)), nnx.Param))
    assert gpu_models.count_parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(params))
    positions, scored = 8 * 256 + 64 * 1023, 64 * 1024
    table = 151_936 * 896
    pairs = sum(8 * (place + 1) for place in range(256)) + sum(64 * (256 + place + 1) for place in range(1023))
    expected = 6 * ((494_032_768 - table) * positions + table * scored) + 12 * 24 * 14 * 64 * pairs
    assert gpu_models.update_flop(config, full) == pytest.approx(expected, rel=1e-12)


def test_it_is_written_into_the_documents(script, tmp_path, capsys):
    update_docs = importlib.import_module("update_docs")
    for folder in ("docs/results", "runs"):
        (tmp_path / folder).mkdir(parents=True)
    page, source = tmp_path / "docs" / "benchmarks.md", tmp_path / "runs"
    page.write_text("<!-- gpu_check:begin -->\nIt was not run on a GPU yet.\n<!-- gpu_check:end -->\n")
    results = script.main(["--small", "--budget-s", "0", "--out", str(source / "results.json")])
    missing = {field.name: tmp_path / "missing" for field in dataclasses.fields(update_docs.Config)}
    update = functools.partial(
        update_docs.main, update_docs.Config(**missing | {"gpu_check": source, "root": tmp_path})
    )
    update()
    assert "not run on a GPU yet" in page.read_text()
    assert "it was measured on a CPU" in capsys.readouterr().out
    results["options"]["small"] = False
    results["machine"] |= {"backend": "gpu", "device": "a GPU"}
    (source / "results.json").write_text(json.dumps(results))
    update()
    text = page.read_text()
    assert "| copy | left out: 0 s of the budget were left |" in text
    assert "\na GPU; JAX " in text
    assert "yet" not in text
    written = (tmp_path / "docs" / "results" / "gpu_check.json").read_text()
    assert json.loads(written) == json.loads(json.dumps(results))


@pytest.mark.slow
def test_a_filter_that_does_not_advance_all_prompts(script):
    sizes = script._gpu_check.SMALL
    found = script._gpu_check.measure_filter("binomial_hmm", 4096, sizes, {"copy": 1e10})
    assert (found["observe_s"], found["observe_bytes"], found["cycle_bytes"]) == (None, None, 4 * 4096)
    assert found["share"] == found["cycle_share"] == pytest.approx(4 * 4096 / found["cycle_s"] / 1e10)
    row = {"kind": "filter", "name": "one", "status": "done", "device_peak_bytes": 2**31, "is_device_peak_higher": True}
    cells = script._gpu_report.cells(row | found)
    assert cells[2].startswith("cycle ")
    assert cells[5] == "2.00 GiB"
