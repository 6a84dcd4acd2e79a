"""Measures on held-out traces whether the filter predicts the next outcome better with fitted than with named priors.

Priors are fitted to some traces and scored on others with other seeds. The traces are of simulated learners in every
regime, and of training runs on Countdown in experiments/data/traces/, where another seed also means another training
set. The score is the one-step log loss of the three classes unsolved, partially solved and solved. It is compared with
the score of the best named prior and decay on a grid, which is chosen on the test traces themselves.
Writes results.json, table.md and log_loss.png.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import _machine
import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from dps_jax import _checks, _cli, _files, _json, priors, traces
from dps_jax.hmm import PRIOR_NAMES, TransitionPrior, resolve_prior
from dps_jax.priors import scores

DECAYS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
# Fits: name -> (model, options of the model, inference method).
FITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "online": ("online", {}, "map"),
    "online, two matrices": ("online", {"is_split": True}, "map"),
    "online, beta-binomial": ("online", {"emission": "beta-binomial", "num_states": 5}, "map"),
    "shared": ("shared", {}, "map"),
    "grouped": ("grouped", {}, "map"),
    "hierarchical": ("hierarchical", {}, "svi"),
}
TRACES = Path(__file__).resolve().parent / "data" / "traces"


@dataclasses.dataclass(frozen=True)
class Config:
    """The traces, and the sizes of the fits."""

    regimes: tuple[str, ...] = tuple(name for name in traces.REGIMES if name != "cold")
    """Regimes of the simulated learners, names in dps_jax.traces.REGIMES."""
    runs: tuple[str, ...] = ("dense", "uniform", "dps")
    """Training runs on Countdown in experiments/data/traces/: priors are fitted to NAME-0 and tested on NAME-1, and
    vice versa."""
    num_seeds: int = 1
    """Number of pairs of simulated traces per regime."""
    num_prompts: int = 600
    """Number of prompts of a simulated trace."""
    num_rounds: int = 100
    """Number of rounds of a simulated trace."""
    batch_size: int = 64
    """Number of prompts per round of a simulated trace."""
    num_steps: int = 500
    """Largest number of evaluations of the search for the mode, per start, and number of stochastic gradient steps."""
    fit_prompts: int = 600
    """Largest number of prompts that a fit uses; they are chosen at random."""
    out_dir: Path = Path("runs/compare_priors")
    """Folder for results.json, table.md and log_loss.png."""

    def __post_init__(self):
        for regime in self.regimes:
            _checks.check_choice("regimes", regime, traces.REGIMES)
        for name in ("num_seeds", "num_prompts", "num_rounds", "batch_size", "num_steps", "fit_prompts"):
            _checks.check_int(name, getattr(self, name), at_least=1)


def load(name: str) -> priors.Outcomes:
    """Returns the outcomes of a run of the former main job; its prompt groups are the levels of the problems.

    Raises:
      ValueError: if there is no such run.
    """
    path = TRACES / f"{name}.npz"
    if not path.exists():
        raise ValueError(f"runs: expected {path.name} in experiments/data/traces/, got none")
    with np.load(path) as columns:
        groups = columns["groups"]
    return priors.prepare(traces.read_trace(path), groups=groups)


def pairs_of(config: Config) -> dict[str, list[tuple[priors.Outcomes, priors.Outcomes]]]:
    """Returns the pairs (trace to fit to, trace to test on) of every source."""
    found: dict[str, list[tuple[priors.Outcomes, priors.Outcomes]]] = {}
    sizes = {"num_prompts": config.num_prompts, "num_rounds": config.num_rounds, "batch_size": config.batch_size}
    for regime in config.regimes:

        def simulated(seed: int, regime: str = regime) -> priors.Outcomes:
            learners = traces.simulate_learners(np.random.default_rng(seed), regime, **sizes)
            return priors.prepare(learners.trace, groups=learners.groups)

        found[regime] = [(simulated(2 * seed), simulated(2 * seed + 1)) for seed in range(config.num_seeds)]
    for run in config.runs:
        one, other = load(f"{run}-0"), load(f"{run}-1")
        found[f"main job, {run}"] = [(one, other), (other, one)]
    return found


def fitted(config: Config, outcomes: priors.Outcomes) -> dict[str, TransitionPrior]:
    """Returns the fitted priors by name."""
    kept = np.random.default_rng(0).permutation(outcomes.num_prompts)[: config.fit_prompts]
    outcomes = outcomes.take(np.sort(kept))
    found = {}
    for label, (name, options, method) in FITS.items():
        model = priors.build(name, outcomes, **options)
        with warnings.catch_warnings():
            # Warnings about convergence are ignored, as the priors are judged by their score.
            warnings.simplefilter("ignore", UserWarning)
            result = priors.fit(
                model, outcomes, jax.random.key(0), method=method, num_steps=config.num_steps, progress=False
            )
        found[label] = result.prior
    return found


def compare(config: Config, pairs: list[tuple[priors.Outcomes, priors.Outcomes]]) -> dict[str, Any]:
    """Returns the losses of fitted and named priors on the test traces, and the gains over the best named prior."""
    named = [(name, decay) for name in PRIOR_NAMES for decay in DECAYS]
    losses: dict[str, list[np.ndarray]] = {}
    chosen: dict[str, Any] = {}
    for train, test in pairs:
        for label, prior in fitted(config, train).items():
            losses.setdefault(label, []).append(scores.log_losses(prior, test))
            chosen[label] = prior.to_dict() if not prior.groups else {"decay": float(prior.decay)}
        for name, decay in named:
            prior = resolve_prior(name, decay=decay)
            losses.setdefault(f"{name} {decay}", []).append(scores.log_losses(prior, test))
    stacked = {label: np.concatenate(parts, axis=1) for label, parts in losses.items()}
    mean = {label: float(loss[0].sum() / loss[1].sum()) for label, loss in stacked.items()}
    best = min((f"{name} {decay}" for name, decay in named), key=lambda label: mean[label])
    rng = np.random.default_rng(0)
    gains = {label: scores.difference(stacked[label], stacked[best], rng) for label in FITS}
    return {
        "num_prompts": int(stacked[best].shape[1]),
        "num_visits": int(stacked[best][1].sum()),
        "best_named": best,
        "log_loss": mean,
        "gain_over_best_named": {
            label: {"mean": m, "interval": [low, high]} for label, (m, low, high) in gains.items()
        },
        "prior": chosen,
    }


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the table of log losses per visit, and of gains over the best named prior with their intervals."""
    lines = [
        f"| trace | best named prior and decay | DPS default | {' | '.join(FITS)} |",
        "|---|---:|---:|" + "---:|" * len(FITS),
    ]
    for source, result in results["sources"].items():
        cells = [f"{result['best_named']}: {result['log_loss'][result['best_named']]:.3f}"]
        cells.append(f"{result['log_loss']['uniform 0.7']:.3f}")
        for label in FITS:
            gain = result["gain_over_best_named"][label]
            low, high = gain["interval"]
            mark = "**" if low > 0 else ""
            cells.append(f"{mark}{result['log_loss'][label]:.3f}{mark} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| {source} | {' | '.join(cells)} |")
    lines += [
        "",
        "One-step log loss of the three solve states on held-out traces, in nats per visit; lower is better. "
        f"Probabilities below {scores.SMALLEST_PROB} count as {scores.SMALLEST_PROB}. In brackets: "
        "95 % bootstrap interval over prompts of the gain over the best named prior, which was picked on the test "
        "traces. Bold: this interval is above 0.",
    ]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Plots loss against decay for the named priors, and the fitted priors as horizontal lines."""
    sources = results["sources"]
    columns = min(len(sources), 4)
    lines = -(-len(sources) // columns)
    figure = Figure(figsize=(3.6 * columns, 3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, (source, result) in zip(grid.flat, sources.items(), strict=False):
        for index, name in enumerate(PRIOR_NAMES):
            values = [result["log_loss"][f"{name} {decay}"] for decay in DECAYS]
            axes.plot(DECAYS, values, color=f"C{index}", marker=".", linewidth=1, label=name)
        for index, label in enumerate(FITS):
            axes.axhline(result["log_loss"][label], color=f"C{index + 4}", linestyle="--", linewidth=1.2, label=label)
        axes.set_title(source, fontsize="small")
        axes.set(xlabel="decay", ylabel="log loss, nats")
    for axes in list(grid.flat)[len(sources) :]:
        axes.set_visible(False)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=120)


def main(config: Config) -> dict[str, Any]:
    """Fits and scores the priors, writes the results, and returns them."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    options = json.loads(json.dumps(dataclasses.asdict(config) | {"out_dir": config.out_dir.name}, default=str))
    results: dict[str, Any] = {"config": options, "machine": _machine.describe_machine(), "sources": {}}
    for source, pairs in pairs_of(config).items():
        path = config.out_dir / f"{source.replace(', ', '-').replace(' ', '-')}.json"
        sizes = {name: value for name, value in options.items() if name not in ("regimes", "runs", "out_dir")}
        result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if result.get("options") != sizes:
            result = {"options": sizes, **compare(config, pairs)}
            _files.write_atomically(path, json.dumps(result) + "\n")
        results["sources"][source] = result
        found = {label: round(result["log_loss"][label], 4) for label in (result["best_named"], *FITS)}
        console.print(f"{source}: {found}", highlight=False)
    _json.write(config.out_dir / "results.json", results, indent=1)
    table = to_markdown(results)
    (config.out_dir / "table.md").write_text(table, encoding="utf-8")
    plot(results, config.out_dir / "log_loss.png")
    console.print(table, markup=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
