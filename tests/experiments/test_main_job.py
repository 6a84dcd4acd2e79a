"""The scripts of the main job, at sizes of seconds."""

import dataclasses
import importlib
import json

import pytest
import tyro

from dps_jax.models import _weights
from dps_jax.training import _config as configs
from tests.training import runs

SCRIPTS = (
    "train",
    "sample",
    "reliability",
    "pretrain",
    "arena",
    "worth",
    "bench_teaching",
    "bench_loop",
    "bench_sampling",
    "bench_filter",
    "update_docs",
    "animate_beliefs",
)


@pytest.fixture
def script(monkeypatch, request):
    """Returns a function that imports a script as Python would run it."""
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    return importlib.import_module


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_reads_and_defaults_build(name, script, capsys):
    module = script(name)
    config = configs.TrainConfig if name == "train" else module.Config
    with pytest.raises(SystemExit) as stop:
        tyro.cli(config, args=["--help"], description=module.__doc__)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage:" in text
    assert "default" in text
    if name == "train":
        assert "--learner.inclusion-weights" in text
        assert "--selector.temperature" in text
        assert "--selector.options" in text
    if name != "sample":
        assert tyro.cli(config, args=[]) == config()


def test_a_new_selector_or_level_is_an_option(script):
    args = ["--selector.method", "uniform", "--task.levels", "2", "2", ".5", "3", "4", ".5", "--no-resume"]
    config = tyro.cli(configs.TrainConfig, args=args)
    assert config.selector.method == "uniform"
    assert config.task.levels == ((2, 2, 0.5), (3, 4, 0.5))
    assert not config.resume
    weighted = ["--selector.temperature", "0.2", "--learner.inclusion-weights", "self-normalised"]
    config = tyro.cli(configs.TrainConfig, args=weighted)
    assert (config.selector.temperature, config.learner.inclusion_weights) == (0.2, "self-normalised")
    with pytest.raises(ValueError, match=r"levels: expected .* got \(1, 20, 0\.5\)"):
        configs.TaskConfig(levels=((1, 20, 0.5),))


def test_pretrained_weights_start_a_run(script, tmp_path):
    pretrain, train = script("pretrain"), script("train")
    out = tmp_path / "new" / "sums.safetensors"
    results = pretrain.main(
        pretrain.Config(
            task="chain_sum",
            levels=((2, 1, 1.0),),
            size="0.1m",
            num_solutions=2560,
            slips=0.5,
            batch_size=64,
            learning_rate=1e-2,
            num_test=16,
            out=out,
        )
    )
    assert results["losses"][-1] < 0.8 * results["losses"][0]
    assert json.loads(out.with_suffix(".json").read_text())["config"]["num_solutions"] == 2560
    _, facts = _weights.load(out)
    assert "--levels 2 1 1.0 --slips 0.5 --slip-rates 0.1 0.7 --spared-families 0 --size 0.1m" in facts["command"]
    assert str(tmp_path) not in json.dumps(facts)

    task = configs.TaskConfig(name="chain_sum", num_train=20, num_test=8, levels=((2, 1, 1.0),))
    config = runs.tiny(tmp_path, num_rounds=2, task=task, model=configs.ModelConfig(weights=out))
    summary = train.main(config)
    assert summary["rounds"] == 2
    sample = script("sample")
    for which in ("last", "best"):
        text = sample.main(sample.Config(run=config.folder, which=which, num_problems=20, num_shown=2))
        assert text.count(" correct; 2 summands of 1 digits]") >= 2
        assert f"{config.folder}/policy" in text
    assert sample.main(sample.Config(weights=out, num_problems=20)).startswith(f"{out}: ")
    # What a run has learned starts another one.
    policy = configs.ModelConfig(weights=config.folder / "policy.safetensors")
    assert train.main(runs.tiny(tmp_path, name="next", num_rounds=1, task=task, model=policy))["rounds"] == 1
    assert abs(summary["test_accuracies"]["0"] - results["test_accuracy"]) < 0.5
    countdown = runs.tiny(
        tmp_path, name="other", task=configs.TaskConfig(name="countdown", num_train=20), model=config.model
    )
    with pytest.raises(ValueError, match=r"model\.weights: expected the vocabulary of task 'countdown'"):
        train.main(countdown)


def test_samples_are_of_a_run_or_of_weights(script, tmp_path):
    sample = script("sample")
    with pytest.raises(ValueError, match=r"run: expected either a run or weights, got .*; name one, such as --run"):
        sample.Config()
    with pytest.raises(ValueError, match=r"policy_best\.safetensors: expected a file of weights, got none; a run"):
        sample.main(sample.Config(run=tmp_path, which="best"))


def test_rasters_are_shown_above_their_question(script):
    sample = script("sample")
    answered = [
        sample.Answered("..##\n..''\nwidth >", "2, 3, 1", 1, "widths"),
        sample.Answered("..\nradius >", "", 0, "discs"),
    ]
    assert sample._lines(answered, 2) == [
        *("  ..##", "  ..''", "  width >   2, 3, 1   [1 of 2 correct; widths]"),
        *("  ..", "  radius >  (nothing)   [0 of 2 correct; discs]"),
    ]


