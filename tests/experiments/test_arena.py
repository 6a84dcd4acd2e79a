"""The arena: cells that are the runs of the trainer, resumed where they were, and what is made of them."""

import dataclasses
import functools
import importlib
import json

import numpy as np
import pytest

from dps_jax import traces
from dps_jax.training import _trainer
from tests.training import runs


@pytest.fixture
def script(monkeypatch, request):
    """Returns a function that imports a script as Python would run it."""
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    return importlib.import_module


def record(method, seed, slope, mix="lean", num_prompts=100):
    """Returns the record of a run whose accuracy rises by a slope per 1,000 rollouts, up to .9."""
    rollouts = np.arange(1, 11) * 1000
    accuracy = np.minimum(0.1 + slope * np.arange(11), 0.9) + 0.001 * seed
    return {
        "mix": mix,
        "num_prompts": num_prompts,
        "method": method,
        "learning_rate": 3e-4,
        "seed": seed,
        "rollouts": rollouts.tolist(),
        "tokens": (5 * rollouts).tolist(),
        "seconds_per_rollout": 0.001,
        "gradient_cosine": [0.5] * 10,
        "accuracy": accuracy.tolist(),
        "effective_sample_ratio": [0.5] * 10,
        "num_informative": [16.0] * 10,
        "success_rate_of_picks": [0.4] * 10,
        "predicted_informative": [0.5] * 10,
        "brier": [0.2] * 10,
        "distinct_prompts": 80,
    }


@pytest.mark.parametrize("method", ["dps", pytest.param("instructive", marks=pytest.mark.slow)])
def test_a_cell_is_the_run_of_the_trainer(method, script, tmp_path):
    arena = script("_arena")
    cell = arena.Cell("lean", 300, method, num_rounds=4, eval_every=2)
    records = []
    # What is compiled for one seed serves the next one, whose prompts have other levels and features.
    arena.run(cell, [3, 4], records.append)
    config = arena.run_config(cell, 4)
    _trainer.train(dataclasses.replace(config, out_dir=tmp_path), runs.quiet())
    summary = json.loads((tmp_path / "train" / "summary.json").read_text())
    trace = traces.read_trace(tmp_path / "train" / "trace.npz")
    assert [found["seed"] for found in records] == [3, 4]
    assert records[1]["rollouts"][-1] == summary["rollouts"] == 4 * 256
    assert records[1]["tokens"][-1] == summary["completion_tokens"]
    assert len(records[1]["gradient_cosine"]) == 2
    assert records[1]["distinct_prompts"] == np.unique(trace.prompt_ids).size
    rate = trace.successes[trace.rounds < 2].sum() / trace.counts[trace.rounds < 2].sum()
    np.testing.assert_allclose(records[1]["success_rate_of_picks"][0], rate, atol=1e-5)
    # Evaluations draw with keys of their own, the same for all seeds.
    assert records[0]["accuracy"][0] == records[1]["accuracy"][0]
    assert abs(records[1]["accuracy"][-1] - summary["test_accuracy"]) < 0.06


def test_dynamic_sampling_pays_for_all_of_its_rollouts_unless_they_are_free(script):
    arena = script("_arena")
    records = []
    for method in ("ds", "ds-free"):
        # One round between evaluations, as dynamic sampling has: one program does both.
        arena.run(arena.Cell("typical", 300, method, num_rounds=6, eval_every=1), [0], records.append)
    paid, free = records
    # Until as many rollouts are spent as those of six rounds of other methods, or with as many updates.
    assert 6 * 256 <= paid["rollouts"][-1] <= 6 * 256 + 10 * 256
    assert free["rollouts"] == [256, 512, 768, 1024, 1280, 1536]
    assert free["tokens"][-1] > paid["tokens"][-1]
    assert free["distinct_prompts"] > paid["distinct_prompts"]


