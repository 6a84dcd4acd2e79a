"""Compares ways to choose prompts on the main job, over seeds: accuracy against rollouts, tokens and seconds.

Every run is one of experiments/train.py, with its folder under OUT_DIR: an interrupted comparison goes on where it was.
Writes results.json, table.md and figures.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import train
import tyro
from rich.console import Console

from dps_jax import _checks
from dps_jax.training import config as configs
from dps_jax.training import figures, run_log
from dps_jax.training.curves import cost_to_reach, smooth

# Options of `run` that the baselines do not have.
_NO_OPTIONS = {"decay": None, "prior": None, "num_states": None, "temperature": None, "explore": None, "refit_every": 0}

# What a method changes of the run. DS is uniform selection with dynamic collection.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "uniform": {"selector": {"method": "uniform", **_NO_OPTIONS}},
    "history": {"selector": {"method": "history", **_NO_OPTIONS}},
    "ds": {"selector": {"method": "uniform", **_NO_OPTIONS}, "rollout": {"collection": "dynamic"}},
    "dps": {"selector": {"method": "dps"}},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Some of: uniform, history, ds, dps."""
    num_seeds: int = 5
    """Runs of every method. A seed is a training set, too; the test set and the first weights are the same."""
    ds_rounds: int = 100
    """Rounds of DS, which rolls out several batches in each."""
    num_resamples: int = 2000
    """Bootstrap resamples of the seeds, for the intervals."""
    out_dir: Path = Path("runs/compare_selectors")
    """Folder of all runs and results."""
    run: configs.TrainConfig = dataclasses.field(default_factory=lambda: configs.TrainConfig(eval_every=20))
    """What all runs have in common; name, seed and out_dir are set here."""

    def __post_init__(self):
        for method in self.methods:
            _checks.check_choice("methods", method, METHODS)
        _checks.check_int("num_seeds", self.num_seeds, at_least=1)
        _checks.check_int("ds_rounds", self.ds_rounds, at_least=1)
        _checks.check_int("num_resamples", self.num_resamples, at_least=1)


