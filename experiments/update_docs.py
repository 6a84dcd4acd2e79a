"""Writes measured numbers and figures into README.md and docs/, so that no number has to be typed by hand.

Run it after the script of a measurement. It copies results and figures from runs/ to docs/results/ and docs/figures/,
and rewrites the text between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import _arena_report
import _bench_report
import _first_screen
import _gpu_report
import _large_runs
import _machine
import _method_report
import _replay_report
import _run_report
import bench_methods
import numpy as np

from dps_jax import _cli, _files, _json, tasks, training

ROOT = Path(__file__).resolve().parents[1]
# The figure is 1,400 pixels wide, for a width of 700 points on screens with two pixels per point.
_FIRST_SCREEN_DPI = 200


@dataclasses.dataclass(frozen=True)
class Config:
    """The folders to read results from, and the repository to write to."""

    bench_filter: Path = Path("runs/bench_filter")
    """Folder that bench_filter.py wrote. Folders that do not exist are skipped; this is true of all options."""
    bench_loop: Path = Path("runs/bench_loop")
    """Folder that bench_loop.py wrote."""
    bench_sampling: Path = Path("runs/bench_sampling")
    """Folder that bench_sampling.py wrote."""
    bench_methods: Path = Path("runs/bench_methods")
    """Folder that bench_methods.py wrote."""
    bench_priors: Path = Path("runs/bench_priors")
    """Folder that bench_priors.py wrote."""
    arena: Path = Path("runs/arena")
    """Folder that arena.py wrote; the results of all its studies are used."""
    calibrate_priors: Path = Path("runs/calibrate_priors")
    """Folder that calibrate_priors.py wrote."""
    compare_priors: Path = Path("runs/compare_priors")
    """Folder that compare_priors.py wrote."""
    worth: Path = Path("runs/worth")
    """Folder that worth.py wrote."""
    replay: Path = Path("runs/replay")
    """Folder that replay.py wrote."""
    reliability: Path = Path("runs/reliability")
    """Folder that reliability.py wrote."""
    bench_grading: Path = Path("runs/bench_grading")
    """Folder that bench_grading.py wrote."""
    compare_llm: Path = Path("runs/compare_llm")
    """Folder that compare_llm.py and llm_features.py wrote."""
    overhead: Path = Path("runs/overhead")
    """Folder that integrations/overhead.py wrote."""
    trl_smollm2: Path = Path("runs/trl_smollm2")
    """Folder that integrations/trl_smollm2.py wrote."""
    gpu_check: Path = Path("runs/gpu_check")
    """Folder that gpu_check.py wrote. Results that were measured on a CPU are ignored."""
    geometry: Path = Path("runs/geometry")
    """Folder of the run of train.py that docs/training.md shows. Use it on the machine that the run was trained on."""
    animate_beliefs: Path = Path("runs/animate_beliefs")
    """Folder that animate_beliefs.py wrote."""
    root: Path = ROOT
    """Root folder of the repository, in which files are updated."""


def replace_section(path: Path, name: str, text: str) -> None:
    """Rewrites one marked section of a document.

    Raises:
      ValueError: if the document does not have the markers exactly once.
    """
    document = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"{path.name}: expected the markers of {name!r} once, got {len(pattern.findall(document))}")
    path.write_text(pattern.sub(lambda match: match[1] + text.rstrip() + "\n" + match[2], document), encoding="utf-8")


def summarise_filter(results: dict[str, Any]) -> str:
    """Returns the table for the README, at the largest measured N up to 10^7."""
    size = max(row["num_prompts"] for row in results["measurements"] if row["num_prompts"] <= 10**7)
    rows = {row["contestant"]: row for row in results["measurements"] if row["num_prompts"] == size}
    machine = results["machine"]
    names = {
        "dps": "`dps_jax.selectors.dps`",
        "dps, compact": "the same with 16-bit counts",
        "binomial_hmm": "`dps_jax.selectors.binomial_hmm`, which predicts better than `dps`",
        "vmap": "plain `jit(vmap)` of one prompt's 3x3 step, `lax.top_k`",
        "loop": "Python loop over prompts, as in the paper's code",
        "floor": "memory reference: `x + 1` in place over twelve float32 arrays of length N",
    }
    lines = [
        f"One cycle observes 256 prompts, advances the predictions of all N = {size:,} prompts by one round "
        "(`binomial_hmm`: of the observed prompts and, in turn, of a part of the others), and picks the best 256. The "
        "memory reference is a pass over as much memory as the state of `dps` takes. Times are medians over repeats; a "
        "ratio is the median of the ratios within a repeat, and may differ from the quotient of two times. Measured on "
        f"{machine['cores']} CPU cores ({machine['cpu']}) with JAX {machine['jax']}:",
        "",
        "| | time | ratio to the reference | bytes per prompt |",
        "|---|---:|---:|---:|",
    ]
    for name, words in names.items():
        row = rows[name]
        seconds = row["median_s"]
        text = f"{seconds:,.0f} s" if seconds >= 10 else f"{1e3 * seconds:,.0f} ms"
        text += " (extrapolated)" if row["is_extrapolated"] else ""
        state = row.get("state_bytes_per_prompt")
        lines.append(f"| {words} | {text} | {row['ratio_to_floor']:,.1f} | {'' if state is None else f'{state:.0f}'} |")
    return "\n".join(lines)


def summarise_accelerator(results: dict[str, Any]) -> str:
    """Returns the sentence for the README, at the largest measured N."""
    size = max(row["num_prompts"] for row in results["measurements"] if row["contestant"] == "dps")
    rows = {row["contestant"]: row for row in results["measurements"] if row["num_prompts"] == size}
    times = {name: f"{1e3 * rows[name]['median_s']:.0f} ms" for name in ("dps", "binomial_hmm", "floor")}
    return (
        f"On one {results['machine']['device']}, N = {size:,}: `dps` {times['dps']}, `binomial_hmm` "
        f"{times['binomial_hmm']}, the memory reference {times['floor']}. The reference writes all that it reads; a "
        "cycle of either method writes only a part of the state, so it can take less time."
    )


def update_filter(source: Path, root: Path) -> None:
    """Writes the results of bench_filter.py; results of an accelerator have their own sections."""
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    backend = results["machine"]["backend"]
    name = "bench_filter" if backend == "cpu" else f"bench_filter_{backend}"
    shutil.copy(source / "results.json", root / "docs" / "results" / f"{name}.json")
    replace_section(root / "docs" / "benchmarks.md", name, _bench_report.to_markdown(results))
    if backend == "gpu":
        replace_section(root / "README.md", name, summarise_accelerator(results))
    if backend == "cpu":
        shutil.copy(source / "time_per_cycle.png", root / "docs" / "figures" / "bench_filter.png")
        replace_section(root / "README.md", "bench_filter", summarise_filter(results))


def update_table(
    name: str, source: Path, root: Path, *, page: str = "benchmarks.md", figure: str | None = None
) -> None:
    """Writes the table of a script into a page of docs/, and copies its results and its figure, if it has one."""
    shutil.copy(source / "results.json", root / "docs" / "results" / f"{name}.json")
    if figure is not None:
        shutil.copy(source / figure, root / "docs" / "figures" / f"{name}.png")
    replace_section(root / "docs" / page, name, (source / "table.md").read_text(encoding="utf-8"))


def update_replay(source: Path, root: Path) -> None:
    """Writes the results of replay.py."""
    shutil.copy(source / "results.json", root / "docs" / "results" / "replay.json")
    for name in ("skill", "reliability"):
        shutil.copy(source / f"{name}.png", root / "docs" / "figures" / f"replay_{name}.png")
    page, results = root / "docs" / "predictors.md", json.loads((source / "results.json").read_text(encoding="utf-8"))
    replace_section(page, "replay", (source / "table.md").read_text(encoding="utf-8"))
    replace_section(page, "replay_findings", _replay_report.findings(results))


def update_arena(source: Path, root: Path) -> None:
    """Writes the results of arena.py, for the main comparison or for a study."""
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    pages = _arena_report.sections(results)
    missing = [
        f"{path}: {section}"
        for path, sections in pages.items()
        for section in sections
        if f"<!-- {section}:begin -->" not in (root / path).read_text(encoding="utf-8")
    ]
    if missing:
        print(f"left out {source}: no document has a section for it ({', '.join(missing)})")
        return
    name = results["config"]["name"]
    name = "arena" if name == "main" else f"arena_{name}"
    shutil.copy(source / "results.json", root / "docs" / "results" / f"{name}.json")
    for figure in source.glob("*.png"):
        shutil.copy(figure, root / "docs" / "figures" / f"{name}_{figure.stem}.png")
    for path, sections in pages.items():
        for section, text in sections.items():
            replace_section(root / path, section, text)
    update_first_screen(root)


def update_first_screen(root: Path) -> None:
    """Draws the figure at the top of the README, if results of the arena exist."""
    results = root / "docs" / "results" / "arena.json"
    figure = _first_screen.draw(json.loads(results.read_text(encoding="utf-8"))) if results.exists() else None
    if figure is not None:
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=_FIRST_SCREEN_DPI)
        _files.write_atomically(root / "docs" / "figures" / "first_screen.png", content.getvalue())


def update_animation(source: Path, root: Path) -> None:
    """Copies the animation of animate_beliefs.py and its strip of still pictures."""
    shutil.copy(source / "results.json", root / "docs" / "results" / "animate_beliefs.json")
    for name in ("beliefs.gif", "beliefs.png"):
        shutil.copy(source / name, root / "docs" / "figures" / name)


def update_worth(source: Path, root: Path) -> None:
    """Writes the results of worth.py."""
    shutil.copy(source / "results.json", root / "docs" / "results" / "worth.json")
    shutil.copy(source / "worth.png", root / "docs" / "figures" / "worth.png")
    page = root / "docs" / "when-selection-pays.md"
    replace_section(page, "worth", (source / "table.md").read_text(encoding="utf-8"))


def update_methods(source: Path, root: Path) -> None:
    """Writes the results of bench_methods.py into the pages of the methods."""
    shutil.copy(source / "results.json", root / "docs" / "results" / "bench_methods.json")
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    pages = root / "docs" / "methods"
    replace_section(pages / "index.md", "bench_methods", bench_methods.to_markdown(results))
    for name, cells in bench_methods.cost_rows(results).items():
        if name != "floor":
            lines = [*bench_methods.header(results), f"| {' | '.join([name, *cells])} |", ""]
            lines.append(bench_methods.footnote(results))
            replace_section(pages / f"{name}.md", "method_cost", "\n".join(lines))


def update_method_curves(root: Path) -> None:
    """Draws the curves on the pages of the methods, from results of arenas that are in docs/results/."""
    read = lambda name: json.loads((root / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))["cells"]
    if not (root / "docs" / "results" / "arena_baselines.json").exists():
        return
    cells = [*read("arena_methods"), *(row for row in read("arena_baselines") if row["method"] != "uniform")]
    for page in sorted((root / "docs" / "methods").glob("*.md")):
        figure = _method_report.curves(cells, page.stem)
        if figure is not None:
            figure.savefig(root / "docs" / "figures" / f"method_{page.stem}.png", dpi=110)
            text = f"![Held-out accuracy against rollouts](../figures/method_{page.stem}.png)\n\n"
            replace_section(page, "method_curves", text + _method_report.caption(cells, page.stem))


def update_reliability(source: Path, root: Path) -> None:
    """Writes the results of reliability.py."""
    shutil.copy(source / "results.json", root / "docs" / "results" / "reliability.json")
    page = root / "docs" / "reliability.md"
    replace_section(page, "reliability", (source / "table.md").read_text(encoding="utf-8"))


def update_compare_llm(source: Path, root: Path) -> None:
    """Writes the results of compare_llm.py and llm_features.py."""
    shutil.copy(source / "results.json", root / "docs" / "results" / "compare_llm.json")
    shutil.copy(source / "accuracy.png", root / "docs" / "figures" / "compare_llm.png")
    page = root / "docs" / "language-models.md"
    for name, file in (("compare_llm", "table.md"), ("llm_features", "features.md")):
        replace_section(page, name, (source / file).read_text(encoding="utf-8"))


def update_grading(source: Path, root: Path) -> None:
    """Writes the cost of graders into docs/grading.md."""
    shutil.copy(source / "results.json", root / "docs" / "results" / "bench_grading.json")
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    lines = ["| grader | seconds to start a process |", "|---|---:|"]
    lines += [f"| {name} | {seconds:.2f} |" for name, seconds in results["start_s"].items() if seconds is not None]
    pairs, machine = results["pairs"], results["machine"]
    ratios = [pair["ratio"] for pair in pairs]
    lines += [
        "",
        f"In {len(pairs)} pairs of runs, {results['num']:,} answers were graded with math-verify: a loop graded up to "
        f"{max(results['num'] / pair['loop_s'] for pair in pairs):,.0f} answers per second, and a pool of "
        f"{results['num_processes']} processes up to {max(results['num'] / pair['pool_s'] for pair in pairs):,.0f}. "
        f"Within a pair, the pool graded {min(ratios):.2f} to {max(ratios):.2f} times as many as the loop "
        f"({machine['cores']} cores, {machine['cpu']}).",
    ]
    replace_section(root / "docs" / "grading.md", "bench_grading", "\n".join(lines))


def update_gpu_check(source: Path, root: Path) -> None:
    """Writes the results of gpu_check.py, if they were measured on an accelerator at full size."""
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    if results["machine"]["backend"] == "cpu" or results["options"]["small"]:
        print(f"left out {source}: it was measured on a CPU, or with --small")
        return
    shutil.copy(source / "results.json", root / "docs" / "results" / "gpu_check.json")
    replace_section(root / "docs" / "benchmarks.md", "gpu_check", _gpu_report.to_markdown(results))


def update_geometry(source: Path, root: Path) -> None:
    """Writes the results of a run of train.py on `geometry`; the accuracies before it are those of its weights."""
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))
    summary, warm_up = read(source / "summary.json"), read(root / "experiments" / "data" / "geometry.json")
    records, machine = training.read_metrics(source / "metrics.jsonl"), _machine.describe_machine()
    curve = [
        {name: record[name] for name in ("round", "test_accuracy", "test_accuracy_error")}
        for record in records
        if record.get("test_accuracy") is not None
    ]
    _json.write(root / "docs" / "results" / "geometry.json", {**summary, "curve": curve, "machine": machine}, indent=1)
    for name in ("training_curves", "examples"):
        shutil.copy(source / f"{name}.png", root / "docs" / "figures" / f"geometry_{name}.png")
    page = root / "docs" / "training.md"
    replace_section(page, "geometry", _run_report.to_markdown(summary, records, warm_up, machine))
    # The example is the first held-out problem of one level.
    task, first = tasks.build("geometry", levels=((6, 3, 1.0),)), np.zeros(1, np.int64)
    prompt, solution = task.make_problems(0, "test", first).prompts[0], task.make_solutions(0, "test", first)[0]
    replace_section(page, "geometry_example", f"```\n{task.decode(prompt)} {task.decode(solution)}\n```")


def update_large_runs(root: Path) -> None:
    """Writes the tables of docs/large-runs.md, which are computed without measurements, if the page exists."""
    page = root / "docs" / "large-runs.md"
    for name, table in _large_runs.SECTIONS.items() if page.exists() else ():
        replace_section(page, name, table())


def main(config: Config) -> None:
    """Updates the sections whose results exist, and those that are computed without measurements.

    Raises:
      ValueError: if there are no results.
    """
    update_large_runs(config.root)
    update_first_screen(config.root)
    updates = [
        (config.bench_filter, update_filter),
        (config.bench_loop, functools.partial(update_table, "bench_loop")),
        (config.bench_sampling, functools.partial(update_table, "bench_sampling")),
        (config.bench_priors, functools.partial(update_table, "bench_priors")),
        (
            config.calibrate_priors,
            functools.partial(update_table, "calibrate_priors", page="priors.md", figure="ranks.png"),
        ),
        (
            config.compare_priors,
            functools.partial(update_table, "compare_priors", page="priors.md", figure="log_loss.png"),
        ),
        (config.overhead, functools.partial(update_table, "trl_overhead", page="trainers.md")),
        (
            config.trl_smollm2,
            functools.partial(update_table, "trl_smollm2", page="trainers.md", figure="effective_sample_ratio.png"),
        ),
        *((results.parent, update_arena) for results in sorted(config.arena.glob("*/results.json"))),
        (config.worth, update_worth),
        (config.replay, update_replay),
        (config.reliability, update_reliability),
        (config.bench_grading, update_grading),
        (config.compare_llm, update_compare_llm),
        (config.gpu_check, update_gpu_check),
        (config.bench_methods, update_methods),
        (config.animate_beliefs, update_animation),
    ]
    found = [(source, update) for source, update in updates if (source / "results.json").exists()]
    if (config.geometry / "summary.json").exists():
        found.append((config.geometry, update_geometry))
    if not found:
        raise ValueError(f"expected results.json in one of {[str(source) for source, _ in updates]}, got none of them")
    for source, update in found:
        update(source, config.root)
        print(f"updated from {source}")
    update_method_curves(config.root)


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