def test_cosines_compare_two_independent_rounds(script):
    arena = script("_arena")
    cell = arena.Cell("rich", 300, "dps")
    parts = arena._setup.build(arena.run_config(cell, 0))
    state = parts.round.init(parts.params, arena.jax.random.key(0))
    how = {"step": parts.round, "select": lambda state, problems: parts.round.select(state)}
    cosine = arena.jax.jit(functools.partial(arena._gradient_cosine, **how))
    assert 0.05 < float(cosine(state, parts.graded)) < 0.95
    # Nothing is left of the signal where nothing is ever correct.
    wrong = arena._setup._references.graded(parts.problems, np.ones(300, bool))
    assert cosine(state, arena.jax.tree.map(arena.jnp.asarray, wrong)) == 0


def test_names_of_files_change_with_what_the_outcome_depends_on(script, monkeypatch):
    arena = script("_arena")
    cell = arena.Cell("lean", 300, "dps")
    names = {cell.name(), cell._replace(method="dps:decay=0.5").name(), cell._replace(num_rounds=10).name()}
    monkeypatch.setitem(arena.MIXES, "lean", arena.MIXES["lean"] | {"broken": 0.5})
    names.add(cell.name())
    monkeypatch.setitem(arena.METHODS, "dps", {"selector": {"method": "dps", "pool_factor": 4, "pool_share": 0.0}})
    names.add(cell.name())
    options = {"method": "dps", "pool_factor": 4, "pool_share": 0.0, "options": ("is_compact=True",)}
    monkeypatch.setitem(arena.METHODS, "dps", {"selector": options})
    assert len(names | {cell.name()}) == 6


def test_bounds_pick_what_is_informative(script):
    arena = script("_arena")
    records = []
    # Of dps, which has not learned much yet, all programs are compiled already.
    for method in ("dps", "true-greedy"):
        arena.run(arena.Cell("typical", 300, method, num_rounds=2, eval_every=2), [0], records.append)
    assert records[1]["effective_sample_ratio"][0] > records[0]["effective_sample_ratio"][0] + 0.3


def test_options_may_follow_the_name_of_a_method(script):
    arena = script("_arena")
    config = arena.run_config(arena.Cell("lean", 300, "instructive:hardness=2,temperature=0.5,num_epochs=2"), 0)
    assert (config.selector.hardness, config.selector.temperature) == (2, 0.5)
    assert config.learner.num_epochs == 2
    assert config.selector.pool_size(32, 300) == 1024
    assert config.selector.pool_size(32, 20000) == 5000
    with pytest.raises(ValueError, match=r"methods: expected one of .*'dps'.* got 'best'"):
        arena.changes_of("best:hardness=1")
    with pytest.raises(
        ValueError, match=r"methods: expected no options of the bound 'true-greedy', got 'num_epochs=2'"
    ):
        arena.changes_of("true-greedy:num_epochs=2")
    with pytest.raises(
        ValueError, match=r"methods: expected one of the options .*hardness.*, got 'colour' in 'dps:colour=1'"
    ):
        arena.changes_of("dps:colour=1")
    assert arena.changes_of("dps:thompson=False")["selector"]["thompson"] is False
    with pytest.raises(ValueError, match=r"methods: expected options NAME=VALUE after the colon, got 'hardness'"):
        arena.changes_of("dps:hardness")


