"""Samples answers of a trained policy to held-out problems, and prints some solved and some unsolved ones.

python experiments/sample.py --run runs/train                        # the policy at the end of a run
python experiments/sample.py --run runs/train --which best           # the policy with the best test accuracy
python experiments/sample.py --weights experiments/data/steps.safetensors
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from dps_jax import _checks, _cli, tasks, training
from dps_jax.models import _weights
from dps_jax.training import _policy_files, _reporting, _setup


@dataclasses.dataclass(frozen=True)
class Config:
    """The policy to sample from, and the problems."""

    run: Path | None = None
    """Folder of a finished run of experiments/train.py; name either this or --weights."""
    weights: Path | None = None
    """Weights of the policy in place of a run, a .safetensors file of experiments/train.py or
    experiments/pretrain.py."""
    which: Literal["last", "best"] = "last"
    """Policy of the run to use: the last one, or the one with the best test accuracy."""
    num_shown: int = 5
    """Number of solved problems to print, and number of unsolved problems."""
    num_problems: int = 256
    """Number of held-out problems that answers are sampled for."""
    num_samples: int = 4
    """Number of answers per problem. A problem counts as solved if most of its answers are correct; only the first
    answer is printed."""
    temperature: float = 1.0
    """Sampling temperature; 0 always takes the most likely token."""
    seed: int = 0
    """Random seed of sampling."""

    def __post_init__(self):
        if (self.run is None) == (self.weights is None):
            raise ValueError(
                f"run: expected either a run or weights, got run = {self.run} and weights = {self.weights}; name one, "
                "such as --run runs/train"
            )
        for name in ("num_shown", "num_problems", "num_samples"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        _checks.check_number("temperature", self.temperature, at_least=0, hint="0 is greedy")
        _checks.check_int("seed", self.seed, at_least=0, at_most=2**32 - 1)

    @property
    def path(self) -> Path:
        """File of the weights."""
        if self.run is not None:
            return self.run / (_policy_files.BEST if self.which == "best" else _policy_files.LAST)
        assert self.weights is not None
        return self.weights


class Answered(NamedTuple):
    """A held-out problem and answers to it.

    Attributes:
      prompt: text of the prompt.
      answer: text of the first answer.
      num_correct: number of correct answers.
      level: description of the level.
    """

    prompt: str
    answer: str
    num_correct: int
    level: str


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list) else value


def load_task(config: Config, facts: dict[str, Any]) -> tasks.Task:
    """Returns the task that the policy was trained on, with the options of its run if they are known."""
    saved = facts.get("task_options")
    name = facts.get("task")
    if saved is None and name not in tasks.TASKS:
        raise ValueError(
            f"{config.path}: expected weights of a task ({', '.join(tasks.TASKS)}), got those of {name!r}; take a file "
            "of experiments/train.py or experiments/pretrain.py"
        )
    fields: dict[str, Any] = (
        {"name": name} if saved is None else {key: _as_tuples(value) for key, value in saved.items()}
    )
    task = training.TaskConfig(**fields)
    return tasks.build(task.name, **task.options())


def answer_all(config: Config) -> tuple[tasks.Task, list[Answered]]:
    """Returns the task, and held-out problems with answers of the policy.

    Raises:
      ValueError: if the weights cannot be read, or were not trained on a task of this library.
    """
    if not config.path.is_file():
        raise ValueError(
            f"{config.path}: expected a file of weights, got none; a run writes its policies when it is finished, so "
            "run experiments/train.py to its end"
        )
    model, facts = _weights.load(config.path)
    task = load_task(config, facts)
    graphdef, params = nnx.split(model)
    sample_fn = _setup.make_sampler(graphdef, task, group_size=config.num_samples, temperature=config.temperature)
    problems = _setup.held_out_problems(task, config.num_problems)
    tokens = jax.jit(sample_fn)(params, jnp.asarray(problems.prompts), jax.random.key(config.seed)).tokens
    facts_of_answers = jnp.broadcast_to(
        jnp.asarray(problems.facts)[:, None], (*tokens.shape[:2], problems.facts.shape[1])
    )
    num_correct = np.asarray(task.score(facts_of_answers, tokens).is_correct).sum(axis=1)
    rows = zip(problems.prompts, np.asarray(tokens)[:, 0], num_correct, problems.groups, strict=True)
    return task, [
        Answered(task.decode(prompt), task.decode(answer), int(count), task.group_names[group])
        for prompt, answer, count, group in rows
    ]


def _lines(answered: Sequence[Answered], num_samples: int) -> list[str]:
    """Returns lines that show some problems, with each answer beside the last line of its prompt."""
    if not answered:
        return ["  none"]
    prompts = [row.prompt.split("\n") for row in answered]
    width = max(len(prompt[-1]) for prompt in prompts)
    lines = []
    for row, (*raster, question) in zip(answered, prompts, strict=True):
        lines += [f"  {line}" for line in raster]
        lines.append(
            f"  {question:<{width}}  {row.answer or '(nothing)'}   "
            f"[{row.num_correct} of {num_samples} correct; {row.level}]"
        )
    return lines


def describe(config: Config, task: tasks.Task, answered: Sequence[Answered]) -> str:
    """Returns the text to print: the accuracy, and some solved and unsolved problems."""
    is_solved = [2 * row.num_correct > config.num_samples for row in answered]
    solved = [row for row, is_one in zip(answered, is_solved, strict=True) if is_one]
    unsolved = [row for row, is_one in zip(answered, is_solved, strict=True) if not is_one]
    accuracy = sum(row.num_correct for row in answered) / (len(answered) * config.num_samples)
    return "\n".join(
        [
            f"{config.path}: {accuracy:.1%} of the answers to {len(answered)} held-out problems of {task.name!r} are "
            "correct",
            f"solved ({len(solved)} of {len(answered)}):",
            *_lines(solved[: config.num_shown], config.num_samples),
            f"unsolved ({len(unsolved)} of {len(answered)}):",
            *_lines(unsolved[: config.num_shown], config.num_samples),
        ]
    )


def main(config: Config) -> str:
    """Prints and returns the answers of a policy."""
    task, answered = answer_all(config)
    text = describe(config, task, answered)
    _reporting.say(_reporting.default_console(), text)
    return text


if __name__ == "__main__":
    try:
        main(_cli.cli(Config, description=__doc__, may_import=True))
    except (ValueError, OSError) as error:
        _reporting.say(Console(stderr=True), f"error: {error}")
        sys.exit(1)
