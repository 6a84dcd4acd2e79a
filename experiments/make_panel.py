"""Makes the panels: training runs on Countdown in which every prompt is also sampled every few rounds.

    python experiments/make_panel.py                       # all runs, some minutes each
    python experiments/make_panel.py --runs uniform-0 --num-rounds 50 --out-dir runs/panel

A run trains on Countdown with the config COUNTDOWN of experiments/train.py and the sizes below. In round r, before the
update, all prompts whose id is r modulo the period are sampled in addition (a sweep). They are not trained on, and the
random numbers of the run itself do not change. A panel is written when its run is finished. Existing panels are kept,
but an interrupted run starts from the beginning. The runs METHOD-0 are for tuning; all others are held out, and no
constant of this library was chosen on them. panel.json contains the purpose and statistics of every panel in the
folder, with the date and the machine of its run.
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
from flax import nnx
from rich.console import Console
from rich.progress import track

from dps_jax import _checks, _cli, _files, _json, selectors, training
from dps_jax.traces.panel import Panel, read_panel, write_panel
from dps_jax.training import _evaluation, _setup

PANELS = Path(__file__).resolve().parent / "data" / "panel"
# Number of prompts of a sweep that are sampled together.
_SWEEP_BATCH = 64
# Seed of the runs on which constants may be chosen.
_TUNING_SEED = 0


def method_and_seed(run: str) -> tuple[str, int]:
    """Returns the method and the seed in the name of a run."""
    method, _, seed = run.rpartition("-")
    if not method or not seed.isdecimal():
        raise ValueError(f"runs: expected names METHOD-SEED, such as 'dps-1', got {run!r}")
    return method, int(seed)


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs to make, and their sizes."""

    runs: tuple[str, ...] = ("uniform-0", "uniform-1", "dps-1", "binomial_hmm-1", "uniform-2", "dps-2", "dps-0")
    """Runs to make, as METHOD-SEED. The seed determines prompts, sampling and selection; runs with seed 0 are for
    tuning."""
    num_prompts: int = 2400
    """Number of prompts, N."""
    num_rounds: int = 160
    """Number of rounds, T."""
    period: int = 6
    """Number of rounds in which every prompt is sampled once."""
    batch_size: int = 32
    """Number of prompts per round that the run trains on, B."""
    group_size: int = 8
    """Number of completions per prompt, G."""
    out_dir: Path = PANELS
    """Folder for the panels."""

    def __post_init__(self):
        for run in self.runs:
            method, _ = method_and_seed(run)
            _checks.check_choice("runs", method, selectors.SELECTORS)
        for name in ("num_prompts", "num_rounds", "period"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        if self.period > self.num_prompts:
            raise ValueError(f"period: expected at most num_prompts = {self.num_prompts}, got {self.period}")

    def train_config(self, run: str) -> training.TrainConfig:
        """Returns the config of a run."""
        method, seed = method_and_seed(run)
        config = dataclasses.replace(
            train.COUNTDOWN,
            name=run,
            seed=seed,
            num_rounds=self.num_rounds,
            task=dataclasses.replace(train.COUNTDOWN.task, num_train=self.num_prompts),
            selector=dataclasses.replace(train.COUNTDOWN.selector, method=method),
            rollout=training.RolloutConfig(batch_size=self.batch_size, group_size=self.group_size),
        )
        return train.with_default_weights(config)


def make_step(config: training.TrainConfig, parts: _setup.Parts) -> Callable[..., Any]:
    """Returns a function (state, problems, swept ids) -> (state, trained ids, trained successes, swept successes)."""
    graphdef, _ = nnx.split(_setup.load_policy(config, parts.task))
    sampling = {"group_size": config.rollout.group_size, "temperature": config.rollout.temperature}
    sample_fn = _setup.make_sampler(graphdef, parts.task, **sampling, top_p=config.rollout.top_p)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)

    def step(
        state: training.TrainState, problems: Any, swept: jax.Array
    ) -> tuple[training.TrainState, jax.Array, jax.Array, jax.Array]:
        successes, *_ = _evaluation.sample_all(
            state.params,
            problems.prompts[swept],
            problems.facts[swept],
            jax.random.fold_in(key, state.round_index),
            sample_fn=sample_fn,
            score_fn=parts.score_fn,
            num_samples=config.rollout.group_size,
            batch_size=_SWEEP_BATCH,
        )
        collection = parts.round.collect(state, problems, parts.round.select(state))
        state, _ = parts.round.update(state, collection)
        state, _ = parts.round.observe(state, collection)
        return state, collection.ids, collection.successes, successes

    return jax.jit(step, donate_argnums=0)


