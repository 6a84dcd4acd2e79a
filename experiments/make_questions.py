"""Writes questions with answers as JSON lines: sums, or a task of reasoning-gym.

    python experiments/make_questions.py --task sums --digits 2 --num 2000
    python experiments/make_questions.py --task reasoning-gym:chain_sum --config '{"max_terms": 4}' --group-by num_terms

Writes train.jsonl and test.jsonl, which have no question in common. Every row has the columns prompt, answer, group and
data_source; rows of reasoning-gym also have question, task, task_config and metadata, which its grader needs. Use the
grader "numeric" for sums and "reasoning-gym" for tasks of reasoning-gym.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import _command
import numpy as np
from rich.console import Console

from dps_jax import _checks, _files, _json

_REASONING_GYM = "reasoning-gym:"
_MAX_DIGITS = 9
_MAX_EXAMPLES = 20
# After so many draws without a new question, a level or task counts as exhausted.
_MAX_REPEATS = 1000


@dataclasses.dataclass(frozen=True)
class Config:
    """The task, and the number of questions to write."""

    task: str = "sums"
    """Task of the questions: "sums" or "reasoning-gym:TASK"."""
    num: int = 1000
    """Number of training questions."""
    num_test: int = 200
    """Number of test questions."""
    seed: int = 0
    """Random seed of all questions."""
    digits: int = 2
    """For sums: largest number of digits; each of the two numbers has 1 to this many digits."""
    style: Literal["question", "equation"] = "question"
    """For sums: "question" writes "What is 7 + 15?" for a chat model, and "equation" writes "7+15=" for a base model
    that continues a text."""
    examples: int = 0
    """For sums: number of solved sums before each question, one per line, as a few-shot prompt for base models."""
    config: str = "{}"
    """For reasoning-gym: options of the task, as a JSON object."""
    group_by: str | None = None
    """For reasoning-gym: key of the metadata of an entry whose value is its prompt group; by default all entries are in
    one group."""
    out: Path | None = None
    """Folder to write; by default runs/questions/ followed by the name of the task."""

    def __post_init__(self):
        if self.task != "sums" and not self.task.removeprefix(_REASONING_GYM) != self.task:
            raise ValueError(f"task: expected 'sums' or 'reasoning-gym:TASK', got {self.task!r}")
        _checks.check_int("num", self.num, at_least=1)
        _checks.check_int("num_test", self.num_test, at_least=0)
        _checks.check_int("seed", self.seed, at_least=0)
        _checks.check_choice("style", self.style, ("question", "equation"))
        _checks.check_int("examples", self.examples, at_least=0, at_most=_MAX_EXAMPLES)
        _checks.check_int("digits", self.digits, at_least=1, at_most=_MAX_DIGITS)


def sums(config: Config) -> Iterator[dict[str, Any]]:
    """Yields distinct sums (15 + 7 repeats 7 + 15), with each number of digits in turn, until no new ones are drawn."""
    rng = np.random.default_rng(config.seed)
    levels = [(few, many) for few in range(1, config.digits + 1) for many in range(few, config.digits + 1)]
    seen: set[tuple[int, ...]] = set()
    repeats = dict.fromkeys(levels, 0)
    while levels:
        for level in list(levels):
            numbers = [int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits)) for digits in level]
            rng.shuffle(numbers)
            key = tuple(sorted(numbers))
            repeats[level] += 1
            if repeats[level] > _MAX_REPEATS:
                levels.remove(level)
            if key in seen:
                continue
            seen.add(key)
            repeats[level] = 0
            yield {
                "prompt": (
                    f"What is {numbers[0]} + {numbers[1]}?"
                    if config.style == "question"
                    else f"{numbers[0]}+{numbers[1]}="
                ),
                "answer": str(sum(numbers)),
                "group": f"digits {level[0]} and {level[1]}",
                "data_source": "sums",
            }


def with_examples(rows: Iterator[dict[str, Any]], config: Config) -> Iterator[dict[str, Any]]:
    """Yields all rows but the first `config.examples`; the prompt of each begins with these as solved examples."""
    gap = " " if config.style == "question" else ""
    solved = [f"{row['prompt']}{gap}{row['answer']}\n" for row in itertools.islice(rows, config.examples)]
    for row in rows:
        yield {**row, "prompt": "".join(solved) + row["prompt"]}


def entries(config: Config) -> Iterator[dict[str, Any]]:
    """Yields entries of a task of reasoning-gym with distinct questions.

    Raises:
      ValueError: for an unknown task, option or key of the metadata, or if reasoning-gym is not installed.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(
            f"task: expected reasoning-gym to be installed for {config.task!r}, got {error}; install the extra "
            "`reasoning-gym`: pip install -e '.[reasoning-gym]'"
        ) from error
    task = config.task.removeprefix(_REASONING_GYM)
    known = sorted(set(DATASETS) - {"composite"})
    if task not in known:
        raise ValueError(f"task: expected one of {', '.join(known)}, got {task!r}")
    options = _options(config.config)
    size = _MAX_REPEATS + 2 * (config.num + config.num_test)
    try:
        dataset = reasoning_gym.create_dataset(task, **options, seed=config.seed, size=size)
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"config: expected options of {task!r}, got {config.config!r} ({error})") from error
    seen: set[str] = set()
    for index in range(size):
        entry = dataset[index]
        if entry["question"] in seen:
            continue
        seen.add(entry["question"])
        yield {
            "prompt": entry["question"],
            # Entries with many right answers have no reference answer.
            "answer": entry["answer"] if entry["answer"] is not None else "",
            "group": _group(task, entry["metadata"], config.group_by),
            "data_source": f"reasoning_gym/{task}",
            "question": entry["question"],
            "task": task,
            "task_config": options,
            "metadata": entry["metadata"],
        }


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ValueError(f"config: expected a JSON object, got {text!r} ({error})") from error
    if not isinstance(options, dict) or {"seed", "size"} & set(options):
        raise ValueError(f"config: expected a JSON object without seed and size, got {text!r}; use --seed and --num")
    return options


def _group(task: str, metadata: dict[str, Any], group_by: str | None) -> str:
    if group_by is None:
        return task
    if group_by not in metadata:
        raise ValueError(f"group_by: expected one of {', '.join(sorted(metadata))}, got {group_by!r}")
    return f"{group_by} {_json.dumps(metadata[group_by])}"


def main(config: Config) -> Path:
    """Writes train.jsonl and test.jsonl, and returns their folder.

    Raises:
      ValueError: if there are too few distinct questions, or for an option that is not valid for the task.
    """
    total = config.num + config.num_test
    rows: list[dict[str, Any]] = []
    for row in with_examples(sums(config), config) if config.task == "sums" else entries(config):
        rows.append(row)
        if len(rows) == total:
            break
    if len(rows) < total:
        raise ValueError(f"num: expected at most {len(rows)} distinct questions in all, got {total}; ask for fewer")
    order = np.random.default_rng([config.seed, 1]).permutation(total)
    folder = config.out or Path("runs/questions") / config.task.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for name, picked in (("train", order[: config.num]), ("test", order[config.num :])):
        lines = [_json.dumps(rows[index], ensure_ascii=False) + "\n" for index in picked]
        _files.write_atomically(folder / f"{name}.jsonl", "".join(lines))
    Console().print(f"wrote {config.num} and {config.num_test} questions to {folder}", markup=False)
    return folder


if __name__ == "__main__":
    _command.run(main, Config, __doc__)
