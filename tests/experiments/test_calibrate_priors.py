"""Simulation-based calibration of one model, and that it notices a model that is wrong."""

import importlib
import json

import numpy as np
import pytest
import tyro
from rich.console import Console


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        yield importlib.import_module("calibrate_priors")


NUM_TRACES = 24
# Three rows and an initial distribution of three states, two free numbers each. Coverage is counted over all twelve
# entries, which are as many coins as there are free numbers at the least.
NUM_FREE = 8


def config_of(script, folder, **changes):
    sizes = {
        "models": ("shared",),
        "emissions": ("exact",),
        "num_datasets": NUM_TRACES,
        "num_together": NUM_TRACES // 2,
        "num_prompts": 20,
        "num_rounds": 8,
        "batch_size": 10,
        "num_warmup": 120,
        "num_draws": 99,
        "thin": 2,
        "max_tree_depth": 4,
    }
    return script.Config(**sizes | {"out_dir": folder} | changes)


def coverage_band(script):
    """Returns what a share of intervals that hold with probability 0.9 is within, but for one time in 2,000."""
    return 0.9 + np.array([-3.5, 3.5]) * np.sqrt(0.9 * 0.1 / (NUM_TRACES * NUM_FREE))


@pytest.fixture(scope="module")
def run(script, tmp_path_factory):
    config = config_of(script, tmp_path_factory.mktemp("calibration"))
    return config, script.main(config)


def test_defaults_and_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(script.Config, args=["--help"], description=script.__doc__)
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert tyro.cli(script.Config, args=[]) == script.Config()


@pytest.mark.slow
def test_intervals_of_a_right_model_hold(script, run):
    _, results = run
    (row,) = results["models"]
    low, high = coverage_band(script)
    assert low < row["coverage"] < high
    assert row["num_parameters"] == 12
    # Holm's p value of the worst of twelve histograms: below 0.001 one time in 1,000.
    assert row["adjusted_p_value"] > 0.001
    assert row["divergent_per_trace"] < 1


@pytest.mark.slow
def test_results_table_and_figure_are_written(run):
    config, results = run
    assert json.loads((config.out_dir / "results.json").read_text()) == results
    assert "| shared | exact | 20 x 8, " in (config.out_dir / "table.md").read_text()
    assert (config.out_dir / "ranks.png").stat().st_size > 5_000


@pytest.mark.slow
def test_a_transposed_matrix_is_noticed(script, tmp_path, monkeypatch):
    right = script.distributions

    def transposed(*arguments):
        initial, matrix = right(*arguments)
        turned = np.swapaxes(matrix, 0, 1)
        return [initial, turned / turned.sum(axis=1, keepdims=True)]

    monkeypatch.setattr(script, "distributions", transposed)
    (row,) = script.main(config_of(script, tmp_path))["models"]
    assert row["coverage"] < coverage_band(script)[0]
    assert row["adjusted_p_value"] < 0.001


@pytest.mark.slow
def test_an_interrupted_run_goes_on(script, run, tmp_path, monkeypatch):
    config, results = run
    # Done: nothing is simulated again.
    with monkeypatch.context() as patch:
        patch.setattr(script, "simulate", lambda *_: pytest.fail("was simulated again"))
        assert script.main(config)["models"] == results["models"]
    # Killed in the second part: the first is used as it is, the second comes out as it would have.
    folder = config.out_dir / "shared-exact"
    parts = sorted(folder.glob("traces_*.npz"))
    assert [path.name for path in parts] == ["traces_00000.npz", f"traces_{NUM_TRACES // 2:05d}.npz"]
    first_time = parts[0].stat().st_mtime_ns
    parts[1].rename(parts[1].with_suffix(".partial.npz"))
    assert script.main(config)["models"] == results["models"]
    assert parts[0].stat().st_mtime_ns == first_time


def test_parts_of_another_size_are_not_taken_for_these(script, tmp_path):
    """A folder of a run with other options must not be mixed into this one."""
    folder = tmp_path / "shared-exact"
    folder.mkdir()
    (tmp_path / "results.json").write_text(json.dumps({"config": {"num_prompts": 60}}))
    for start in (0, NUM_TRACES // 2):
        part = {"rank:initial_probs": np.ones((NUM_TRACES // 2, 3), int)}
        np.savez(folder / f"traces_{start:05d}.npz", num_divergent=np.zeros(NUM_TRACES // 2, int), **part)
    config = config_of(script, tmp_path)
    with pytest.raises(ValueError, match=r"out_dir: expected"):
        script.calibrate(config, "shared", "exact", Console(quiet=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("markov",)}, r"models: expected one of .* got 'markov'"),
        ({"emissions": ("normal",)}, r"emissions: expected one of .* got 'normal'"),
        ({"batch_size": 21}, r"batch_size: expected an integer >= 1 and <= 20, got 21"),
        ({"num_bins": 7}, r"num_bins: expected a divisor of 100, got 7"),
        ({"num_datasets": 0}, r"num_datasets: expected an integer >= 1, got 0"),
    ],
)
def test_bad_options(script, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(script, tmp_path, **changes)
