"""Fits a transition prior to a logged trace, and says how well the filter predicts with it.

    python experiments/fit_prior.py runs/train/trace.npz --model grouped
    python experiments/train.py --name next --selector.method dps --selector.prior runs/priors/train-grouped/prior.json

A part of the prompts is held out of the fit to compare the one-step predictions with those under the named priors.
Writes prior.json, posterior.npz (the draws), fit.json (summary, diagnostics, comparison) and prior.png.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dps_jax import _checks, _files, priors, traces
from dps_jax.hmm.transitions import PRIOR_NAMES, resolve_prior
from dps_jax.priors import scores

DECAYS = (0.0, 0.5, 0.7, 0.9, 0.95, 0.98, 1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to fit, to what."""

    trace: Annotated[Path, tyro.conf.Positional]
    """The trace of a run: a .npz, .parquet or .csv file with columns round, prompt_id, successes, count."""
    model: Literal["shared", "hierarchical", "grouped", "covariates", "online"] = "online"
    """shared: one matrix for all; hierarchical: one per prompt; grouped: one per group; covariates: from features of
    prompts; online: the counts and the decay of the filter itself."""
    method: Literal["nuts", "svi", "map"] = "map"
    """nuts: posterior draws; svi: a normal approximation; map: the mode."""
    emission: Literal["exact", "binomial", "beta-binomial"] = "exact"
    """exact: unsolved, partially solved, solved; the others use the count itself, with learned rates."""
    num_states: int = 3
    """K."""
    split: bool = False
    """Two matrices: for rounds in which the prompt was rolled out, and for rounds in which it was left alone."""
    prompts: Path | None = None
    """A .npz file with `groups` [N] and `features` [N, D] by prompt id; prompts.npz beside the trace by default."""
    last_rounds: int | None = None
    """Use only so many rounds at the end of the trace."""
    held_out: float = 0.2
    """Share of the prompts that the fit does not see, to score it on."""
    num_warmup: int = 500
    """Steps of NUTS before the draws, per chain."""
    num_samples: int = 500
    """Draws, per chain of NUTS."""
    num_chains: int = 2
    """Chains of NUTS."""
    num_steps: int = 1500
    """Steps of svi and map."""
    batch_size: int | None = 1024
    """Prompts per step of svi and map."""
    seed: int = 0
    """Of the fit and of the split."""
    name: str | None = None
    """The results go to out_dir/name; by default the trace's folder and the model."""
    out_dir: Path = Path("runs/priors")
    """Folder of all fits."""

    def __post_init__(self):
        _checks.check_in_interval("held_out", self.held_out, 0.0, 0.9)
        _checks.check_int("seed", self.seed, at_least=0)

    @property
    def folder(self) -> Path:
        """The folder that results go to."""
        return self.out_dir / (self.name or f"{self.trace.resolve().parent.name}-{self.model}")


def load(config: Config) -> priors.Outcomes:
    """Returns the outcomes, with groups and features where they are known.

    Raises:
      ValueError: for a file that is missing or holds something else.
    """
    if not config.trace.is_file():
        raise ValueError(
            f"trace: expected a .npz, .parquet or .csv file, got {str(config.trace)!r}, which does not exist"
        )
    trace = traces.read_trace(config.trace)
    path = config.prompts or config.trace.with_name("prompts.npz")
    known: dict[str, np.ndarray] = {}
    if path.is_file():
        try:
            with np.load(path) as columns:
                known = {name: columns[name] for name in ("groups", "features") if name in columns}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: expected a .npz file with `groups` or `features`, got {error}") from error
    elif config.prompts is not None:
        raise ValueError(f"prompts: expected a .npz file, got {str(path)!r}, which does not exist")
    features = known.get("features")
    if features is not None:
        # Columns that do not vary say nothing.
        features = features[:, features.std(axis=0) > 0].astype(np.float64)
        features = (features - features.mean(axis=0)) / features.std(axis=0) if features.shape[1] else None
    return priors.prepare(trace, groups=known.get("groups"), features=features, last_rounds=config.last_rounds)


def compare(prior: Any, outcomes: priors.Outcomes) -> dict[str, Any]:
    """Returns one-step log losses on held-out prompts: with the prior, and with every named one at every decay."""
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
    """Draws the prior's mean matrices, and their counts, for all and for the groups."""
    prior = result.prior
    shown = [("left alone" if prior.trained_concentration is not None else "all prompts", prior.concentration)]
    if prior.trained_concentration is not None:
        shown.append(("rolled out", prior.trained_concentration))
    shown += [(f"group {index}", group.concentration) for index, group in enumerate(prior.groups)]
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
        axes.set_title(f"{title}, rows count {counts.sum(axis=1).mean():.1f}", fontsize="small")
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle(f"{result.model}, decay {float(prior.decay):.3f}", fontsize="medium")
    figure.savefig(path, dpi=120)


def report(console: Console, result: priors.FitResult, comparison: dict[str, Any] | None) -> None:
    """Prints what was found."""
    table = Table("parameter", "mean", "sd", "5 %", "95 %")
    for name, columns in result.summary().items():
        for place in list(np.ndindex(columns["mean"].shape))[:18]:
            values = (f"{columns[column][place]:.3f}" for column in ("mean", "sd", "5%", "95%"))
            table.add_row(f"{name}{list(place) if place else ''}", *values)
    console.print(table)
    for words in result.judgement.warnings:
        console.print(f"warning: {words}", markup=False, highlight=False)
    if comparison is not None:
        low, high = comparison["gain"]["interval"]
        lines = (
            f"one-step log loss on {comparison['num_prompts']} held-out prompts, nats: {comparison['fitted']:.4f}",
            f"  default prior: {comparison['default']:.4f}",
            f"  best named prior ({comparison['best_named']}): {comparison['best_named_loss']:.4f}, so a gain of "
            f"{comparison['gain']['mean']:.4f} (95 % interval {low:.4f} to {high:.4f})",
        )
        console.print("\n".join(lines), markup=False, highlight=False)


def main(config: Config) -> dict[str, Any]:
    """Fits, scores and writes; returns what was found on the held-out prompts."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    outcomes = load(config)
    order = np.random.default_rng(config.seed).permutation(outcomes.num_prompts)
    num_held_out = round(config.held_out * outcomes.num_prompts)
    held_out, kept = order[:num_held_out], np.sort(order[num_held_out:])
    console.print(
        f"{outcomes.num_prompts} prompts seen in {outcomes.num_rounds} rounds, {num_held_out} held out", highlight=False
    )
    model = priors.build(
        config.model, outcomes, emission=config.emission, num_states=config.num_states, is_split=config.split
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # printed below
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
    result.save(config.folder)
    path = config.folder / "fit.json"
    facts = json.loads(path.read_text(encoding="utf-8")) | {"held_out": comparison}
    _files.write_atomically(path, json.dumps(facts, indent=2) + "\n")
    plot(result, config.folder / "prior.png")
    report(console, result, comparison)
    console.print(f"wrote {config.folder}; use it with --selector.prior {config.folder / 'prior.json'}", markup=False)
    return {"folder": config.folder, "held_out": comparison}


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError, priors.FitError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