def test_paired_differences_and_ratios(script):
    report = script("_arena_report")
    slopes = {"uniform": 0.04, "dps": 0.06, "instructive": 0.08}
    cells = report.summarise([record(method, seed, slope) for method, slope in slopes.items() for seed in range(3)])
    rows = {row["method"]: row for row in cells}
    assert abs(rows["uniform"]["area"] - (0.1 + 0.04 * 5 + 0.001)) < 1e-9
    # All seeds differ by the same, so the interval is a point.
    difference = rows["instructive"]["area_over_uniform"]
    assert abs(difference["mean"] - 0.04 * 5) < 1e-9
    assert difference["half_width"] < 1e-9
    assert abs(rows["instructive"]["ratio_to_uniform"] - 0.5) < 1e-6
    assert rows["uniform"]["ratio_to_uniform"] == 1
    assert rows["uniform"]["rollouts_to_0.8"] is None
    # What takes more rollouts is compared over as many as the others have.
    longer = record("ds", 0, 0.04)
    longer["rollouts"] = [2 * count for count in longer["rollouts"]]
    both = {row["method"]: row for row in report.summarise([record("uniform", 0, 0.04), longer])}
    assert abs(both["ds"]["area"] - (0.1 + 0.04 * 2.5)) < 1e-9
    noisy = np.array([0.1, 0.3, 0.2])
    # Student's t with two degrees of freedom: 4.303 standard errors.
    np.testing.assert_allclose(report.paired(noisy, np.zeros(3))["half_width"], 4.3027 * 0.1 / np.sqrt(3), rtol=1e-4)
    # Over the seeds that both have.
    alone = report.summarise([record("dps", 1, 0.06), *(record("uniform", seed, 0.04) for seed in range(3))])
    assert abs({row["method"]: row for row in alone}["dps"]["area_over_uniform"]["mean"] - 0.02 * 5) < 1e-9
    # Half as fast, and so half as far in the same seconds.
    slow = record("dps", 0, 0.04) | {"seconds_per_rollout": 0.002}
    timed = {row["method"]: row for row in report.summarise([record("uniform", 0, 0.04), slow])}
    assert abs(timed["uniform"]["area_by_seconds"] - 0.3) < 1e-9
    assert abs(timed["dps"]["area_by_seconds"] - 0.2) < 1e-9
    # cosine = n r / (1 + n r), here 1 / 2 for 16 informative groups.
    assert abs(report.signal_ratio(rows["dps"]) - 1 / 16) < 1e-9
    assert "| 0.300 | 0.300 | 1.00 | 0.50 | 0.062 |" in report.costs_to_markdown(list(timed.values()))
    table = report.to_markdown(cells)
    assert table.index("| instructive |") < table.index("| dps |") < table.index("| uniform |")
    assert "| lean, 50 % informative | 100 |" in report.headline(cells)
    assert len(report.curves(cells).axes) == 1
    assert len(report.picks(cells).axes) == 2
    # Where DPS has variants, all others are compared with the best of them.
    assert "over the best dps" not in table
    variants = report.summarise(
        [record(method, seed, slope) for method, slope in slopes.items() for seed in range(2)]
        + [record("dps:decay=1.0", seed, 0.065) for seed in range(2)]
    )
    rows = {row["method"]: row for row in variants}
    found = rows["instructive"]["area_over_best_dps"]
    assert found["method"] == "dps:decay=1.0"
    assert abs(found["mean"] - (rows["instructive"]["area"] - rows["dps:decay=1.0"]["area"])) < 1e-9
    assert "area_over_best_dps" not in rows["dps"]
    assert f"| {rows['dps:decay=1.0']['area']:.3f} |" in report.headline(variants)


