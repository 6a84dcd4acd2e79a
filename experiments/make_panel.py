"""Makes the public panel: runs of the main job in which every prompt is sampled every few rounds.

    python experiments/make_panel.py                       # all runs, some minutes each
    python experiments/make_panel.py --runs uniform-0 --num-rounds 50 --out-dir runs/panel

A run trains as experiments/train.py does with its defaults. Before the update of round r, the prompts whose id is r
modulo the period are sampled too, and not trained on; the run's own random numbers are the same with and without that.
A panel is written when its run is finished: what is there is kept, and a run that was interrupted is done again. The
runs NAME-0 are for tuning; the others are held out, and no constant of this library was chosen on them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _machine
import jax
import jax.numpy as jnp
import numpy as np
import train
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import track

from dps_jax import _checks, _files, selectors
from dps_jax.traces.panel import Panel, read_panel, write_panel
from dps_jax.training import config as configs
from dps_jax.training import evaluation, setup
from dps_jax.training.round import TrainState

PANELS = Path(__file__).resolve().parent / "data" / "panel"
# Prompts of a sweep that are sampled together.
_SWEEP_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs."""

    runs: tuple[str, ...] = ("uniform-0", "uniform-1", "dps-1", "binomial_hmm-1")
    """METHOD-SEED of each run. The seed decides on prompts, sampling and selection; 0 is for tuning."""
    num_prompts: int = 2400
    """N."""
    num_rounds: int = 160
    """T."""
    period: int = 6
    """Rounds in which every prompt is sampled once."""
    batch_size: int = 32
    """Prompts that a round trains on."""
    group_size: int = 8
    """G, completions of a prompt."""
    out_dir: Path = PANELS
    """Where panels go."""

    def __post_init__(self):
        for run in self.runs:
            method, _, seed = run.rpartition("-")
            _checks.check_choice("runs", method, selectors.SELECTORS)
            if not seed.isdecimal():
                raise ValueError(f"runs: expected names METHOD-SEED, such as 'dps-1', got {run!r}")
        for name in ("num_prompts", "num_rounds", "period"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        if self.period > self.num_prompts:
            raise ValueError(f"period: expected at most num_prompts = {self.num_prompts}, got {self.period}")

    def train_config(self, run: str) -> configs.TrainConfig:
        """Returns the config of a run."""
        method, _, seed = run.rpartition("-")
        config = configs.TrainConfig(
            name=run,
            seed=int(seed),
            num_rounds=self.num_rounds,
            task=configs.TaskConfig(num_train=self.num_prompts),
            selector=configs.SelectorConfig(method=method),
            rollout=configs.RolloutConfig(batch_size=self.batch_size, group_size=self.group_size),
        )
        return train.with_default_weights(config)


def make_step(config: configs.TrainConfig, parts: setup.Parts) -> Callable[..., Any]:
    """Returns (state, problems, swept ids [P]) -> (next state, trained ids, their successes, those of the sweep)."""
    graphdef, _ = nnx.split(setup.load_policy(config, parts.task))
    sampling = {"group_size": config.rollout.group_size, "temperature": config.rollout.temperature}
    sample_fn = setup.make_sampler(graphdef, parts.task, **sampling, top_p=config.rollout.top_p)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)

    def step(state: TrainState, problems: Any, swept: jax.Array) -> tuple[TrainState, jax.Array, jax.Array, jax.Array]:
        successes, _, _ = evaluation.sample_all(
            state.params,
            problems.prompts[swept],
            problems.facts[swept],
            jax.random.fold_in(key, state.round_index),
            sample_fn=sample_fn,
            score_fn=parts.task.score,
            num_samples=config.rollout.group_size,
            batch_size=_SWEEP_BATCH,
        )
        collection = parts.round.collect(state, problems, parts.round.select(state))
        state, _ = parts.round.update(state, collection)
        state, *_ = parts.round.observe(state, collection)
        return state, collection.ids, collection.successes, successes

    return jax.jit(step, donate_argnums=0)


def make_panel(config: Config, run: str, console: Console) -> Panel:
    """Returns the panel of a run."""
    train_config = config.train_config(run)
    parts = setup.build(train_config)
    step = make_step(train_config, parts)
    state = jax.jit(lambda params: parts.round.init(params, jax.random.key(train_config.seed)))(parts.params)
    swept = np.full((config.num_rounds, config.num_prompts), -1, np.int8)
    trained = swept.copy()
    rounds = range(config.num_rounds)
    for index in track(rounds, description=run, console=console, disable=not console.is_terminal):
        ids = np.arange(index % config.period, config.num_prompts, config.period)
        # Of one length, so that one program does all rounds; what is sampled twice is kept once.
        padded = np.resize(ids, -(-config.num_prompts // config.period))
        state, trained_ids, successes, swept_successes = step(state, parts.problems, jnp.asarray(padded))
        trained[index, np.asarray(trained_ids)] = np.asarray(successes)
        swept[index, ids] = np.asarray(swept_successes)[: ids.size]
    return Panel(
        swept=swept,
        trained=trained,
        group_size=config.group_size,
        groups=np.asarray(parts.problems.groups).astype(np.int8),
        features=np.asarray(parts.problems.facts),
        method=train_config.selector.method,
    )


def describe(panel: Panel) -> dict[str, Any]:
    """Returns figures of a panel: how far training came, and what a selector finds."""
    share = lambda table: float(table[table >= 0].mean()) / panel.group_size
    informative = lambda table: float(np.mean((table[table >= 0] > 0) & (table[table >= 0] < panel.group_size)))
    tenth = max(len(panel.swept) // 10, 1)
    return {
        "method": panel.method,
        "rounds": len(panel.swept),
        "prompts": panel.num_prompts,
        "groups_swept": int(np.sum(panel.swept >= 0)),
        "groups_trained": int(np.sum(panel.trained >= 0)),
        "success_rate_first_tenth": share(panel.swept[:tenth]),
        "success_rate_last_tenth": share(panel.swept[-tenth:]),
        "informative_swept": informative(panel.swept),
        "informative_trained": informative(panel.trained),
    }


def main(config: Config) -> dict[str, Any]:
    """Makes the panels that are missing, and returns figures of all."""
    console = Console()
    config.out_dir.mkdir(parents=True, exist_ok=True)
    for run in config.runs:
        path = config.out_dir / f"{run}.npz"
        if path.exists():
            continue
        start = time.perf_counter()
        content = io.BytesIO()
        write_panel(content, make_panel(config, run, console))
        _files.write_atomically(path, content.getvalue())
        console.print(f"{run}: {time.perf_counter() - start:.0f} s", highlight=False)
    found = {path.stem: describe(read_panel(path)) for path in sorted(config.out_dir.glob("*.npz"))}
    index = {"machine": _machine.describe_machine(), "runs": found}
    _files.write_atomically(config.out_dir / "panel.json", json.dumps(index, indent=2) + "\n")
    return found


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        sys.exit(1)
