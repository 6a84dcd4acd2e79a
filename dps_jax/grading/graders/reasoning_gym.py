"""Grader "reasoning-gym": scores completions with `score_answer` of a task of the library reasoning-gym."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from . import Grader, _text

__all__ = ["make", "rules"]

# Number of datasets that are cached, one for each task and config.
_NUM_CACHED = 256
# Tasks whose scores compare with tuples, which JSON turns into lists.
_WITH_TUPLES = ("arc_agi", "rearc")
_DATA_SOURCE = "reasoning_gym/"


def rules(*, task: str | None = None) -> str:
    """Returns the grading rules in one or two sentences, for a prompt template.

    Args:
      task: see `make`; the rules are the same for all tasks.

    Example:
      >>> from dps_jax.grading.graders import reasoning_gym
      >>> print(reasoning_gym.rules())
      Put your final answer, and nothing else, in <answer> </answer> tags, ...
    """
    return (
        "Put your final answer, and nothing else, in <answer> </answer> tags, in the form that the question asks for."
    )


def make(*, task: str | None = None) -> Grader:
    """Returns the grader: the reward is the score of the task; scores of at least the pool's `threshold` are correct.

    The text between the last <answer> and </answer> is scored; without tags, the whole completion, stripped.

    The answer of a row is the "answer" of an entry of the task. The other columns of a row (`info`) are:
      * "metadata": metadata of the entry, an object or its JSON text;
      * "task": name of the task; needed only if the option `task` is None, "data_source" is not "reasoning_gym/TASK",
        and the metadata has no "source_dataset";
      * "question": question of the entry, for tasks whose score reads it;
      * "task_config": options that the entry was made with, an object or its JSON text; by default {}.

    Args:
      task: name of the task of all rows; with None, each row gives its task.

    Raises:
      ValueError: for an unknown task.

    Example:
      >>> import reasoning_gym as library
      >>> from dps_jax.grading.graders import reasoning_gym
      >>> entry = library.create_dataset("chain_sum", size=1, seed=0)[0]
      >>> grade = reasoning_gym.make(task="chain_sum")
      >>> grade(f"<answer>{entry['answer']}</answer>", entry["answer"], {"metadata": entry["metadata"]})
      1.0
    """
    if task is not None:
        _check_task(task)
    return functools.partial(_grade, task)


def _grade(task: str | None, completion: str, answer: Any, info: Mapping[str, Any]) -> float:
    metadata = _object("metadata", info.get("metadata"))
    task = task or _task_of(info, metadata)
    config = _object("task_config", info.get("task_config"))
    entry = {"question": info.get("question"), "answer": answer, "metadata": metadata}
    if task in _WITH_TUPLES:
        entry["metadata"] = _with_tuples(metadata)
    given = _text.last_tagged(completion, "answer")
    given = (completion if given is None else given).strip()
    return _dataset(task, json.dumps(config, sort_keys=True)).score_answer(given, entry)


def _task_of(info: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    source = info.get("data_source")
    if isinstance(info.get("task"), str):
        return info["task"]
    if isinstance(source, str) and source.startswith(_DATA_SOURCE):
        return source.removeprefix(_DATA_SOURCE)
    if isinstance(metadata.get("source_dataset"), str):
        return metadata["source_dataset"]
    raise ValueError(
        f"task: expected a name in the column `task`, got none in {sorted(info)}; add it, or name the grader "
        "'reasoning-gym:TASK'"
    )


def _object(name: str, value: Any) -> dict[str, Any]:
    value = {} if value is None else json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected an object, got {value!r:.80}")
    return dict(value)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_with_tuples(entry) for entry in value)
    return {key: _with_tuples(entry) for key, entry in value.items()} if isinstance(value, Mapping) else value


def _check_task(task: str) -> None:
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        raise ValueError(f"task: expected one of {', '.join(sorted(DATASETS))}, got {task!r}")


@functools.lru_cache(maxsize=_NUM_CACHED)
def _dataset(task: str, config: str) -> Any:
    import reasoning_gym

    _check_task(task)
    return reasoning_gym.create_dataset(task, **json.loads(config))
