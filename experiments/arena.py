"""The arena: trains a small model with different selection methods, on several mixes of prompts, over seeds.

    python experiments/arena.py                                    # the first table of docs/when-selection-pays.md
    python experiments/arena.py --study decay                      # compares the values of one option
    python experiments/arena.py --mixes lean --methods dps instructive --num-seeds 4

It measures accuracy on held-out prompts: the area under the curve of accuracy against rollouts, and the number of
rollouts until the final accuracy of uniform selection is reached, with paired differences over seeds. Finished runs are
kept in OUT_DIR/runs/, so that an interrupted arena can continue and arenas share the runs that they have in common.
Writes results.json, table.md and figures to OUT_DIR/NAME/.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import _arena
import _arena_report
import _arena_studies
import _machine
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dps_jax import _checks, _cli, _files, _json, viz

# Methods whose rounds take several times as long as those of other methods; they run last.
_DEAR = ("ds", "ds-free", *_arena.BOUNDS)
# DPS is also run at larger decays, which are better than its default of 0.7 if success rates change slowly.
_METHODS = ("uniform", "dps", "dps:decay=0.9", "dps:decay=1.0", "instructive")


@dataclasses.dataclass(frozen=True)
class Config:
    """The methods, mixes and sizes to compare."""

    study: str | None = None
    """Name of a study in experiments/_arena_studies.py, which compares the values of one option and replaces --methods.
    Its figure shows the area under the accuracy curve by value."""
    mixes: tuple[str, ...] = ("lean", "lean-by-level", "typical", "rich")
    """Mixes of prompts: some of lean, lean-by-level, typical, rich, steps-lean and steps-typical."""
    num_prompts: tuple[int, ...] = (2400, 20000)
    """Sizes of the training set, N. In 150 rounds of 32 visits, every prompt is visited twice on average at N = 2,400;
    at N = 20,000, uniform selection hardly visits a prompt twice."""
    methods: tuple[str, ...] = _METHODS
    """Selection methods: uniform, history, ds, mopps, queue, arcsine, logit_kalman, ema_variance, last_state,
    shared_net, dps, dps-fitted, binomial_hmm and instructive; options may follow a name, as in
    instructive:hardness=0,temperature=1. ds is dynamic sampling; ds-free is the same, but discarded rollouts are not
    counted. The bounds true-greedy, true-proportional, true-instructive and true-informative use estimates of the true
    success rates."""
    learning_rates: tuple[float, ...] = (3e-4,)
    """Learning rates of the policy; every method is run with each."""
    num_seeds: int = 10
    """Number of runs of every method. Each seed has its own training set; all have the same held-out set and initial
    weights."""
    first_seed: int = 2000
    """First of the consecutive seeds. Seeds below 2000 were used to choose methods and learning rates."""
    num_rounds: int = 150
    """Number of rounds, a multiple of 10; by default a round has 32 prompts with 8 completions each."""
    num_workers: int = os.cpu_count() or 1
    """Number of worker processes, each with one thread."""
    seconds_from: Path | None = None
    """File results.json of an arena that ran on an otherwise idle machine. The seconds per rollout of each method and
    number of prompts are read from this file; None uses the times of the runs themselves."""
    name: str | None = None
    """Name of the folder with the results; None is the name of the study, or "main"."""
    out_dir: Path = Path("runs/arena")
    """Folder of all runs and results."""

    def __post_init__(self):
        if self.study is not None:
            _checks.check_choice("study", self.study, _arena_studies.STUDIES)
            # With --study, --methods may only have its default value.
            if self.methods not in (_METHODS, _arena_studies.methods(self.study)):
                raise ValueError(f"methods: expected none with --study {self.study}, got {self.methods}")
            object.__setattr__(self, "methods", _arena_studies.methods(self.study))
        if self.name is None:
            object.__setattr__(self, "name", self.study or "main")
        if not self.name or Path(self.name).name != self.name or self.name in (".", "..", "runs"):
            raise ValueError(f"name: expected the name of a folder other than 'runs', got {self.name!r}")
        for mix in self.mixes:
            _checks.check_choice("mixes", mix, _arena.MIXES)
        for method in self.methods:
            _arena.changes_of(method)
        for field in ("num_seeds", "num_workers"):
            _checks.check_int(field, getattr(self, field), at_least=1)
        _checks.check_int("first_seed", self.first_seed, at_least=0)
        if self.num_rounds % 10 or self.num_rounds < 10:
            raise ValueError(f"num_rounds: expected a multiple of 10, got {self.num_rounds}")
        for cell in self.cells():
            _arena.run_config(cell, self.first_seed)

    def cells(self) -> list[_arena.Cell]:
        """Returns all cells (methods on mixes, at each N and learning rate); those of slow methods come last."""
        found = [
            _arena.Cell(mix, size, method, rate, self.num_rounds)
            for size in self.num_prompts
            for mix in self.mixes
            for method in self.methods
            for rate in self.learning_rates
        ]
        return sorted(found, key=lambda cell: _arena.base(cell.method) in _DEAR)

    def seeds(self) -> range:
        """Returns the seeds of every cell."""
        return range(self.first_seed, self.first_seed + self.num_seeds)


def run_path(out_dir: Path, cell: _arena.Cell, seed: int) -> Path:
    """Returns the path of the record of a run."""
    return out_dir / "runs" / f"{cell.name()}-{cell.num_rounds}-{seed}.json"


def commit() -> str | None:
    """Returns the current commit, followed by a + if tracked files were modified; None outside a repository."""
    git = lambda *words: subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def run_cell(cell: _arena.Cell, seeds: Sequence[int], out_dir: Path) -> None:
    """Runs some seeds of a cell in this process, and writes the record of each run when it ends."""
    machine = _machine.describe_machine()
    origin = {"commit": commit(), "machine": f"{machine['cpu']}, JAX {machine['jax']}"}
    write = lambda record: _files.write_atomically(
        run_path(out_dir, cell, record["seed"]), json.dumps(record | origin) + "\n"
    )
    _arena.run(cell, seeds, write)


def run_missing(config: Config, console: Console) -> None:
    """Carries out all runs without a record, in processes with one thread each."""
    missing = {
        cell: [seed for seed in config.seeds() if not run_path(config.out_dir, cell, seed).exists()]
        for cell in config.cells()
    }
    missing = {cell: seeds for cell, seeds in missing.items() if seeds}
    if not missing:
        return
    (config.out_dir / "runs").mkdir(parents=True, exist_ok=True)
    # The worker processes inherit this. Small matrix products gain nothing from a second thread.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("cells"), TimeRemainingColumn())
    pool = futures.ProcessPoolExecutor(
        config.num_workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    )
    with pool, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("arena", total=len(missing))
        tasks = {pool.submit(run_cell, cell, seeds, config.out_dir): cell for cell, seeds in missing.items()}
        for number, task in enumerate(futures.as_completed(tasks)):
            task.result()
            progress.update(bar, advance=1, description=tasks[task].name())
            if not console.is_terminal:
                console.print(f"{number + 1} of {len(missing)}: {tasks[task].name()}")


def _seconds_of(seconds: dict[tuple[int, str], float], record: dict[str, Any]) -> float:
    """Returns the seconds per rollout of the method of a record; the time of `dps` is used for all of its decays.

    Raises:
      ValueError: if the method was not timed at this N.
    """
    size, method = record["num_prompts"], record["method"]
    timed = _arena.base(method) if method.partition("=")[0] == "dps:decay" and (size, method) not in seconds else method
    if (size, timed) not in seconds:
        raise ValueError(f"seconds_from: expected {method!r} with N = {size:,}, got only {sorted(seconds)}")
    return seconds[size, timed]


def main(config: Config) -> dict[str, Any]:
    """Carries out the missing runs, writes results.json, table.md and figures, and returns the results."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    run_missing(config, console)
    records = [
        json.loads(run_path(config.out_dir, cell, seed).read_text(encoding="utf-8"))
        for cell in config.cells()
        for seed in config.seeds()
    ]
    if config.seconds_from is not None:
        timed = json.loads(config.seconds_from.read_text(encoding="utf-8"))["cells"]
        seconds = {(row["num_prompts"], row["method"]): row["seconds_per_rollout"] for row in timed}
        records = [record | {"seconds_per_rollout": _seconds_of(seconds, record)} for record in records]
    cells = _arena_report.summarise(records)
    options = dataclasses.asdict(config) | {"out_dir": config.out_dir.name}
    results = {
        "config": json.loads(json.dumps(options, default=str)),
        "commits": sorted({str(record["commit"]) for record in records}),
        "machines": sorted({record["machine"] for record in records}),
        "cells": cells,
    }
    folder = config.out_dir / str(config.name)
    folder.mkdir(parents=True, exist_ok=True)
    _json.write(folder / "results.json", results, indent=1)
    table = _arena_report.to_markdown(cells) + "\n" + _arena_report.costs_to_markdown(cells)
    _files.write_atomically(folder / "table.md", table)
    for name, figure in _arena_report.draw(results).items():
        viz.save(figure, folder / f"{name}.png")
    console.print(table, markup=False, soft_wrap=True)
    console.print(f"wrote {folder}")
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
