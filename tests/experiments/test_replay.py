"""The replay of predictors, at sizes of seconds."""

import importlib
import json

import numpy as np
import pytest
import tyro

from dps_jax import hmm, predictors, traces
from dps_jax.traces import scores
from dps_jax.traces.replay import replay


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        patch.setattr(importlib.import_module("replay"), "DPS_DECAYS", (0.0, 0.7))
        patch.setattr(importlib.import_module("replay"), "FIXED_DECAYS", (0.9,))
        patch.setattr(importlib.import_module("replay"), "CLOSED_LOOP", ("dps", "uniform"))
        yield importlib.import_module("replay")


def tiny(script, folder, **changes):
    sizes = {"num_prompts": 30, "num_rounds": 8, "batch_size": 6, "num_seeds": 1, "num_loop_seeds": 2}
    options = {
        "regimes": ("mixed",),
        "runs": (),
        "panels": (),
        "methods": ("binomial_hmm", "dps", "constant"),
        "out_dir": folder,
    }
    return script.Config(**options | sizes | changes)


def test_defaults_and_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(script.Config, args=["--help"], description=script.__doc__)
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert tyro.cli(script.Config, args=[]) == script.Config()


def test_with_traces_of_ones_own_nothing_else_is_replayed_unless_it_is_named(script, tmp_path):
    config = script.Config(traces=(tmp_path / "log.npz",))
    assert (config.regimes, config.runs, config.panels) == ((), (), ())
    config = script.Config(traces=(tmp_path / "log.npz",), runs=("dps-1",))
    assert (config.regimes, config.runs, config.panels) == ((), ("dps-1",), ())
    usual = script.Config()
    assert (len(usual.regimes), len(usual.runs), len(usual.panels)) == (len(traces.REGIMES), 3, 5)


def test_groups_and_features_beside_a_trace_are_used(script, tmp_path):
    path = tmp_path / "log.npz"
    traces.write_trace(path, traces.Trace(*np.array([[0, 0, 1], [7, 3, 7], [2, 1, 3], [4, 4, 4]])))
    config = script.Config(traces=(path,))
    assert script.own_trace(config, path).groups is None
    np.savez(tmp_path / "prompts.npz", prompt_id=[7, 5, 3], groups=[2, 9, 1], features=[[0.5], [9.0], [0.25]])
    source = script.own_trace(config, path)
    np.testing.assert_array_equal(source.visits.prompt_ids, [3, 7])
    np.testing.assert_array_equal(source.groups, [1, 2])
    np.testing.assert_array_equal(source.features, [[0.25], [0.5]])
    np.savez(tmp_path / "prompts.npz", groups=np.arange(8))
    np.testing.assert_array_equal(script.own_trace(config, path).groups, [3, 7])
    np.savez(tmp_path / "prompts.npz", groups=np.arange(7))
    with pytest.raises(ValueError, match=r"prompts.npz: groups: expected an entry .* got none for prompt 7; add it"):
        script.own_trace(config, path)


