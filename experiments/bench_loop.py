"""Measures the phases of a training round, and compares them with the matmul rate of the machine.

FLOP are estimated as 2 per parameter and sampled token, and 6 per parameter and position of the update. The matmul rate
is measured with 1024 x 1024 float32 matrices, in turns with the phases.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import time
import warnings
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
from rich.table import Table

from dps_jax import _checks, _cli, _json, models, training
from dps_jax.models import _weights
from dps_jax.training import _setup

_MATMUL_SIZE = 1024


@dataclasses.dataclass(frozen=True)
class Config:
    """The run to measure, and how often."""

    repeats: int = 15
    """Number of timed runs of every phase."""
    compare_transformers: bool = True
    """Also time generate() of transformers with the same weights, prompts and batch, if it is installed."""
    out_dir: Path = Path("runs/bench_loop")
    """Folder for results.json and table.md."""
    run: training.TrainConfig = train.COUNTDOWN
    """Config of the run whose rounds are measured."""

    def __post_init__(self):
        _checks.check_int("repeats", self.repeats, at_least=1)


def transformers_generate(model: models.Decoder, prompts: np.ndarray, task: Any, group_size: int) -> Callable[[], int]:
    """Returns a function that samples G completions of each prompt with transformers and returns the number of tokens.

    Raises:
      ImportError: if torch or transformers is not installed.
    """
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    fields = _weights.to_hugging_face_config(model.config)
    family = fields["model_type"].capitalize()
    shape = getattr(transformers, f"{family}Config")(**fields)
    theirs = getattr(transformers, f"{family}ForCausalLM")(shape).eval()
    tensors = {name: torch.from_numpy(tensor.copy()) for name, tensor in _weights.to_hugging_face(model).items()}
    missing = theirs.load_state_dict(tensors, strict=False).missing_keys
    if set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"transformers: expected all weights to be given, got none for {missing}")
    theirs.tie_weights()
    ids = torch.from_numpy(np.repeat(prompts, group_size, axis=0)).long()
    options = {
        "attention_mask": (ids != task.pad_id).long(),
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": task.completion_length,
        "eos_token_id": task.end_id,
        "pad_token_id": task.pad_id,
    }

    def generate() -> int:
        with torch.no_grad():
            sampled = theirs.generate(ids, **options)[:, ids.shape[1] :].numpy()
        return int((sampled != task.pad_id).sum())

    return generate


def measure(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of every run; the jobs run in turns, after one untimed run of each."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def make_jobs(config: Config) -> tuple[dict[str, Callable[[], Any]], dict[str, float], tuple[Any, ...]]:
    """Returns the jobs, the FLOP of some of them, and (parts, collection, config, num_parameters, positions)."""
    run = train.with_default_weights(config.run)
    parts = _setup.build(run)
    one = parts.round
    state = jax.jit(one.init)(parts.params, jax.random.key(run.seed))
    select, collect, update, observe = (jax.jit(fn) for fn in (one.select, one.collect, one.update, one.observe))
    selection = select(state)
    collection = collect(state, parts.graded, selection)
    # Every group has both rewards, so that no row is left out of the update.
    rewards = jnp.asarray(np.arange(collection.batch.rewards.shape[1]) % 2, jnp.float32)
    full = collection._replace(batch=collection.batch._replace(rewards=collection.batch.rewards * 0 + rewards))
    matrix = jnp.ones((_MATMUL_SIZE, _MATMUL_SIZE))
    multiply = jax.jit(jnp.matmul)
    ready = lambda fn, *args: lambda: jax.block_until_ready(fn(*args))
    jobs = {
        "matmul": ready(multiply, matrix, matrix),
        "sample": ready(collect, state, parts.graded, selection),
        "update": ready(update, state, full),
        "select": ready(select, state),
        "observe": ready(observe, state, collection),
    }
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(parts.params))
    batch_size, group_size = collection.batch.rewards.shape
    positions = batch_size * (parts.task.prompt_length + group_size * (parts.task.completion_length - 1))
    flops = {
        "matmul": 2.0 * _MATMUL_SIZE**3,
        "sample": 2.0 * num_parameters * float(collection.num_tokens),
        "update": 6.0 * num_parameters * positions,
    }
    return jobs, flops, (parts, collection, run, num_parameters, positions)


def compare(config: Config, parts: _setup.Parts, run: training.TrainConfig, console: Console) -> dict[str, Any]:
    """Returns the tokens/s of our sampling and of transformers, measured in turns."""
    model = _setup.load_policy(run, parts.task)
    graphdef, params = nnx.split(model)
    sizes = run.rollout
    prompts = np.asarray(parts.graded.prompts)[: sizes.batch_size]
    sample = jax.jit(_setup.make_sampler(graphdef, parts.task, group_size=sizes.group_size))
    ours = functools.partial(sample, params, jnp.asarray(prompts), jax.random.key(0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = transformers_generate(model, prompts, parts.task, sizes.group_size)
    except ImportError as error:
        console.print(f"skipped: transformers: {error}; needs pip install '.[bench]' in the repository", markup=False)
        return {"is_skipped": True, "reason": str(error)}
    tokens: dict[str, list[int]] = {"ours": [], "transformers": []}
    jobs = {
        "ours": lambda: tokens["ours"].append(int(ours().mask.sum())),
        "transformers": lambda: tokens["transformers"].append(theirs()),
    }
    seconds = measure(jobs, config.repeats)
    rates = {name: float(np.mean(tokens[name]) / np.median(seconds[name])) for name in jobs}
    return {"is_skipped": False, "tokens_per_s": rates, "ratio": rates["ours"] / rates["transformers"]}


def main(config: Config) -> dict[str, Any]:
    """Measures, prints and writes the results, and returns them."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    machine = _machine.describe_machine()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    jobs, flops, (parts, collection, run, num_parameters, positions) = make_jobs(config)
    console.print(f"{num_parameters:,} parameters; timing")
    seconds = {name: float(np.median(times)) for name, times in measure(jobs, config.repeats).items()}
    rates = {name: flops[name] / seconds[name] for name in flops}
    round_s = sum(seconds[name] for name in ("sample", "update", "select", "observe"))
    selection_share = (seconds["select"] + seconds["observe"]) / round_s
    results = {
        "machine": machine,
        "num_parameters": num_parameters,
        "batch_size": run.rollout.batch_size,
        "group_size": run.rollout.group_size,
        "seconds": seconds,
        "flop_per_s": rates,
        "share_of_matmul": {name: rates[name] / rates["matmul"] for name in ("sample", "update")},
        "tokens_per_s": float(collection.num_tokens) / seconds["sample"],
        "positions_per_s": positions / seconds["update"],
        "selection_share_of_round": selection_share,
        "transformers": compare(config, parts, run, console) if config.compare_transformers else {"is_skipped": True},
    }
    rows: list[tuple[str, float | None, str]] = [
        ("matmul 1024", seconds["matmul"], f"{rates['matmul'] / 1e9:.0f} GFLOP/s"),
        ("sample and score", seconds["sample"], f"{results['share_of_matmul']['sample']:.0%} of the matmul rate"),
        ("update, all rows", seconds["update"], f"{results['share_of_matmul']['update']:.0%} of the matmul rate"),
        ("select + observe", seconds["select"] + seconds["observe"], f"{selection_share:.2%} of the round"),
    ]
    if not results["transformers"]["is_skipped"]:
        peers = results["transformers"]
        rates_in_turns = peers["tokens_per_s"]
        text = (
            f"{rates_in_turns['transformers']:,.0f} tokens/s; our sampling in alternation with it "
            f"{rates_in_turns['ours']:,.0f}, {peers['ratio']:.1f} times as many"
        )
        rows.append(("transformers generate", None, text))
    table, lines = Table("phase", "time", "rate"), ["| phase | time | rate |", "|---|---:|---:|"]
    for name, value, text in rows:
        time_of = "" if value is None else f"{1e3 * value:.2f} ms"
        table.add_row(name, time_of, text)
        lines.append(f"| {name} | {time_of} | {text} |")
    lines += [
        "",
        f"{num_parameters:,} parameters, B = {run.rollout.batch_size}, G = {run.rollout.group_size}; {machine['cpu']}, "
        f"{machine['cores']} cores; JAX {machine['jax']} on {machine['backend']} ({machine['device']}); "
        f"{machine['date']}.",
    ]
    console.print(table)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _json.write(config.out_dir / "results.json", results, indent=2)
    (config.out_dir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print(f"wrote {config.out_dir}")
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
