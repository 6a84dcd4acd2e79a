"""The held-out comparison of priors, at sizes of seconds."""

import importlib
import json

import pytest
import tyro

FITS = {"online": ("online", {}, "map"), "shared": ("shared", {}, "map")}


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        module = importlib.import_module("compare_priors")
        patch.setattr(module, "FITS", FITS)
        yield module


def tiny(script, folder, **changes):
    sizes = {"num_prompts": 30, "num_rounds": 8, "batch_size": 12, "num_steps": 20, "fit_prompts": 16}
    return script.Config(**{"regimes": ("grouped",), "runs": (), "out_dir": folder} | sizes | changes)


def test_defaults_and_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(script.Config, args=["--help"], description=script.__doc__)
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert tyro.cli(script.Config, args=[]) == script.Config()


def test_table_and_figure_are_written(script, tmp_path, monkeypatch):
    config = tiny(script, tmp_path)
    results = script.main(config)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    source = results["sources"]["grouped"]
    assert source["num_prompts"] <= 30
    assert source["num_visits"] == 8 * 12
    losses = source["log_loss"]
    assert len(losses) == len(FITS) + 4 * len(script.DECAYS)
    named = {label: loss for label, loss in losses.items() if label not in FITS}
    assert source["best_named"] == min(named, key=lambda label: named[label])
    for label in FITS:
        gain = source["gain_over_best_named"][label]
        assert gain["mean"] == pytest.approx(named[source["best_named"]] - losses[label], abs=1e-9)
        assert gain["interval"][0] <= gain["mean"] <= gain["interval"][1]
    table = (tmp_path / "table.md").read_text()
    assert "| trace | best named prior and decay | DPS default | online | shared |" in table
    assert f"| grouped | {source['best_named']}: {named[source['best_named']]:.3f} |" in table
    assert (tmp_path / "log_loss.png").stat().st_size > 10_000

    # What was done is not done again.
    monkeypatch.setattr(script, "compare", lambda *_: pytest.fail("was run again"))
    assert script.main(config)["sources"] == results["sources"]


def test_results_of_other_sizes_are_not_taken_for_these(script, tmp_path, monkeypatch):
    class RunAgainError(Exception):
        pass

    def run_again(*_):
        raise RunAgainError

    done = {
        "best_named": "uniform 0.7",
        "log_loss": {f"{name} {decay}": 1.0 for name in script.PRIOR_NAMES for decay in script.DECAYS},
        "gain_over_best_named": {label: {"mean": 0.0, "interval": [0.0, 0.0]} for label in FITS},
    }
    done["log_loss"] |= dict.fromkeys(FITS, 1.0)
    (tmp_path / "grouped.json").write_text(json.dumps(done))
    (tmp_path / "results.json").write_text(json.dumps({"config": {"num_prompts": 600}}))
    monkeypatch.setattr(script, "compare", run_again)
    with pytest.raises((ValueError, RunAgainError)):
        script.main(tiny(script, tmp_path))


def test_bad_options(script, tmp_path):
    with pytest.raises(ValueError, match=r"regimes: expected one of .* got 'easy'"):
        tiny(script, tmp_path, regimes=("easy",))
    with pytest.raises(ValueError, match=r"num_steps: expected an integer >= 1, got 0"):
        tiny(script, tmp_path, num_steps=0)
    with pytest.raises(ValueError, match=r"runs: expected none-0\.npz in experiments/data/traces/, got none"):
        script.main(tiny(script, tmp_path, regimes=(), runs=("none",)))