@pytest.mark.slow
def test_replay_scores_all_prompts_and_goes_on(script, tmp_path, monkeypatch):
    trace = traces.simulate_learners(np.random.default_rng(5), num_prompts=20, num_rounds=6, batch_size=5).trace
    traces.write_trace(tmp_path / "own.csv", trace)
    config = tiny(script, tmp_path / "out", traces=(tmp_path / "own.csv",))
    results = script.main(config)
    assert set(results["sources"]) == {"mixed", str(tmp_path / "own.csv")}
    for (found,) in results["sources"].values():
        fixed = {"dps, decay 0.0", "dps, decay 0.7", "binomial_hmm, decay 0.9"}
        assert set(found["scores"]) == {"oracle", "binomial_hmm", "dps", "constant"} | fixed
        every = found["scores"]["dps"]
        assert every["cold"]["visits"] + every["revisited"]["visits"] == every["all"]["visits"]
        # The default of DPS is one of the decays of the grid.
        assert {"all": every["all"]} == found["scores"]["dps, decay 0.7"]
        assert found["scores"]["oracle"]["all"]["log_loss"] < found["scores"]["constant"]["all"]["log_loss"]
        mean, low, high = found["log_loss_minus_first"]["constant"]
        assert low <= mean <= high
        expected = found["scores"]["constant"]["all"]["log_loss"] - found["scores"]["binomial_hmm"]["all"]["log_loss"]
        assert mean == pytest.approx(expected, abs=3e-5)  # five decimals are kept
    runs = results["closed_loop"]["mixed"]
    assert {len(seeds) for seeds in runs.values()} == {2}
    assert all(best["regret"] == 0 <= run["regret"] for run, best in zip(runs["dps"], runs["oracle"], strict=True))
    assert runs["dps"][0] != runs["dps"][1]
    assert json.loads((config.folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert "| mixed |" in (config.folder / "table.md").read_text()
    for name in ("skill.png", "reliability.png"):
        assert (config.folder / name).stat().st_size > 5_000

    monkeypatch.setattr(script, "replay_source", lambda *_: pytest.fail("was replayed again"))
    monkeypatch.setattr(script, "close_loop", lambda *_, **__: pytest.fail("was run again"))
    assert json.dumps(script.main(config)) == json.dumps(results)


def test_bad_options(script, tmp_path):
    with pytest.raises(ValueError, match=r"regimes: expected one of .* got 'easy'"):
        tiny(script, tmp_path, regimes=("easy",))
    with pytest.raises(ValueError, match=r"methods: expected one of .* got 'best'"):
        tiny(script, tmp_path, methods=("best",))
    with pytest.raises(ValueError, match=r"batch_size: expected an integer .* got 60"):
        tiny(script, tmp_path, batch_size=60)
    with pytest.raises(ValueError, match=r"runs: expected one of .*'dense-0'.* got 'none'"):
        script.main(tiny(script, tmp_path, runs=("none",)))


def test_the_oracle_of_a_trace_knows_its_other_visits(script):
    """Two prompts, always solved and never: every visit is known from the others."""
    rounds = np.repeat(np.arange(6), 2)
    ids = np.tile([0, 1], 6)
    trace = traces.Trace(rounds, ids, np.where(ids == 0, 8, 0), np.full(12, 8))
    source = script.Source(script.visits_of(trace), None, None, None, 8)
    probs = script.smoothing_oracle(source)
    np.testing.assert_allclose(probs.sum(axis=-1), 1)
    assert probs[::2, -1].min() > 0.9
    assert probs[1::2, 0].min() > 0.9
    # A visit does not know itself: where it is the only one, all that is known is the share of the trace.
    once = source._replace(visits=script.visits_of(trace.take(slice(0, 2))))
    np.testing.assert_allclose(*script.smoothing_oracle(once))


def write(path, counts, *, num_rounds=6):
    """Writes a trace of two prompts with the given numbers of completions, in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = np.resize(counts, 2 * num_rounds)
    traces.write_trace(
        path, traces.Trace(np.repeat(np.arange(num_rounds), 2), np.tile([0, 1], num_rounds), size // 2, size)
    )
    return path


def test_every_visit_is_scored_at_its_own_count(script, tmp_path):
    path = write(tmp_path / "own.csv", [8, 8, 8, 16, 8, 1])
    config = tiny(script, tmp_path / "out", regimes=(), traces=(path,), methods=("dps", "constant"), closed_loop=False)
    results = script.main(config)
    (found,) = results["sources"][str(path)]
    assert found["scores"]["dps"]["all"]["visits"] == 12
    assert sum(found["reliability"]["dps"]["visits"]) == 12
    assert f"| {path} | 12 | " in (config.folder / "table.md").read_text()
    # What cannot be said, as the AUC where all visits are alike, is null and not NaN.
    json.loads((config.folder / "results.json").read_text(), parse_constant=pytest.fail)


def test_a_trace_that_grew_is_replayed_again_and_names_share_nothing(script, tmp_path):
    one, other = write(tmp_path / "a" / "b.npz", [8]), write(tmp_path / "a-b.npz", [4], num_rounds=3)
    config = tiny(script, tmp_path / "out", regimes=(), traces=(one, other), methods=("constant",), closed_loop=False)
    visits = lambda path: script.main(config)["sources"][str(path)][0]["scores"]["constant"]["all"]["visits"]
    assert (visits(one), visits(other)) == (12, 6)
    write(one, [8], num_rounds=9)
    assert (visits(one), visits(other)) == (18, 6)
    for part in (config.folder / "parts").iterdir():
        part.write_text(part.read_text()[:40])
    assert (visits(one), visits(other)) == (18, 6)


def test_own_traces_have_a_folder_of_their_own(script, tmp_path, monkeypatch):
    folders = {
        script.Config(traces=paths).folder for paths in ((), (tmp_path / "a-b.npz",), (tmp_path / "a" / "b.npz",))
    }
    assert len(folders) == 3
    assert script.Config().folder.as_posix() == "runs/replay"


def test_documents_say_what_the_results_say(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        report = importlib.import_module("_replay_report")
    root = request.config.rootpath
    results = json.loads((root / "docs" / "results" / "replay.json").read_text())
    page = (root / "docs" / "predictors.md").read_text()
    for name, text in (("replay", report.to_markdown(results)), ("replay_findings", report.findings(results))):
        assert f"<!-- {name}:begin -->\n{text.rstrip()}\n<!-- {name}:end -->" in page


def test_findings_of_little(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        report = importlib.import_module("_replay_report")
    results = json.loads((request.config.rootpath / "docs" / "results" / "replay.json").read_text())
    empty = {"config": {"methods": ["dps"]}, "sources": {}, "panels": {}, "closed_loop": {}}
    assert report.findings(empty).strip() == ""
    only = report.findings({**results, "panels": {}, "closed_loop": {}})
    assert only.startswith("* **Traces.** `binomial_hmm` has the lowest log loss on ")
    assert only.count("*") == 5


def test_fitted_priors_and_registered_predictors_are_methods_too(script, tmp_path, monkeypatch):
    path = tmp_path / "fitted.json"
    hmm.TransitionPrior(np.full(3, 1 / 3), np.eye(3) + 0.5, emission=hmm.binomial([0.1, 0.5, 0.9]), decay=0.9).save(
        path
    )
    monkeypatch.setitem(
        predictors.PREDICTORS, "quick", lambda *, group_size=8: predictors.mopps(decay=0.1, group_size=group_size)
    )
    config = tiny(script, tmp_path / "out", methods=("quick", "constant"), priors=(path,), closed_loop=False)
    results = script.main(config)
    name = "dps, prior fitted"
    assert results["config"]["methods"] == ["quick", "constant", name]
    (found,) = results["sources"]["mixed"]
    visits = script.simulated(config, "mixed", config.first_seed).visits
    probs = replay(predictors.hmm(path, group_size=8), visits)
    np.testing.assert_allclose(
        found["scores"][name]["all"]["log_loss"], scores.log_losses(probs, visits.successes).mean(), atol=1e-5
    )
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"| {name} |" in table
    assert "nan" not in table
    with pytest.raises(ValueError, match="priors: expected files of different names"):
        tiny(script, tmp_path, priors=(path, path))
    with pytest.raises(ValueError, match=r"missing\.json: expected the JSON file of a prior"):
        tiny(script, tmp_path, priors=(tmp_path / "missing.json",))


def test_a_log_that_cannot_be_read_leaves_no_folder(script, tmp_path):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"log\.csv"):
        script.main(script.Config(traces=(tmp_path / "log.csv",), out_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
