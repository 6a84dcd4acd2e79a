"""Finds, by the config of a run, the texts and groups of its prompts, and which references are wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import grading, tasks, text
from dps_jax.report import _configs
from dps_jax.report._runs import Run
from dps_jax.tasks import _references
from dps_jax.training import GraderConfig, PromptsConfig, TaskConfig, TextConfig, _text_prompts

_RULES = "{reward_rules}"


class Texts(NamedTuple):
    """Texts of some prompts, and facts about all prompts.

    Attributes:
      of: texts of prompts by id; prompts without a text are left out.
      reason: reason why there are no texts, as a sentence; "" if there are texts.
      group_names: names of the prompt groups; empty if they are not known.
      broken: ids of the prompts with a wrong reference; None if they are not known.
    """

    of: dict[int, str]
    reason: str = ""
    group_names: tuple[str, ...] = ()
    broken: frozenset[int] | None = None


def texts_of(run: Run, ids: np.ndarray) -> Texts:
    """Returns the texts of some prompts of a run, or the reason why there are none."""
    if run.config is None:
        if run.names is None:
            return Texts({}, "The trace identifies prompts by numbers and has no texts.")
        assert run.visits is not None
        return Texts({int(index): run.names[run.visits.prompt_ids[index]] for index in ids})
    try:
        if "task" in run.config:
            return _of_task(run.config, ids)
        if "data" in run.config:
            return _of_data(run, ids)
        return Texts({}, "config.json names neither a task nor a data file.")
    # Data files, tokenizers and chat templates can fail in many ways; the page is useful without texts, too.
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        return Texts({}, f"The texts of the prompts could not be read: {error}")


def _of_task(config: Any, ids: np.ndarray) -> Texts:
    options = _configs.rebuilt(TaskConfig, config["task"])
    task = tasks.build(options.name, **options.options())
    problems = task.make_problems(config["seed"], "train", ids)
    broken = None
    if options.broken:
        is_broken = _references.is_broken(config["seed"], "train", np.arange(options.num_train), options.broken)
        broken = frozenset(np.flatnonzero(is_broken).tolist())
    found = {int(index): task.decode(prompt) for index, prompt in zip(ids, problems.prompts, strict=True)}
    return Texts(found, group_names=task.group_names, broken=broken)


def _of_data(run: Run, ids: np.ndarray) -> Texts:
    config = run.config
    assert config is not None
    for name in ("data", "model"):
        if not Path(config[name]).exists():
            raise ValueError(
                f"{name}: expected {config[name]}, got nothing there; put it back, or run the command from the folder "
                "in which the run was started"
            )
    prompts = _configs.rebuilt(PromptsConfig, config["prompts"])
    rules = ""
    if _RULES in prompts.template or _RULES in (prompts.system or ""):
        grader = _configs.rebuilt(GraderConfig, config["grader"])
        rules = grading.resolve(grader.name, **grader.option_values()).rules
    tokenizer = text.load_tokenizer(Path(config["model"]))
    if not prompts.chat:
        tokenizer = dataclasses.replace(tokenizer, chat_template=None)
    read = TextConfig(model=Path(config["model"]), data=Path(config["data"]), prompts=prompts)
    train, _ = _text_prompts.read_prompts(read, tokenizer, rules)
    labels = [_text_prompts.group_of(question) for question in train.questions]
    names = tuple(sorted(set(labels)))
    groups = np.array([names.index(label) for label in labels])
    if run.groups is not None and not np.array_equal(groups, run.groups):
        raise ValueError(
            f"{config['data']}: expected the {run.groups.size} prompts that the run was trained on, got {groups.size} "
            "or others; put the file back as it was"
        )
    found = {int(index): train.questions[index].messages[-1]["content"] for index in ids}
    return Texts(found, group_names=names)
