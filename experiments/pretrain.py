"""Supervised warm-up: trains a small decoder on generated solutions, as initial weights for reinforcement learning.

The problems are from the split "warmup", which shares no problem with the training and test sets of reinforcement
learning. Writes the weights to OUT, with the options that they were trained with, and a .json file with the loss curve
beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import Progress

from dps_jax import _checks, _cli, _json, models, tasks
from dps_jax.models import _weights
from dps_jax.tasks import _slips
from dps_jax.training import _setup

_STEPS_PER_CALL = 20

# Most solutions are to problems of medium difficulty; few are to problems that reinforcement learning will find always
# or never solved.
_LEVELS = {
    "countdown": ((2, 20, 0.07), (3, 20, 0.15), (4, 20, 0.45), (4, 99, 0.23), (5, 99, 0.1)),
    "chain_sum": ((2, 1, 0.25), (2, 2, 0.25), (2, 3, 0.25), (2, 4, 0.25)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The solutions to train on, the model and the optimiser."""

    task: str = "countdown"
    """Name of the task: "countdown", "chain_sum", "steps" or "geometry"."""
    levels: tuple[tuple[int, int, float], ...] | None = None
    """Difficulty levels of the problems, each as two numbers and a weight, such as 2 20 .1 4 99 .9. The two numbers
    are, for countdown, how many numbers are given and the largest possible one; for chain_sum, the number of summands
    and of their digits; for steps, the number of operations and of the families they are from; for geometry, the
    question (1 to 6) and the size of the figure (2 to 6). None is a mix for the warm-up: for countdown, more levels of
    medium difficulty than in training; for chain_sum, two numbers of 1 to 4 digits; for other tasks, the default."""
    slips: float = 0.0
    """Share of the solutions that have errors (slips), in [0, 1]; they come last in training. Every one-step fact has
    its own slip rate. After such a warm-up, the policy makes errors on facts that it can also get right. The task
    countdown has no slips."""
    slip_rates: tuple[float, float] = (0.1, 0.7)
    """Smallest and largest slip rate of a fact."""
    spared_families: int = 0
    """Number of families of facts without slips, beginning with the easiest, so that the policy can solve some problems
    from the start. The families are, for chain_sum, the columns from the lowest on; for steps, the kinds of operations;
    for geometry, the kinds of questions."""
    size: str = "0.8m"
    """Size of the model, a name in dps_jax.models.SIZES."""
    num_solutions: int = 300_000
    """Number of solutions; each is seen once."""
    batch_size: int = 256
    """Number of solutions per step."""
    learning_rate: float = 3e-3
    """Highest learning rate of AdamW, which rises over the first 3 % of the steps and then falls along a cosine to a
    twentieth."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    seed: int = 0
    """Random seed of the initial weights, the problems and the slips."""
    num_test: int = 512
    """Number of held-out problems to evaluate on at the end."""
    out: Path = Path("runs/pretrain/countdown.safetensors")
    """File to write, which must end in .safetensors."""

    def teacher(self) -> tasks.Slips | None:
        """Returns the slips in the last solutions; None if there are none."""
        lowest, highest = self.slip_rates
        teacher = tasks.Slips(lowest=lowest, highest=highest, num_spared=self.spared_families, seed=self.seed)
        return teacher if self.slips else None

    def __post_init__(self):
        _checks.check_choice("task", self.task, tasks.TASKS)
        _checks.check_choice("size", self.size, models.SIZES)
        _checks.check_int("batch_size", self.batch_size, at_least=1)
        _checks.check_int("num_solutions", self.num_solutions, at_least=self.batch_size)
        _checks.check_in_interval("slips", self.slips, 0.0, 1.0)
        teacher = self.teacher()
        if teacher is not None:
            _slips.check_slips(teacher)
            if self.task == "countdown":
                raise ValueError(f"slips: expected 0 for task 'countdown', whose steps have no slips, got {self.slips}")
        if self.out.suffix != ".safetensors":
            raise ValueError(f"out: expected the name of a .safetensors file, got {str(self.out)!r}")


def loss_fn(model: models.Decoder, prompts: jax.Array, solutions: jax.Array, pad_id: int) -> jax.Array:
    """Returns the mean negative log-likelihood per token, in nats, of solutions [B, T] to prompts [B, P]."""
    log_probs, _ = models.completion_log_probs(model, prompts, solutions[:, None], pad_id=pad_id)
    mask = solutions != pad_id
    return -jnp.sum(jnp.where(mask, log_probs[:, 0], 0.0)) / jnp.sum(mask)


def provenance(config: Config, task: tasks.Task, levels: Any) -> dict[str, Any]:
    """Returns the metadata of the weights: task, vocabulary, options, and the command that reproduces them."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name != "out"} | {"levels": levels}
    flag = lambda value: " ".join(map(flag, value)) if isinstance(value, tuple) else str(value)
    words = [f"--{name.replace('_', '-')} {flag(value)}" for name, value in options.items() if value is not None]
    command = " ".join(["python experiments/pretrain.py", *words])
    return {"task": task.name, "vocabulary": list(task.vocabulary), "pretraining": options, "command": command}


