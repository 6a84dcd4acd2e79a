"""Measures the value of a visit for held-out accuracy, by success rate, and the prompts that methods pick.

    python experiments/worth.py

The script trains with each method on some mixes of prompts of the arena. After some rounds it estimates how much one
completion group of every picked prompt would raise held-out accuracy. To first order, this is the inner product of the
GRPO gradient of the group, scaled as by Adam, and the gradient of held-out accuracy. Writes results.json, table.md and
worth.png. Finished parts are kept in OUT_DIR/parts, so that an interrupted run can continue.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _arena
import _machine
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from dps_jax import _checks, _cli, _files, _json, models, rl, viz
from dps_jax.training import _setup

# Bins of success rates strictly between 0 and 1; rates of exactly 0 and 1 have bins of their own.
_NUM_BINS = 8
# Number of prompts whose completions are in memory together.
_CHUNK = 64
# Folded into the keys of measurements. The keys of rounds use small numbers, so the two differ.
_PROBE_KEY = 2**30
_COLORS = {"uniform": "#5b6570", "dps": "#d1602b", "binomial_hmm": "#2f8f5b", "instructive": "#1f5fa8"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The methods, mixes and rounds to measure."""

    mixes: tuple[str, ...] = ("lean", "typical")
    """Mixes of prompts; names of mixes of experiments/arena.py."""
    methods: tuple[str, ...] = ("uniform", "dps", "binomial_hmm", "instructive")
    """Selection methods, with options in the form that experiments/arena.py accepts."""
    num_prompts: int = 2400
    """Size of the training set, N."""
    learning_rate: float = 3e-4
    """Learning rate of the policy."""
    rounds: tuple[int, ...] = (30, 90)
    """Numbers of rounds after which the value of visits is measured, in ascending order."""
    num_seeds: int = 3
    """Number of runs of every method, at least 2."""
    first_seed: int = 2000
    """First of the consecutive seeds."""
    num_batches: int = 4
    """Number of batches of 32 prompts that the method selects at each measurement; an even number. The same number of
    batches is drawn at random. These batches are only measured, not trained on."""
    out_dir: Path = Path("runs/worth")
    """Folder for results.json, table.md and worth.png."""

    def __post_init__(self):
        for mix in self.mixes:
            _checks.check_choice("mixes", mix, _arena.MIXES)
        for method in self.methods:
            _checks.check_choice("methods", _arena.base(method), _arena.METHODS)
            if "rollout" in _arena.changes_of(method):
                raise ValueError(f"methods: expected batches of 32 prompts with 8 completions, got {method!r}")
        _checks.check_int("num_seeds", self.num_seeds, at_least=2)
        if _checks.check_int("num_batches", self.num_batches, at_least=2) % 2:
            raise ValueError(f"num_batches: expected an even number, got {self.num_batches}")
        if not self.rounds or min(self.rounds) < 1 or list(self.rounds) != sorted(set(self.rounds)):
            raise ValueError(f"rounds: expected ascending numbers of rounds >= 1, got {self.rounds}")


class Probe(NamedTuple):
    """Measured success rates and worths of some prompts.

    Attributes:
      rates: share of correct completions of each prompt, [P].
      worth: expected rise of held-out accuracy by one completion group of each prompt, up to a common factor, [P];
        estimated from other completions than `rates`.
    """

    rates: Any
    worth: Any


def held_out_direction(parts: _setup.Parts, log_probs_fn: Any, sample_fn: Any, state: Any, key: jax.Array) -> Any:
    """Returns the gradient of held-out accuracy, divided by the root of Adam's second moment and scaled to norm 1."""
    problems = jax.tree.map(jnp.asarray, parts.task.make_problems(0, "test", np.arange(512)))
    ids = jnp.arange(512, dtype=jnp.int32)
    learner = rl.learner(log_probs_fn, learning_rate=0.0, advantage="dr-grpo", loss="fixed-length")
    ascent = lambda batch: jax.tree.map(jnp.negative, learner.gradient(state.params, batch)[0])
    gradient = ascent(rl.rollout(sample_fn, parts.task.score, state.params, problems, ids, key))
    adam = optax.tree.get(state.opt_state, "nu")
    scaled = jax.tree.map(lambda grad, second: grad / (jnp.sqrt(second) + 1e-8), gradient, adam)
    norm = optax.tree.norm(scaled)
    return jax.tree.map(lambda leaf: leaf / norm, scaled)


