"""The panel of the main job, at sizes of seconds."""

import importlib
import json

import numpy as np
import pytest
import tyro

from dps_jax.traces import read_trace
from dps_jax.traces.panel import Panel, read_panel
from dps_jax.training import _trainer


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        yield importlib.import_module("make_panel")


def test_defaults_and_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(script.Config, args=["--help"], description=script.__doc__)
    assert stop.value.code == 0
    assert "held out" in capsys.readouterr().out
    assert tyro.cli(script.Config, args=[]) == script.Config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ("best-0",)}, "runs: expected one of 'arcsine', .* got 'best'"),
        ({"runs": ("dps",)}, "runs: expected names METHOD-SEED, such as 'dps-1', got 'dps'"),
        ({"runs": ("dps-a",)}, "runs: expected names METHOD-SEED, .* got 'dps-a'"),
        ({"period": 0}, "period: expected an integer >= 1, got 0"),
        ({"period": 3000}, "period: expected at most num_prompts = 2400, got 3000"),
    ],
)
def test_bad_options(script, options, message):
    with pytest.raises(ValueError, match=message):
        script.Config(**options)


def small_panel(config, run, console):
    """Returns a panel without a run: prompts 0, 3, ... are swept in round 0, and prompts 0 and 1 trained on."""
    del console
    rng = np.random.default_rng(len(run))
    rounds, ids = np.arange(config.num_rounds)[:, None], np.arange(config.num_prompts)
    outcomes = rng.integers(0, 9, (config.num_rounds, config.num_prompts)).astype(np.int8)
    swept = np.where(ids % config.period == rounds % config.period, outcomes, np.int8(-1))
    trained = np.where((ids < 2) & (rounds >= 0), outcomes, np.int8(-1))
    return Panel(swept, trained, 8, np.zeros(ids.size, np.int8), np.zeros((ids.size, 2), np.int32), run[:-2])


def test_killed_between_runs_it_goes_on(script, tmp_path, monkeypatch):
    config = script.Config(runs=("dps-0", "uniform-1"), num_prompts=7, num_rounds=4, period=3, out_dir=tmp_path)
    asked = []

    def until_killed(config, run, console):
        asked.append(run)
        if run == "uniform-1" and asked.count(run) == 1:
            raise KeyboardInterrupt
        return small_panel(config, run, console)

    monkeypatch.setattr(script, "make_panel", until_killed)
    with pytest.raises(KeyboardInterrupt):
        script.main(config)
    first = json.loads((tmp_path / "panel.json").read_text())["runs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dps-0.npz", "panel.json"]

    found = script.main(config)
    assert asked == ["dps-0", "uniform-1", "uniform-1"]
    index = json.loads((tmp_path / "panel.json").read_text())["runs"]
    assert index["dps-0"] == first["dps-0"]
    assert [index[run]["use"] for run in config.runs] == ["tuning", "held out"]
    assert [index[run]["seed"] for run in config.runs] == [0, 1]
    for run in config.runs:
        assert index[run]["made"]["machine"]["backend"] == "cpu"
        assert {name: value for name, value in index[run].items() if name != "made"} == found[run]
    assert (found["dps-0"]["period"], found["dps-0"]["groups_swept"]) == (3, 3 + 2 + 2 + 3)
    short = small_panel(script.Config(num_prompts=7, num_rounds=2, period=3), "dps-0", None)
    assert script.describe("dps-0", short)["period"] is None


def test_the_panels_that_come_with_the_library(script):
    index = json.loads((script.PANELS / "panel.json").read_text())["runs"]
    paths = sorted(script.PANELS.glob("*.npz"))
    assert [path.stem for path in paths] == sorted(index) == sorted(script.Config().runs)
    assert sum(path.stat().st_size for path in script.PANELS.iterdir()) < 4_000_000
    for run, known in index.items():
        panel, made = read_panel(script.PANELS / f"{run}.npz"), known.pop("made")
        assert script.describe(run, panel) == known
        assert made["machine"]["jax"]
        assert (known["period"], known["group_size"]) == (script.Config().period, script.Config().group_size)
        ids = np.arange(panel.num_prompts)
        for place, (swept, trained) in enumerate(zip(panel.swept, panel.trained, strict=True)):
            np.testing.assert_array_equal(swept >= 0, ids % known["period"] == place % known["period"])
            assert np.sum(trained >= 0) == script.Config().batch_size
    # Panels of one seed share their prompts, those of others do not.
    one, same, other = (read_panel(script.PANELS / f"{run}.npz") for run in ("uniform-1", "dps-1", "uniform-0"))
    np.testing.assert_array_equal(one.features, same.features)
    assert not np.array_equal(one.features, other.features)


@pytest.mark.parametrize("run", ["uniform-0", "uniform-1", "dps-1", "dps-0"])
def test_sweeps_left_training_as_it_was(script, run):
    """The trainer recorded the same runs, without sweeps."""
    trained = read_panel(script.PANELS / f"{run}.npz").training_trace()
    recorded = read_trace(script.PANELS.parent / "traces" / f"{run}.npz")
    recorded = recorded.take(recorded.rounds < script.Config().num_rounds)
    order = np.lexsort((recorded.prompt_ids, recorded.rounds))
    for name in ("rounds", "prompt_ids", "successes", "counts"):
        np.testing.assert_array_equal(getattr(trained, name), getattr(recorded, name)[order])


@pytest.mark.slow
def test_panel_samples_all_prompts_and_trains_as_the_trainer_does(script, tmp_path):
    sizes = {"num_prompts": 10, "num_rounds": 4, "period": 3, "batch_size": 2, "group_size": 4}
    config = script.Config(runs=("dps-1",), out_dir=tmp_path / "panel", **sizes)
    found = script.main(config)
    panel = read_panel(tmp_path / "panel" / "dps-1.npz")
    assert found["dps-1"]["groups_swept"] == 4 + 3 + 3 + 4
    for index in range(4):
        np.testing.assert_array_equal(np.nonzero(panel.swept[index] >= 0)[0], np.arange(index % 3, 10, 3))
    train_config = script.dataclasses.replace(config.train_config("dps-1"), out_dir=tmp_path / "runs", eval_samples=1)
    task = script.dataclasses.replace(train_config.task, num_test=2)
    _trainer.train(script.dataclasses.replace(train_config, task=task))
    recorded = read_trace(tmp_path / "runs" / "dps-1" / "trace.npz")
    order = np.lexsort((recorded.prompt_ids, recorded.rounds))
    for name in ("rounds", "prompt_ids", "successes", "counts"):
        np.testing.assert_array_equal(getattr(panel.training_trace(), name), getattr(recorded, name)[order])
    # What is there is kept.
    before = (tmp_path / "panel" / "dps-1.npz").stat().st_mtime_ns
    assert script.main(config) == found
    assert (tmp_path / "panel" / "dps-1.npz").stat().st_mtime_ns == before
