"""The script that fits a prior to a logged trace, at sizes of seconds."""

import importlib
import json
from pathlib import Path

import chex
import numpy as np
import pytest
import tyro

from dps_jax import PromptSelector, traces
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.training._config import SelectorConfig

NUM_PROMPTS = 30


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        yield importlib.import_module("fit_prior")


@pytest.fixture
def trace_file(tmp_path):
    learners = traces.simulate_learners(
        np.random.default_rng(0), "grouped", num_prompts=NUM_PROMPTS, num_rounds=8, batch_size=12
    )
    path = tmp_path / "run" / "trace.npz"
    path.parent.mkdir()
    traces.write_trace(path, learners.trace)
    features = np.stack([learners.groups, np.ones(NUM_PROMPTS), learners.groups**2], axis=1)
    np.savez(path.with_name("prompts.npz"), groups=learners.groups, features=features)
    return path


def test_help_and_defaults(script, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(script.Config, args=["--help"], description=script.__doc__)
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert tyro.cli(script.Config, args=["runs/x/trace.npz"]) == script.Config(Path("runs/x/trace.npz"))
    assert script.Config(Path("runs/x/trace.npz")).folder == Path("runs/priors/x-online")
    other = script.Config(Path("runs/x/trace.npz"), emission="binomial", num_states=4, split=True)
    assert other.folder == Path("runs/priors/x-online-binomial-4-states-split")


@pytest.mark.parametrize("model", ["online", pytest.param("grouped", marks=pytest.mark.slow)])
def test_all_files_are_written_and_are_of_use(script, trace_file, tmp_path, capsys, model):
    config = script.Config(trace_file, model=model, num_steps=20, num_samples=20, out_dir=tmp_path / "priors")
    results = script.main(config)
    folder = tmp_path / "priors" / f"run-{model}"
    assert results["folder"] == folder
    assert sorted(path.name for path in folder.iterdir()) == ["fit.json", "posterior.npz", "prior.json", "prior.png"]
    assert (folder / "prior.png").stat().st_size > 5_000
    facts = json.loads((folder / "fit.json").read_text(), parse_constant=pytest.fail)
    assert facts["trace"] == "../../run/trace.npz"
    assert facts["held_out"] == results["held_out"]
    assert facts["model"] == model
    held_out = facts["held_out"]
    assert held_out["num_prompts"] in (5, 6)
    low, high = held_out["gain"]["interval"]
    assert low <= held_out["gain"]["mean"] <= high
    assert held_out["gain"]["mean"] == pytest.approx(held_out["best_named_loss"] - held_out["fitted"])
    assert held_out["best_named_loss"] <= held_out["default"]
    text = capsys.readouterr().out
    assert "held-out prompts" in text
    assert f"--selector.prior {folder / 'prior.json'}" in text.replace("\n", " ").replace("  ", " ")

    path = folder / "prior.json"
    prior = TransitionPrior.load(path)
    assert bool(prior.groups) == (model == "grouped")
    chosen = SelectorConfig(method="dps", prior=str(path)).resolved_prior()
    np.testing.assert_array_equal(chosen.concentration, prior.concentration)
    groups = {"groups": np.zeros(NUM_PROMPTS, int)} if prior.groups else {}
    assert PromptSelector(NUM_PROMPTS, prior=str(path), **groups).select(4).size == 4


def test_side_information_is_found_beside_the_trace(script, trace_file, tmp_path):
    outcomes = script.load(script.Config(trace_file))
    with np.load(trace_file.with_name("prompts.npz")) as columns:
        groups = columns["groups"]
    ids = np.asarray(outcomes.prompt_ids)
    np.testing.assert_array_equal(outcomes.groups, groups[ids])
    # The column of ones says nothing; the others are standardised over all prompts.
    assert outcomes.features.shape == (ids.size, 2)
    np.testing.assert_allclose(outcomes.features[:, 0], ((groups - groups.mean()) / groups.std())[ids], rtol=1e-5)
    as_text = trace_file.with_suffix(".csv")
    traces.write_trace(as_text, traces.read_trace(trace_file))
    chex.assert_trees_all_equal(script.load(script.Config(as_text)), outcomes)
    other = tmp_path / "other.npz"
    np.savez(other, groups=np.full(NUM_PROMPTS, 3))
    elsewhere = script.load(script.Config(trace_file, prompts=other, last_rounds=2))
    assert set(elsewhere.groups.tolist()) == {3}
    assert elsewhere.features is None
    assert elsewhere.num_rounds == 2


def test_levels_of_prompts_whose_ids_are_hashes(script, trace_file, tmp_path):
    trace, hashes = traces.read_trace(trace_file), 2**40 * np.arange(NUM_PROMPTS) + 7
    path = tmp_path / "hashed.csv"
    traces.write_trace(path, trace._replace(prompt_ids=hashes[trace.prompt_ids], rounds=10 * trace.rounds))
    with np.load(trace_file.with_name("prompts.npz")) as columns:
        known = dict(columns)
    np.savez(tmp_path / "hashed.npz", **known, prompt_id=hashes)
    found = script.load(script.Config(path, prompts=tmp_path / "hashed.npz"))
    expected = script.load(script.Config(trace_file))
    assert found.prompt_ids.tolist() == hashes[expected.prompt_ids].tolist()
    for name in ("codes", "groups", "features"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.savez(tmp_path / "short.npz", **known, prompt_id=hashes[1:])
    with pytest.raises(ValueError, match=r"short\.npz: prompt_id: expected 30 different ids, one per entry of groups"):
        script.load(script.Config(path, prompts=tmp_path / "short.npz"))


def test_two_traces_never_share_a_folder(script, trace_file, tmp_path):
    config = script.Config(trace_file, out_dir=tmp_path / "priors")
    assert config.folder.name == "run-online"
    other = script.Config(trace_file.with_name("other.csv.gz"), out_dir=tmp_path / "priors")
    assert other.folder.name == "run-other-online"
    config.folder.mkdir(parents=True)
    path = config.folder / "fit.json"
    for content in ('{"trace": "../../run/trace.npz"}', None):
        path.unlink() if content is None else path.write_text(content)
        script.check_folder(config)  # the same trace, and none yet
    for content in ('{"trace": "../../elsewhere/run/trace.npz"}', "{}", "no JSON"):
        path.write_text(content)
        with pytest.raises(
            ValueError, match=r"run-online: expected a folder of fits to '.*', got .*; choose another --name"
        ):
            script.main(config)


def test_what_cannot_be_read_is_refused(script, trace_file, tmp_path):
    with pytest.raises(ValueError, match=r"trace: expected a file or folder, got .*none\.npz', which does not exist"):
        script.main(script.Config(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match=r"prompts: expected a \.npz file, got .*none\.npz', which does not exist"):
        script.main(script.Config(trace_file, prompts=tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("round,prompt_id\n")
    with pytest.raises(ValueError, match=r"text\.npz: expected a trace with columns"):
        script.main(script.Config(tmp_path / "text.npz"))
    with pytest.raises(ValueError, match=r"text\.npz"):
        script.main(script.Config(trace_file, prompts=tmp_path / "text.npz"))
    trace_file.with_name("prompts.npz").unlink()
    with pytest.raises(ValueError, match=r"groups: expected .* the model 'grouped' needs them"):
        script.main(script.Config(trace_file, model="grouped"))
    one = tmp_path / "one.csv"
    one.write_text("round,prompt_id,successes,count\n0,3,1,8\n1,3,2,8\n")
    with pytest.raises(
        ValueError, match=r"held_out: expected at least one prompt for the fit, got 0\.9 of 1 held out in .*one\.csv"
    ):
        script.main(script.Config(one, held_out=0.9, out_dir=tmp_path / "priors"))
    with pytest.raises(ValueError, match=r"held_out: expected a number in \[0\.0, 0\.9\], got 1"):
        script.Config(trace_file, held_out=1)