def slopes(log_probs_fn: Any, params: Any, direction: Any, batch: rl.Batch) -> jax.Array:
    """Returns the derivative of every completion's log-probability along a direction, [B, G]."""

    def log_probs(params: Any) -> jax.Array:
        return jnp.sum(jnp.where(batch.mask, log_probs_fn(params, batch.prompts, batch.completions)[0], 0.0), axis=2)

    return jax.jvp(log_probs, (params,), (direction,))[1]


def group_worth(is_correct: jax.Array, slopes: jax.Array, group_size: int) -> jax.Array:
    """Returns the mean inner product of group gradients and the direction per prompt, [B], from completions [B, C]."""
    rewards = is_correct.astype(jnp.float32).reshape(-1, group_size)
    advantages = rl.ADVANTAGES["grpo"](rewards, jnp.ones(rewards.shape[0], bool))
    worth = jnp.sum(advantages * slopes.reshape(-1, group_size), axis=1)
    return worth.reshape(is_correct.shape[0], -1).mean(axis=1)


def probe(
    parts: _setup.Parts,
    log_probs_fn: Any,
    sample_fn: Any,
    group_size: int,
    state: Any,
    direction: Any,
    ids: jax.Array,
    key: jax.Array,
) -> Probe:
    """Returns the rates and worths of some prompts; half of the completions are used for each."""

    def of_chunk(given: tuple[jax.Array, jax.Array]) -> Probe:
        ids, key = given
        batch = rl.rollout(sample_fn, parts.score_fn, state.params, parts.graded, ids, key)
        half = batch.is_correct.shape[1] // 2
        along = slopes(log_probs_fn, state.params, direction, batch)
        worth = group_worth(batch.is_correct[:, half:], along[:, half:], group_size)
        return Probe(rates=batch.is_correct[:, :half].mean(axis=1), worth=worth)

    chunks = ids.reshape(-1, _CHUNK)
    return jax.tree.map(jnp.ravel, jax.lax.map(of_chunk, (chunks, jax.random.split(key, chunks.shape[0]))))


def _picks(select: Any, state: Any, num_batches: int, key: jax.Array) -> jax.Array:
    """Returns the prompts of several independent selections from one state."""
    again = lambda key: select(state._replace(key=key)).ids
    return jax.vmap(again)(jax.random.split(key, num_batches)).ravel()


def measure(config: Config, mix: str, method: str, seed: int) -> list[dict[str, Any]]:
    """Returns the rates and worths of picked and of random prompts, after each number of rounds."""
    cell = _arena.Cell(mix, config.num_prompts, method, config.learning_rate, config.rounds[-1])
    run_config = _arena.run_config(cell, seed)
    parts = _setup.build(run_config)
    graphdef, _ = nnx.split(_setup.load_policy(run_config, parts.task))
    log_probs_fn = lambda params, prompts, completions: models.completion_log_probs(
        nnx.merge(graphdef, params), prompts, completions, pad_id=parts.task.pad_id
    )
    group_size = run_config.rollout.group_size
    few, many = (_setup.make_sampler(graphdef, parts.task, group_size=size) for size in (16, 8 * group_size))

    @jax.jit
    def look(state: Any) -> tuple[Probe, Probe]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, _PROBE_KEY), state.round_index)
        key_direction, key_picks, key_uniform, key_picked, key_others = jax.random.split(key, 5)
        direction = held_out_direction(parts, log_probs_fn, few, state, key_direction)
        of = functools.partial(probe, parts, log_probs_fn, many, group_size, state, direction)
        picked = _picks(parts.round.select, state, config.num_batches, key_picks)
        others = jax.random.choice(key_uniform, config.num_prompts, (picked.size,), replace=False)
        return of(picked, key_picked), of(others.astype(jnp.int32), key_others)

    def step(_: Any, state: Any) -> Any:
        return parts.round.step(state, parts.graded)[0]

    advance = jax.jit(lambda state, num_rounds: jax.lax.fori_loop(0, num_rounds, step, state))
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(seed))
    found, done = [], 0
    for num_rounds in config.rounds:
        state, done = advance(state, num_rounds - done), num_rounds
        picked, uniform = jax.device_get(look(state))
        rounded = lambda values: np.round(np.asarray(values, np.float64), 4).tolist()
        found.append(
            {
                "rounds": num_rounds,
                "picked": {name: rounded(values) for name, values in picked._asdict().items()},
                "uniform": {name: rounded(values) for name, values in uniform._asdict().items()},
            }
        )
    return found


