"""Fits a transition prior to a logged trace, and measures how well the filter predicts with it.

    python experiments/fit_prior.py runs/train/trace.npz --model grouped
    python experiments/train.py --name next --selector.method dps --selector.prior runs/priors/train-grouped/prior.json

Some prompts are held out of the fit. On these prompts, one-step predictions with the fitted prior are compared with
predictions with the named priors. Writes prior.json, posterior.npz (the draws), fit.json (summary, diagnostics,
comparison) and prior.png.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import _folders
import _side_information
import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dps_jax import _checks, _cli, _json, priors, traces
from dps_jax.hmm import PRIOR_NAMES, resolve_prior
from dps_jax.priors import scores

DECAYS = (0.0, 0.5, 0.7, 0.9, 0.95, 0.98, 1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """The trace, the model and the fit."""

    trace: Annotated[Path, tyro.conf.Positional]
    """Trace of a run: a file or folder, in any format that docs/traces.md lists."""
    columns: traces.ColumnNames = dataclasses.field(default_factory=traces.ColumnNames)
    """Names of the columns of the trace, where they differ from those that trainers use."""
    threshold: float | None = None
    """Smallest reward that counts as correct; by default rewards must be 0 or 1."""
    model: Literal["shared", "hierarchical", "grouped", "covariates", "online"] = "online"
    """Model of the transition matrices: shared (one for all prompts), hierarchical (one per prompt), grouped (one per
    prompt group), covariates (predicted from features of the prompts), or online (prior counts and decay of the filter
    itself)."""
    method: Literal["nuts", "svi", "map"] = "map"
    """Inference method: nuts (posterior draws), svi (a normal approximation) or map (the mode)."""
    emission: Literal["exact", "binomial", "beta-binomial"] = "exact"
    """Emission model: exact (unsolved, partially solved and solved are observed as such), or binomial and beta-binomial
    (the number of correct completions is observed, with learned success rates)."""
    num_states: int = 3
    """Number of hidden states, K; with the exact emission 2, 3, 5 or 7."""
    split: bool = False
    """Fit two matrices: one for rounds in which the prompt was rolled out, and one for rounds in which it was not."""
    prompts: Path | None = None
    """A .npz file with the arrays groups [N] and features [N, D] by prompt id, or by the ids in its array prompt_id
    [N]; by default prompts.npz beside the trace."""
    last_rounds: int | None = None
    """Number of rounds at the end of the trace that are used; None uses all."""
    held_out: float = 0.2
    """Share of the prompts that are held out of the fit and used to score it."""
    num_warmup: int = 500
    """Number of warm-up steps of NUTS, per chain."""
    num_samples: int = 500
    """Number of posterior draws; with NUTS, per chain."""
    num_chains: int = 2
    """Number of chains of NUTS."""
    num_steps: int = 1500
    """For svi and map: largest number of evaluations of the search for the mode, per start, and number of stochastic
    gradient steps, if there are any."""
    batch_size: int | None = 1024
    """For svi and map: number of prompts per stochastic gradient step, and in the random subset on which the mode is
    searched; None is all prompts."""
    seed: int = 0
    """Random seed of the fit and of the held-out split."""
    name: str | None = None
    """Name of the folder of the results in OUT_DIR; by default it consists of the folder and name of the trace, the
    name of the model, and where they are not the defaults the emission, the number of states and "split"."""
    out_dir: Path = Path("runs/priors")
    """Folder that holds the results of all fits."""

    def __post_init__(self):
        _checks.check_in_interval("held_out", self.held_out, 0.0, 0.9)
        _checks.check_int("seed", self.seed, at_least=0)

    @property
    def folder(self) -> Path:
        """Folder of the results; unusual emissions, numbers of states and splits are part of its default name."""
        if self.name:
            return self.out_dir / self.name
        parts = [_folders.trace_label(self.trace), self.model]
        parts += [self.emission] if self.emission != "exact" else []
        parts += [f"{self.num_states}-states"] if self.num_states != 3 else []
        parts += ["split"] if self.split else []
        return self.out_dir / "-".join(parts)


def load(config: Config) -> priors.Outcomes:
    """Returns the outcomes of the trace, with groups and features if these are known.

    Raises:
      ValueError: for a file that is missing or has other content.
    """
    if not config.trace.exists():
        raise ValueError(f"trace: expected a file or folder, got {str(config.trace)!r}, which does not exist")
    trace = traces.read_trace(config.trace, config.columns, threshold=config.threshold)
    path = config.prompts or _side_information.beside(config.trace)
    known: dict[str, Any] = {}
    if path.is_file():
        known = _side_information.read(path)
    elif config.prompts is not None:
        raise ValueError(f"prompts: expected a .npz file, got {str(path)!r}, which does not exist")
    if known.get("features") is not None:
        known["features"] = standardised(path, known["features"])
    return priors.prepare(trace, **_side_information.by_prompt(path, known), last_rounds=config.last_rounds)


def standardised(path: Path, features: np.ndarray) -> np.ndarray | None:
    """Returns features scaled to mean 0 and standard deviation 1, [N, D]; None if no column varies."""
    if features.ndim != 2 or features.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: features: expected numbers of shape [N, D], got {features.dtype} {list(features.shape)}"
        )
    # Constant columns contain no information.
    features = features[:, features.std(axis=0) > 0].astype(np.float64)
    return (features - features.mean(axis=0)) / features.std(axis=0) if features.shape[1] else None


def check_folder(config: Config) -> None:
    """Raises a ValueError if the folder of the results contains a fit to another trace."""
    path = config.folder / "fit.json"
    if not path.exists():
        return
    try:
        other = json.loads(path.read_text(encoding="utf-8"))["trace"]
    except (ValueError, KeyError, TypeError, RecursionError):
        other = "an unknown trace"
    if other != trace_of(config):
        raise ValueError(
            f"{config.folder}: expected a folder of fits to {trace_of(config)!r}, got a fit to {other!r}; "
            "choose another --name, or remove it"
        )


def trace_of(config: Config) -> str:
    """Returns the path of the trace relative to the folder of the results, which stays valid if both are moved."""
    return Path(os.path.relpath(config.trace.resolve(), config.folder.resolve())).as_posix()


def compare(prior: Any, outcomes: priors.Outcomes) -> dict[str, Any]:
    """Returns the one-step log losses on held-out prompts of the prior, and of the best named prior and decay."""
    fitted = scores.log_losses(prior, outcomes)
    mean = lambda loss: float(loss[0].sum() / loss[1].sum())
    named = {
        f"{name}, decay {decay}": scores.log_losses(resolve_prior(name, decay=decay), outcomes)
        for name in PRIOR_NAMES
        for decay in DECAYS
    }
    best = min(named, key=lambda label: mean(named[label]))
    gain, low, high = scores.difference(fitted, named[best], np.random.default_rng(0))
    return {
        "num_prompts": outcomes.num_prompts,
        "fitted": mean(fitted),
        "default": mean(named["uniform, decay 0.7"]),
        "best_named": best,
        "best_named_loss": mean(named[best]),
        "gain": {"mean": gain, "interval": [low, high]},
    }


def plot(result: priors.FitResult, path: Path) -> None:
    """Plots the mean transition matrices of the prior, with counts per row, for all prompts and for each group."""
    prior = result.prior
    shown = [("idle" if prior.trained_concentration is not None else "all prompts", prior.concentration)]
    if prior.trained_concentration is not None:
        shown.append(("rolled out", prior.trained_concentration))
    shown += [
        (f"group {name}", group.concentration) for name, group in zip(prior.names_of_groups, prior.groups, strict=True)
    ]
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(2.8 * columns, 3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, (title, counts) in zip(grid.flat, shown, strict=False):
        matrix = counts / counts.sum(axis=1, keepdims=True)
        axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(matrix):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
        ticks = range(prior.num_states)
        axes.set(xticks=ticks, yticks=ticks, xlabel="to state", ylabel="from state")
        axes.set_title(f"{title}, {counts.sum(axis=1).mean():.1f} counts per row", fontsize="small")
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle(f"{result.model}, decay {float(prior.decay):.3f}", fontsize="medium")
    figure.savefig(path, dpi=120)


def report(console: Console, result: priors.FitResult, comparison: dict[str, Any] | None) -> None:
    """Prints the parameters, the warnings and the comparison of a fit."""
    # A mode has no standard deviation and no quantiles.
    shown = {"mean": "mode"} if result.method == "map" else {"mean": "mean", "sd": "sd", "5%": "5 %", "95%": "95 %"}
    table = Table("parameter", *shown.values())
    for name, columns in result.summary().items():
        for place in list(np.ndindex(columns["mean"].shape))[:18]:
            values = (f"{columns[column][place]:.3f}" for column in shown)
            table.add_row(f"{name}{list(place) if place else ''}", *values)
    console.print(table)
    for words in result.judgement.warnings:
        console.print(f"warning: {words}", markup=False, highlight=False)
    if comparison is not None:
        low, high = comparison["gain"]["interval"]
        lines = (
            "one-step log loss of the solve state (unsolved, partially solved or solved) on "
            f"{comparison['num_prompts']} held-out prompts, nats: {comparison['fitted']:.4f}",
            f"  default prior: {comparison['default']:.4f}",
            f"  best named prior ({comparison['best_named']}): {comparison['best_named_loss']:.4f}; the gain is "
            f"{comparison['gain']['mean']:.4f} (95 % interval {low:.4f} to {high:.4f})",
        )
        console.print("\n".join(lines), markup=False, highlight=False)


def main(config: Config) -> dict[str, Any]:
    """Fits the prior, scores it and writes the results; returns the scores on the held-out prompts."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    check_folder(config)
    outcomes = load(config)
    order = np.random.default_rng(config.seed).permutation(outcomes.num_prompts)
    num_held_out = round(config.held_out * outcomes.num_prompts)
    held_out, kept = order[:num_held_out], np.sort(order[num_held_out:])
    if kept.size == 0:
        raise ValueError(
            f"held_out: expected at least one prompt for the fit, got {config.held_out} of {outcomes.num_prompts} held "
            f"out in {config.trace}; hold out fewer, or use a trace with more prompts"
        )
    console.print(
        f"{outcomes.num_prompts} prompts seen in {outcomes.num_rounds} rounds, {num_held_out} held out", highlight=False
    )
    model = priors.build(
        config.model, outcomes, emission=config.emission, num_states=config.num_states, is_split=config.split
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # `report` prints them
        result = priors.fit(
            model,
            outcomes.take(kept),
            jax.random.key(config.seed),
            method=config.method,
            num_warmup=config.num_warmup,
            num_samples=config.num_samples,
            num_chains=config.num_chains,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            progress=console.is_terminal,
        )
    comparison = compare(result.prior, outcomes.take(np.sort(held_out))) if num_held_out else None
    if (config.folder / "fit.json").exists():
        console.print(f"replaces the earlier fit in {config.folder}", markup=False, highlight=False)
    result.save(config.folder)
    path = config.folder / "fit.json"
    facts = json.loads(path.read_text(encoding="utf-8")) | {"trace": trace_of(config), "held_out": comparison}
    _json.write(path, facts, indent=2)
    plot(result, config.folder / "prior.png")
    report(console, result, comparison)
    console.print(f"wrote {config.folder}; use it with --selector.prior {config.folder / 'prior.json'}", markup=False)
    return {"folder": config.folder, "held_out": comparison}


if __name__ == "__main__":
    try:
        main(_cli.cli(Config, description=__doc__))
    except (ValueError, OSError, priors.FitError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