def run_config(config: Config, method: str, seed: int) -> configs.TrainConfig:
    """Returns the config of one run."""
    changes = {part: dataclasses.replace(getattr(config.run, part), **new) for part, new in METHODS[method].items()}
    num_rounds = config.ds_rounds if method == "ds" else config.run.num_rounds
    eval_every = max(config.run.eval_every // 4, 1) if method == "ds" else config.run.eval_every
    place = {"name": f"{method}-{seed}", "seed": seed, "out_dir": config.out_dir}
    return dataclasses.replace(config.run, **place, num_rounds=num_rounds, eval_every=eval_every, **changes)


def curve(records: Sequence[dict[str, Any]], before: float, cost: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns total cost and test accuracy at every evaluation, the one before training first."""
    totals = np.cumsum([record[cost] for record in records])
    places = [index for index, record in enumerate(records) if record.get("test_accuracy") is not None]
    accuracies = [records[index]["test_accuracy"] for index in places]
    return np.concatenate([[0.0], totals[places]]), np.array([before, *accuracies])


def mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]], grid: np.ndarray) -> np.ndarray:
    """Returns the mean over runs of accuracy on a grid of costs; NaN where a run does not reach."""
    return np.mean([np.interp(grid, cost, accuracy, right=np.nan) for cost, accuracy in curves], axis=0)


def ratio_to_uniform(
    uniform: Sequence[tuple[np.ndarray, np.ndarray]], other: Sequence[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Returns the cost of a method to the final accuracy of uniform, over the cost of uniform to the same.

    Infinity where it does not get there, NaN where uniform learns nothing.
    """
    grid = np.linspace(0, max(cost[-1] for cost, _ in [*uniform, *other]), 400)
    baseline = mean_curve(uniform, grid)
    target = smooth(baseline)[-1]
    cost = cost_to_reach(grid, baseline, target)
    return cost_to_reach(grid, mean_curve(other, grid), target) / cost if cost else float("nan")


def finite(value: float) -> float | None:
    """Returns None, which JSON knows, for infinity and NaN."""
    return float(value) if np.isfinite(value) else None


def bootstrap(config: Config, uniform: list[Any], other: list[Any]) -> list[float | None]:
    """Returns the 95 % interval of the ratio to uniform, resampling seeds, the same for both methods."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(config.num_resamples):
        picks = rng.integers(0, config.num_seeds, config.num_seeds)
        ratios.append(ratio_to_uniform([uniform[pick] for pick in picks], [other[pick] for pick in picks]))
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    return [finite(low), finite(high)]


def interval(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean over seeds and its standard error."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "error": error}


def summarise(config: Config, records: dict[str, list[Any]], summaries: dict[str, list[Any]]) -> dict[str, Any]:
    """Returns the results of all methods."""
    methods: dict[str, Any] = {}
    costs = {"rollouts": "rollouts", "tokens": "completion_tokens", "seconds": "seconds"}
    for runs in records.values():
        for run in runs:
            for record in run:
                record["seconds"] = sum(record[f"{phase}_s"] for phase in ("select", "rollout", "update", "observe"))
    curves = {
        method: {
            name: [
                curve(run, summary["test_accuracies"]["0"], cost)
                for run, summary in zip(records[method], summaries[method], strict=True)
            ]
            for name, cost in costs.items()
        }
        for method in records
    }
    for method, runs in records.items():
        result: dict[str, Any] = {
            "final_accuracy": interval([float(np.mean(curve[1][-3:])) for curve in curves[method]["rollouts"]]),
            "accuracy_before": interval([summary["test_accuracies"]["0"] for summary in summaries[method]]),
            "effective_sample_ratio": interval([summary["effective_sample_ratio"] for summary in summaries[method]]),
            "confusion": np.sum([record["confusion"] for run in runs for record in run], axis=0).tolist(),
        }
        for name, cost in costs.items():
            result[name] = interval([float(sum(record[cost] for record in run)) for run in runs])
            if "uniform" in records:
                uniform, own = curves["uniform"][name], curves[method][name]
                result[f"{name}_ratio"] = finite(ratio_to_uniform(uniform, own))
                result[f"{name}_ratio_interval"] = bootstrap(config, uniform, own)
        methods[method] = result
    return methods


def to_markdown(methods: dict[str, Any], config: Config) -> str:
    """Returns the table of the results."""
    lines = [
        "| method | final test accuracy | effective sample ratio | rollouts | "
        "rollouts to uniform's final accuracy | tokens | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    times = lambda value: "not reached" if value is None else f"{value:.2f}x"
    for method, result in methods.items():
        cells = [
            f"{result['final_accuracy']['mean']:.3f} ± {result['final_accuracy']['error']:.3f}",
            f"{result['effective_sample_ratio']['mean']:.2f}",
            f"{result['rollouts']['mean']:,.0f}",
        ]
        for name in ("rollouts", "tokens", "seconds"):
            low, high = (times(bound) for bound in result.get(f"{name}_ratio_interval", (None, None)))
            cells.append(f"{times(result[f'{name}_ratio'])} ({low} to {high})" if f"{name}_ratio" in result else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    before = next(iter(methods.values()))["accuracy_before"]["mean"]
    lines += [
        "",
        f"{config.num_seeds} seeds; accuracy before training {before:.3f}; final accuracy is the mean of the last "
        "three evaluations, ± its standard error over seeds; the last three columns are costs to uniform's final "
        "accuracy over uniform's own, with 95 % bootstrap intervals over seeds.",
    ]
    return "\n".join(lines) + "\n"


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, and writes results.json, table.md and figures; returns what results.json holds."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    # Runs that differ in their seed only share compiled programs. Not on CPU: XLA has crashed there reading its own.
    if jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", str((config.out_dir / "compiled").absolute()))
    summaries: dict[str, list[Any]] = {method: [] for method in config.methods}
    records: dict[str, list[Any]] = {method: [] for method in config.methods}
    for seed in range(config.num_seeds):
        for method in config.methods:
            console.print(f"{method}, seed {seed} ({seed + 1} of {config.num_seeds})")
            run = run_config(config, method, seed)
            done = run.folder / "summary.json"
            summary = json.loads(done.read_text(encoding="utf-8")) if done.exists() else {}
            if summary.get("rounds") != run.num_rounds:
                summary = train.main(run)
            summaries[method].append(summary)
            records[method].append(run_log.read_metrics(run.folder / "metrics.jsonl"))
    methods = summarise(config, records, summaries)
    options = dataclasses.asdict(config) | {"out_dir": config.out_dir.name}
    results = {"config": json.loads(json.dumps(options, default=str)), "methods": methods}
    (config.out_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = to_markdown(methods, config)
    (config.out_dir / "table.md").write_text(table, encoding="utf-8")
    before = next(iter(methods.values()))["accuracy_before"]["mean"]
    figures.save(figures.comparison(records, accuracy_before=before), config.out_dir / "comparison.png")
    for method, result in methods.items():
        if np.sum(result["confusion"]):
            figure = figures.confusion_matrix(result["confusion"], title=method)
            figures.save(figure, config.out_dir / f"confusion_{method}.png")
    console.print(table, markup=False)
    console.print(f"wrote {config.out_dir}")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