def bins(rates: np.ndarray) -> np.ndarray:
    """Returns the bin of each success rate; a rate of 0 is in the first bin, and a rate of 1 in the last."""
    inner = np.minimum((rates * _NUM_BINS).astype(int), _NUM_BINS - 1) + 1
    return np.where(rates == 0, 0, np.where(rates == 1, _NUM_BINS + 1, inner))


def ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """Returns the ratio of two sums over runs, [S] each, and its jackknife standard error."""
    num_runs = above.size
    without = (above.sum() - above) / (below.sum() - below)
    error = np.sqrt((num_runs - 1) / num_runs * np.sum((without - without.mean()) ** 2))
    return float(above.sum() / below.sum()), float(error)


class _Run(NamedTuple):
    """All measured prompts of a run: the picks of the method, and prompts drawn at random."""

    method: str
    picked: Probe
    uniform: Probe


def _joined(run: dict[str, Any]) -> _Run:
    of = lambda who, name: np.concatenate([look[who][name] for look in run["found"]])
    picked, uniform = (Probe(*(of(who, name) for name in Probe._fields)) for who in ("picked", "uniform"))
    return _Run(run["method"], picked, uniform)


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the worth by success rate, and the picks of each method, over all runs of a mix.

    Worths are relative to the mean worth of uniform picks.

    Args:
      runs: dictionaries with `method` and the result `found` of `measure`; at least two runs of every method.
    """
    found = [_joined(run) for run in runs]
    unit = np.array([run.uniform.worth.mean() for run in found])
    by_rate = []
    for index in range(_NUM_BINS + 2):
        inside = [
            [
                (part.rates[bins(part.rates) == index], part.worth[bins(part.rates) == index])
                for part in (run.picked, run.uniform)
            ]
            for run in found
        ]
        sums = np.array([sum(worth.sum() for _, worth in parts) for parts in inside])
        counts = np.array([sum(worth.size for _, worth in parts) for parts in inside])
        if np.count_nonzero(counts) < 2:
            continue
        # The ratio of the mean worth in the bin to the mean worth of uniform picks.
        value, error = ratio(sums * unit.size / counts.sum(), unit)
        rates = np.concatenate([rates for parts in inside for rates, _ in parts])
        row = {"rate": float(rates.mean()), "worth": value, "error": error, "num_prompts": int(rates.size)}
        by_rate.append(row)
    methods = {}
    for method in dict.fromkeys(run.method for run in found):
        own = [run for run in found if run.method == method]
        own_parts = [(run.picked, run.uniform) for run in own]
        of_picks, of_others = (
            np.array([part.worth.mean() for part in parts]) for parts in zip(*own_parts, strict=True)
        )
        value, error = ratio(of_picks, of_others)
        rates = np.concatenate([run.picked.rates for run in own])
        methods[method] = {
            "worth_over_uniform": value,
            "worth_error": error,
            "success_rate": float(rates.mean()),
            "shares": (np.bincount(bins(rates), minlength=_NUM_BINS + 2) / rates.size).tolist(),
        }
    return {"by_rate": by_rate, "methods": methods}


def draw(found: dict[str, Any], group_size: int = 8) -> Figure:
    """Returns a figure with two panels per mix: worth of a visit by success rate, and success rates of the picks."""
    figure = Figure(figsize=(9.6, 3.4 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    grid = np.linspace(0, 1, 101)
    informative = 1 - grid**group_size - (1 - grid) ** group_size
    # E[1 - m / G; 0 < m < G] is the sum over all outcomes minus the term for m = 0.
    hard = (1 - grid) - (1 - grid) ** group_size
    for (left, right), (mix, results) in zip(panels, found.items(), strict=True):
        rows = results["by_rate"]
        worth = np.array([row["worth"] for row in rows])
        left.errorbar(
            [row["rate"] for row in rows],
            worth,
            yerr=[1.96 * row["error"] for row in rows],
            fmt="o",
            color="#24292f",
            label="measured",
        )
        for values, words, color in (
            (informative, "P(0 < m < G)", "#d1602b"),
            (hard, "E[1 - m / G; 0 < m < G]", "#1f5fa8"),
        ):
            left.plot(grid, values / values.max() * worth.max(), color=color, linewidth=1.6, label=words)
        left.set_title(mix, loc="left", fontsize=10, fontweight="bold")
        left.set(xlabel="success rate of the prompt", ylabel="worth of a visit (uniform picks: 1)")
        left.legend(fontsize=8, frameon=False)
        for method, row in results["methods"].items():
            words = f"{method}: worth {row['worth_over_uniform']:.1f}"
            right.plot(row["shares"], "o-", color=_COLORS.get(method), linewidth=1.6, markersize=4, label=words)
        edges = [f"{index / _NUM_BINS:.2f}" for index in range(_NUM_BINS + 1)]
        names = ["0", *(f"to {edge}" for edge in edges[1:]), "1"]
        right.set_xticks(range(len(names)), names, fontsize=7, rotation=45)
        right.set(xlabel="success rate of the picks", ylabel="share of the picks", ylim=(0, None))
        right.legend(fontsize=8, frameon=False)
        for axes in (left, right):
            axes.grid(color="#d8dce0", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the table of the picks of all methods."""
    config = results["config"]
    lines = ["| mix | method | worth of a pick | success rate of the picks |", "|---|---|---:|---:|"]
    for mix, found in results["found"].items():
        for method, row in found["methods"].items():
            worth = f"{row['worth_over_uniform']:.2f} ± {row['worth_error']:.2f}"
            lines.append(f"| {mix} | {method} | {worth} | {row['success_rate']:.2f} |")
    rounds = ", ".join(map(str, config["rounds"]))
    lines += [
        "",
        f"N = {config['num_prompts']:,}; {config['num_seeds']} seeds from {config['first_seed']} on, after {rounds} "
        "rounds. Worth of a pick: relative to that of a uniform pick for the same policies, ± the standard error over "
        "seeds.",
    ]
    return "\n".join(lines) + "\n"