def test_an_interrupted_arena_goes_on(script, tmp_path, monkeypatch):
    arena = script("arena")
    config = arena.Config(
        mixes=("lean",), num_prompts=(100,), methods=("uniform", "dps"), num_seeds=2, first_seed=0, out_dir=tmp_path
    )
    missing = []
    for cell in config.cells():
        for seed in config.seeds():
            path = arena.run_path(tmp_path, cell, seed)
            path.parent.mkdir(exist_ok=True)
            if (cell.method, seed) != ("dps", 1):
                path.write_text(
                    json.dumps(record(cell.method, seed, 0.05) | {"commit": "abc", "machine": "one, JAX 1"})
                )
            else:
                missing.append(path)

    def run_cell(cell, seeds, out_dir):
        assert (cell.method, list(seeds)) == ("dps", [1])
        missing[0].write_text(json.dumps(record("dps", 1, 0.05) | {"commit": "abc", "machine": "one, JAX 1"}))

    class Here:
        """Runs tasks in this process."""

        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def submit(self, fn, *args):
            task = arena.futures.Future()
            task.set_result(run_cell(*args))
            return task

    monkeypatch.setattr(arena.futures, "ProcessPoolExecutor", Here)
    results = arena.main(config)
    assert (results["commits"], results["machines"]) == (["abc"], ["one, JAX 1"])
    assert len(results["cells"]) == 2
    assert json.loads((tmp_path / "main" / "results.json").read_text())["cells"] == results["cells"]
    assert all((tmp_path / "main" / name).stat().st_size > 1000 for name in ("curves.png", "picks.png"))
    # Seconds of another arena, timed on an idle machine.
    timed = tmp_path / "timed.json"
    rows = [{"num_prompts": 100, "method": "uniform", "seconds_per_rollout": 0.5}]
    seconds = {(100, "dps"): 0.5}
    assert arena._seconds_of(seconds, record("dps:decay=0.9", 0, 0.05)) == 0.5
    with pytest.raises(ValueError, match="seconds_from: expected 'dps:num_states=7'"):
        arena._seconds_of(seconds, record("dps:num_states=7", 0, 0.05))
    timed.write_text(json.dumps({"cells": rows}))
    with pytest.raises(ValueError, match=r"seconds_from: expected 'dps' with N = 100, got only \[\(100, 'uniform'\)\]"):
        arena.main(dataclasses.replace(config, seconds_from=timed))
    timed.write_text(json.dumps({"cells": [*rows, rows[0] | {"method": "dps"}]}))
    results = arena.main(dataclasses.replace(config, seconds_from=timed))
    assert {row["seconds_per_rollout"] for row in results["cells"]} == {0.5}


def test_a_study_is_a_figure_of_area_by_value(script, monkeypatch):
    arena, report, studies = (script(name) for name in ("arena", "_arena_report", "_arena_studies"))
    monkeypatch.setattr(report, "_NUM_RESAMPLES", 50)  # of intervals, which are not looked at
    config = arena.Config(study="decay")
    assert config.name == "decay"
    assert config.methods[:2] == ("uniform", "dps")
    assert config.methods[2] == "dps:decay=0.3"
    for name in studies.STUDIES:
        cells = report.summarise([record(method, seed, 0.04) for method in studies.methods(name) for seed in range(2)])
        assert len(report.study(cells, name).axes) == 1
        # All of them can be run, and take as many rollouts a round.
        for method in studies.methods(name):
            found = script("_arena").run_config(script("_arena").Cell("lean", 300, method), 0)
            assert found.rollout.batch_size * found.rollout.group_size == 256


def test_bad_requests_are_refused(script):
    arena = script("arena")
    with pytest.raises(ValueError, match=r"study: expected one of .*'decay'.* got 'colour'"):
        arena.Config(study="colour")
    with pytest.raises(ValueError, match=r"methods: expected none with --study decay, got \('dps',\)"):
        arena.Config(study="decay", methods=("dps",))
    with pytest.raises(ValueError, match=r"name: expected the name of a folder other than 'runs', got 'runs'"):
        arena.Config(name="runs")
    with pytest.raises(ValueError, match=r"mixes: expected one of .* got 'poor'"):
        arena.Config(mixes=("poor",))
    with pytest.raises(ValueError, match=r"num_rounds: expected a multiple of 10, got 15"):
        arena.Config(num_rounds=15)


def test_documents_say_what_the_results_say(script, request):
    report = script("_arena_report")
    root = request.config.rootpath
    found = sorted((root / "docs" / "results").glob("arena*.json"))
    assert found
    for results in found:
        for path, sections in report.sections(json.loads(results.read_text())).items():
            document = (root / path).read_text()
            for name, text in sections.items():
                assert f"<!-- {name}:begin -->\n{text.rstrip()}\n<!-- {name}:end -->" in document, (path, name)
    page = (root / "docs" / "when-selection-pays.md").read_text()
    text = script("worth").to_markdown(json.loads((root / "docs" / "results" / "worth.json").read_text()))
    assert f"<!-- worth:begin -->\n{text.rstrip()}\n<!-- worth:end -->" in page
