"""Generated sections of the documents equal what the scripts write from the committed results."""

import importlib
import json
import re
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def script(monkeypatch):
    """Returns a function that imports a script as Python would run it."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def section(page, name):
    text = (ROOT / page).read_text()
    return text.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0].strip()


def cost_sections(bench_methods, results):
    """Yields the page and the text of the costs of each method."""
    for name, cells in bench_methods.cost_rows(results).items():
        if name != "floor":
            lines = [*bench_methods.header(results), f"| {' | '.join([name, *cells])} |", ""]
            yield f"docs/methods/{name}.md", "\n".join([*lines, bench_methods.footnote(results)])


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("arena*.json")))
def test_sections_of_an_arena(script, name):
    _arena_report, checked = script("_arena_report"), []
    for page, sections in _arena_report.sections(read(name)).items():
        for key, text in sections.items():
            if f"<!-- {key}:begin -->" in (ROOT / page).read_text():
                assert section(page, key) == text.strip(), (page, key)
                checked.append(key)
    assert checked


def test_sections_of_replays(script):
    _replay_report = script("_replay_report")
    results = read("replay")
    assert section("docs/predictors.md", "replay") == _replay_report.to_markdown(results).strip()
    assert section("docs/predictors.md", "replay_findings") == _replay_report.findings(results).strip()


def test_sections_of_priors(script):
    compare_priors, calibrate_priors = map(script, ("compare_priors", "calibrate_priors"))
    assert section("docs/priors.md", "compare_priors") == compare_priors.to_markdown(read("compare_priors")).strip()
    results = read("calibrate_priors")
    config = types.SimpleNamespace(**results["config"])
    assert section("docs/priors.md", "calibrate_priors") == calibrate_priors.to_markdown(results, config).strip()


def test_sections_of_the_benchmarks_of_the_filter(script):
    _bench_report, update_docs = map(script, ("_bench_report", "update_docs"))
    results = read("bench_filter")
    assert section("docs/benchmarks.md", "bench_filter") == _bench_report.to_markdown(results).strip()
    assert section("README.md", "bench_filter") == update_docs.summarise_filter(results).strip()
    results = read("bench_filter_gpu")
    assert section("docs/benchmarks.md", "bench_filter_gpu") == _bench_report.to_markdown(results).strip()
    assert section("README.md", "bench_filter_gpu") == update_docs.summarise_accelerator(results).strip()


def test_sections_of_methods(script):
    bench_methods, _method_report = map(script, ("bench_methods", "_method_report"))
    results = read("bench_methods")
    assert section("docs/methods/index.md", "bench_methods") == bench_methods.to_markdown(results).strip()
    for page, text in cost_sections(bench_methods, results):
        assert section(page, "method_cost") == text.strip(), page
    cells = [*read("arena_methods")["cells"]]
    cells += [row for row in read("arena_baselines")["cells"] if row["method"] != "uniform"]
    for path in sorted((ROOT / "docs" / "methods").glob("*.md")):
        if path.stem != "index":
            found = re.sub(r"^!\[.*\n+", "", section(f"docs/methods/{path.name}", "method_curves"))
            assert found == _method_report.caption(cells, path.stem).strip(), path.name


def test_sections_that_are_computed(script):
    _large_runs = script("_large_runs")
    for name, table in _large_runs.SECTIONS.items():
        assert section("docs/large-runs.md", name) == table().strip(), name