def main(config: Config) -> dict[str, Any]:
    """Measures the missing parts, writes results.json, table.md and worth.png, and returns the results."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    settings = "-".join(map(str, (*config.rounds, config.num_batches)))
    cell = lambda mix, method: _arena.Cell(mix, config.num_prompts, method, config.learning_rate, config.rounds[-1])
    wanted = [
        (mix, method, config.first_seed + index)
        for mix in config.mixes
        for method in config.methods
        for index in range(config.num_seeds)
    ]
    runs: list[dict[str, Any]] = []
    for mix, method, seed in track(wanted, "worth", console=console):
        path = config.out_dir / "parts" / f"{cell(mix, method).name()}-{settings}-{seed}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _files.write_atomically(path, json.dumps(measure(config, mix, method, seed)) + "\n")
        runs.append({"mix": mix, "method": method, "found": json.loads(path.read_text(encoding="utf-8"))})
    found = {mix: summarise([run for run in runs if run["mix"] == mix]) for mix in config.mixes}
    options = json.loads(json.dumps(dataclasses.asdict(config) | {"out_dir": config.out_dir.name}, default=str))
    results = {"config": options, "machine": _machine.describe_machine(), "found": found}
    _json.write(config.out_dir / "results.json", results, indent=1)
    table = to_markdown(results)
    _files.write_atomically(config.out_dir / "table.md", table)
    viz.save(draw(found), config.out_dir / "worth.png")
    console.print(table, markup=False, soft_wrap=True)
    console.print(f"wrote {config.out_dir}")
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