def test_a_run_is_written_into_the_documents(script, tmp_path):
    update_docs = script("update_docs")
    source = tmp_path / "runs"
    for folder in ("docs/results", "docs/figures", "experiments/data", "runs"):
        (tmp_path / folder).mkdir(parents=True)
    page = tmp_path / "docs" / "training.md"
    page.write_text(
        "a\n<!-- geometry:begin -->\nold\n<!-- geometry:end -->\nb\n"
        "<!-- geometry_example:begin -->\n<!-- geometry_example:end -->\n"
    )
    evaluated = {"test_accuracy": 0.5, "test_accuracy_error": 0.01}
    by_level = {"test_accuracy_by_group": {"discs": 0.5}, "test_accuracy_error_by_group": {"discs": 0.02}}
    summary = {"rounds": 2, "rollouts": 64, "seconds": 120.0, "effective_sample_ratio": 0.25} | evaluated | by_level
    (source / "summary.json").write_text(json.dumps(summary | {"test_accuracies": {"0": 0.25, "2": 0.5}}))
    records = [{"round": 0, "rollouts": 32}, {"round": 1, "rollouts": 32, **evaluated}]
    (source / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    before = {"test_accuracy_error": 0.03} | {name: {"discs": 0.125} for name in by_level}
    (tmp_path / "experiments" / "data" / "geometry.json").write_text(json.dumps(before))
    for name in ("training_curves", "examples"):
        (source / f"{name}.png").write_text(name)
    missing = {field.name: tmp_path / "missing" for field in dataclasses.fields(update_docs.Config)}
    update_docs.main(update_docs.Config(**missing | {"geometry": source, "root": tmp_path}))
    text = page.read_text()
    assert "2 rounds, 64 rollouts, 2 minutes on " in text
    assert "| 0 | 0 | 25.0 ± 3.0 |\n| 2 | 64 | 50.0 ± 1.0 |\n" in text
    assert "| discs | 12.5 ± 12.5 | 50.0 ± 2.0 |\n" in text
    assert "\narea > " in text
    assert json.loads((tmp_path / "docs" / "results" / "geometry.json").read_text())["curve"] == [
        {"round": 1, **evaluated}
    ]
    assert (tmp_path / "docs" / "figures" / "geometry_examples.png").read_text() == "examples"


def test_costs_of_graders_are_written_into_the_documents(script, tmp_path):
    bench, update_docs = script("bench_grading"), script("update_docs")
    for folder in ("docs/results", "runs"):
        (tmp_path / folder).mkdir(parents=True)
    page, source = tmp_path / "docs" / "grading.md", tmp_path / "runs"
    page.write_text("<!-- bench_grading:begin -->\n<!-- bench_grading:end -->\n")
    found = {"num": 1000, "num_processes": 2, "start_s": {"exact": 0.05, "math-verify": None}}
    machine = {"machine": {"cores": 2, "cpu": "one"}}
    pairs = [{"loop_s": 10.0, "pool_s": 5.0, "ratio": 2.0}, {"loop_s": 8.0, "pool_s": 5.0, "ratio": 1.6}]
    (source / "results.json").write_text(json.dumps(found | machine | {"pairs": pairs}))
    missing = {field.name: tmp_path / "missing" for field in dataclasses.fields(update_docs.Config)}
    update_docs.main(update_docs.Config(**missing | {"bench_grading": source, "root": tmp_path}))
    text = page.read_text()
    assert "| exact | 0.05 |" in text
    assert "math-verify |" not in text
    assert "a loop graded up to 125 answers per second, and a pool of 2 processes up to 200." in text
    assert "graded 1.60 to 2.00 times as many as the loop" in text
    assert bench.Config().out_dir == update_docs.Config().bench_grading


def test_pretraining_refuses_what_cannot_be(script):
    pretrain = script("pretrain")
    with pytest.raises(ValueError, match=r"num_solutions: expected an integer >= 256, got 10"):
        pretrain.Config(num_solutions=10)
    with pytest.raises(ValueError, match=r"out: expected the name of a \.safetensors file, got 'x\.npz'"):
        pretrain.Config(out=pretrain.Path("x.npz"))
    with pytest.raises(ValueError, match=r"task: expected .* got 'chess'"):
        pretrain.Config(task="chess")


def test_the_loop_is_measured(script, tmp_path, capsys):
    bench = script("bench_loop")
    results = bench.main(bench.Config(repeats=1, out_dir=tmp_path, run=runs.tiny(tmp_path)))
    assert 0 < results["selection_share_of_round"] < 1
    assert all(0 < share < 10 for share in results["share_of_matmul"].values())
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "| update, all rows |" in (tmp_path / "table.md").read_text()
    if results["transformers"]["is_skipped"]:
        assert "pip install '.[bench]'" in capsys.readouterr().out


def test_documents_are_written_from_results(script, tmp_path):
    update_docs = script("update_docs")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "benchmarks.md").write_text("a\n<!-- bench_loop:begin -->\nold\n<!-- bench_loop:end -->\nb\n")
    source = tmp_path / "runs"
    source.mkdir()
    missing = tmp_path / "missing"
    folders = {field.name: missing for field in dataclasses.fields(update_docs.Config)}
    config = update_docs.Config(**folders | {"bench_loop": source, "root": tmp_path})
    with pytest.raises(ValueError, match=r"expected results\.json in one of"):
        update_docs.main(config)
    (source / "results.json").write_text("{}")
    (source / "table.md").write_text("| new |\n")
    update_docs.main(config)
    expected = "a\n<!-- bench_loop:begin -->\n| new |\n<!-- bench_loop:end -->\nb\n"
    assert (tmp_path / "docs" / "benchmarks.md").read_text() == expected
    with pytest.raises(ValueError, match=r"benchmarks\.md: expected the markers of 'other' once, got 0"):
        update_docs.replace_section(tmp_path / "docs" / "benchmarks.md", "other", "")