def make_panel(config: Config, run: str, console: Console) -> Panel:
    """Returns the panel of a run.

    Raises:
      training.TrainingError: if parameters of the policy are not finite at the end.
    """
    train_config = config.train_config(run)
    parts = _setup.build(train_config)
    step = make_step(train_config, parts)
    state = jax.jit(lambda params: parts.round.init(params, jax.random.key(train_config.seed)))(parts.params)
    swept = np.full((config.num_rounds, config.num_prompts), -1, np.int8)
    trained = swept.copy()
    rounds = range(config.num_rounds)
    for index in track(rounds, description=run, console=console, disable=not console.is_terminal):
        ids = np.arange(index % config.period, config.num_prompts, config.period)
        # Repeated up to a fixed length, so that one compiled program serves all rounds; the repeats are dropped below.
        padded = np.resize(ids, -(-config.num_prompts // config.period))
        state, trained_ids, successes, swept_successes = step(state, parts.graded, jnp.asarray(padded))
        trained[index, np.asarray(trained_ids)] = np.asarray(successes)
        swept[index, ids] = np.asarray(swept_successes)[: ids.size]
    # Checked once at the end, because parameters that are not finite stay so.
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)):
        raise training.TrainingError(f"{run}: expected finite parameters, got NaN or infinity; no panel is written")
    return Panel(
        swept=swept,
        trained=trained,
        group_size=config.group_size,
        groups=np.asarray(parts.problems.groups).astype(np.int8),
        features=np.asarray(parts.problems.facts),
        method=train_config.selector.method,
    )


def period_of(panel: Panel) -> int | None:
    """Returns the number of rounds until every prompt was swept once; None if some prompts were never swept."""
    is_sampled = panel.swept >= 0
    return int(is_sampled.argmax(axis=0).max()) + 1 if is_sampled.any(axis=0).all() else None


def describe(run: str, panel: Panel) -> dict[str, Any]:
    """Returns the purpose and the statistics of a panel, such as success rates at the beginning and the end."""
    share = lambda table: float(table[table >= 0].mean()) / panel.group_size
    informative = lambda table: float(np.mean((table[table >= 0] > 0) & (table[table >= 0] < panel.group_size)))
    tenth = max(len(panel.swept) // 10, 1)
    _, seed = method_and_seed(run)
    return {
        "use": "tuning" if seed == _TUNING_SEED else "held out",
        "method": panel.method,
        "seed": seed,
        "rounds": len(panel.swept),
        "period": period_of(panel),
        "prompts": panel.num_prompts,
        "group_size": panel.group_size,
        "groups_swept": int(np.sum(panel.swept >= 0)),
        "groups_trained": int(np.sum(panel.trained >= 0)),
        "success_rate_first_tenth": share(panel.swept[:tenth]),
        "success_rate_last_tenth": share(panel.swept[-tenth:]),
        "informative_swept": informative(panel.swept),
        "informative_trained": informative(panel.trained),
    }


def write_index(folder: Path, made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Writes panel.json, and returns the statistics of every panel in a folder.

    Args:
      folder: folder of the panels.
      made: seconds and machine of new runs, by name; those of older runs are taken from the existing panel.json.
    """
    index = folder / "panel.json"
    known = json.loads(index.read_text(encoding="utf-8"))["runs"] if index.exists() else {}
    found = {path.stem: describe(path.stem, read_panel(path)) for path in sorted(folder.glob("*.npz"))}
    runs = {run: {**figures, "made": made.get(run, known.get(run, {}).get("made"))} for run, figures in found.items()}
    _json.write(index, {"runs": runs}, indent=2)
    return found


def main(config: Config) -> dict[str, Any]:
    """Makes the missing panels, and returns the statistics of all panels in the folder."""
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
        seconds = time.perf_counter() - start
        console.print(f"{run}: {seconds:.0f} s", highlight=False)
        write_index(config.out_dir, {run: {"seconds": round(seconds, 1), "machine": _machine.describe_machine()}})
    return write_index(config.out_dir, {})


if __name__ == "__main__":
    try:
        main(_cli.cli(Config, description=__doc__))
    except (ValueError, OSError, training.TrainingError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