def main(config: Config) -> dict[str, Any]:
    """Trains and evaluates the model, writes the weights, and returns the content of the .json file."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    levels, teacher = config.levels or _LEVELS.get(config.task), config.teacher()
    task = tasks.build(config.task, **({} if levels is None else {"levels": levels, "test_levels": None}))
    model_config = _setup.decoder_config(task, config.size)
    graphdef, params = nnx.split(models.Decoder(model_config, rngs=nnx.Rngs(config.seed)))
    num_steps = config.num_solutions // config.batch_size
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(num_steps * 3 // 100, 1), num_steps, config.learning_rate / 20
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=config.weight_decay))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def steps(params, opt_state, prompts, solutions):
        def step(carry, batch):
            (params, opt_state), (prompts, solutions) = carry, batch
            loss = lambda params: loss_fn(nnx.merge(graphdef, params), prompts, solutions, task.pad_id)
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), (prompts, solutions))
        return params, opt_state, losses

    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(f"{task.name}: {num_parameters:,} parameters, {num_steps:,} steps of {config.batch_size} solutions")
    opt_state, losses, start = optimizer.init(params), [], time.perf_counter()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("warm-up", total=num_steps)
        for first in range(0, num_steps, _STEPS_PER_CALL):
            num = min(_STEPS_PER_CALL, num_steps - first)
            indices = np.arange(first * config.batch_size, (first + num) * config.batch_size)
            written_by = teacher if first >= (1 - config.slips) * num_steps else None
            prompts = task.make_problems(config.seed, "warmup", indices).prompts
            solutions = task.make_solutions(config.seed, "warmup", indices, written_by)
            split = lambda rows, num=num: jnp.asarray(rows).reshape(num, config.batch_size, -1)
            params, opt_state, part = steps(params, opt_state, split(prompts), split(solutions))
            losses += np.asarray(part).tolist()
            progress.update(bar, advance=num, description=f"warm-up, loss {losses[-1]:.3f}")
            if not console.is_terminal and first % (_STEPS_PER_CALL * 10) == 0:
                console.print(f"step {first + num:,}: loss {np.mean(part):.4f}, {time.perf_counter() - start:.0f} s")
    seconds = time.perf_counter() - start
    model = nnx.merge(graphdef, params)
    accuracy = _setup.held_out_accuracy(task, model, num_test=config.num_test)
    facts = provenance(config, task, levels)
    _weights.save(model, config.out, facts)
    results = {
        "command": facts["command"],
        "config": facts["pretraining"],
        "seconds": seconds,
        "loss": losses[-1],
        **accuracy,
        "losses": losses[:: max(num_steps // 200, 1)],
    }
    _json.write(config.out.with_suffix(".json"), results, indent=2)
    console.print({name: value for name, value in results.items() if name != "losses"})
    console.print(f"wrote {config.out} ({config.out.stat().st_size / 2**20:.1f} MiB)")
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__, may_import=True))
