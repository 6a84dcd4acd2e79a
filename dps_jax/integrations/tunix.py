"""Prompt selection inside tunix: GRPOLearner, DAPOLearner and their subclasses.

    from dps_jax.integrations.tunix import PromptStream

    stream = PromptStream(selector, rows, batch_size=64)
    learner = GRPOLearner(
        cluster, config, reward_fns=[stream.outcome(is_right)], metric_fns=[stream.metric_fn]
    )
    stream.attach(learner)
    learner.train(stream)

tunix asks the stream for a batch, generates, calls the reward functions and updates. Prompts are therefore selected
after the rewards of the previous batch were observed, and the lag is 0. The stream and the reward function use the
documented interface of tunix; `attach` wraps `save` of the learner's checkpoint manager, and sets the private attribute
`_iter_steps` of the learner.

tunix uses JAX itself: a selector without `device="cpu"` keeps its state and runs on the accelerator of the model.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax import _checks
from dps_jax.integrations import _building, _fingerprints, _outcomes, _states, _versions

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector

__all__ = ["FOLDER", "IDS", "PromptStream"]

# The column with the prompt ids; tunix repeats it for each completion, and passes it to reward and metric functions.
IDS = "dps_prompt_ids"
# Name of the folder with the states of the selector, beside the folder "actor" with the checkpoints.
FOLDER = "dps_jax"
# Names that rows cannot use, because tunix or this module adds columns or arguments of these names.
_TAKEN = ("completions", "rewards", "advantages", "mode", "trajectory_ids", IDS)


class PromptStream:
    """The training set of a learner: an iterable of batches whose prompts a selector chooses.

    A batch has the columns of the rows, and the column `dps_prompt_ids`.

    Attributes:
      selector: selector over all rows.
      rows: rows of the training set.
      batch_size: number of prompts per batch, B.
      num_batches: number of batches of the whole run, or None.

    Example:
        from dps_jax import PromptSelector
        from dps_jax.integrations.tunix import PromptStream

        stream = PromptStream(PromptSelector(len(rows), "instructive", group_size=8, device="cpu"), rows, batch_size=64)
        learner = GRPOLearner(cluster, config, reward_fns=[stream.outcome(is_right)], metric_fns=[stream.metric_fn])
        stream.attach(learner)
        learner.train(stream)
    """

    def __init__(self, selector: PromptSelector, rows: Any, batch_size: int, num_batches: int | None = None):
        """Builds the stream; nothing is selected yet.

        Args:
          selector: selector over all rows, in their order; with `device="cpu"` it leaves the accelerator to tunix.
          rows: a sequence of mappings, such as a list or a `datasets.Dataset`, with the prompt as a text under the key
            "prompts". Other columns
            hold one text, number or object per row.
          batch_size: number of prompts of a full batch of tunix, B.
          num_batches: number of batches after which training ends, those before a resumed checkpoint included; with
            None, `max_steps` of tunix ends it.

        Raises:
          ImportError: if tunix is not installed.
          ValueError: for an unsupported release of tunix, rows that a selector cannot work with, or a selector of
            another size.
        """
        _versions.require("google-tunix", "0.1.7", "0.2", package="tunix")
        _check_rows(rows)
        _building.check_selector(selector, len(rows))
        self.batch_size = _checks.check_int("batch_size", batch_size, at_least=1, at_most=len(rows))
        self.num_batches = None if num_batches is None else _checks.check_int("num_batches", num_batches, at_least=1)
        self.selector = selector
        self.rows = rows
        self._fingerprint = _fingerprints.fingerprint(rows)
        self._num_selected = 0  # number of selected batches
        self._num_heard = 0  # number of calls of the outcome in training

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields a batch each time that tunix asks for one.

        Raises:
          ValueError: if no outcome of the previous batch was observed.
        """
        num_heard = -1
        while self.num_batches is None or self._num_selected < self.num_batches:
            if self._num_heard == num_heard:
                raise ValueError(
                    "outcome: expected rewards of a batch before the next one is chosen, got none; give the learner "
                    "reward_fns=[stream.outcome(reward_fn)], and call stream.attach(learner) before train: a learner "
                    "that resumes without it skips batches"
                )
            ids = self.selector.select(self.batch_size)
            num_heard = self._num_heard
            self._num_selected += 1
            yield _batch(self.rows, ids)

    def outcome(self, reward_fn: Callable[..., Any], threshold: float | None = None) -> Callable[..., Any]:
        """Returns a reward function for the learner; the selector observes its rewards in training.

        Args:
          reward_fn: reward function of tunix that decides whether completions are correct. None and NaN are missing
            rewards.
          threshold: smallest reward that counts as correct; None requires rewards of 0 and 1.

        Raises:
          ValueError: if `reward_fn` is not a function, or for a bad threshold.
        """
        if not callable(reward_fn):
            raise ValueError(f"reward_fn: expected a function of prompts and completions, got {reward_fn!r}")
        _outcomes.check_threshold(threshold)

        @functools.wraps(reward_fn)
        def observed(*args: Any, **kwargs: Any) -> Any:
            rewards = reward_fn(*args, **kwargs)
            if kwargs.get("mode") == "train" and rewards is not None:
                self._observe(kwargs.get(IDS), rewards, threshold, observed.__name__)
            return rewards

        # tunix logs by name, which objects and partial functions lack.
        observed.__name__ = getattr(reward_fn, "__name__", type(reward_fn).__name__)
        observed.__dict__["stream"] = self
        return observed

    def metric_fn(self, **kwargs: Any) -> dict[str, tuple[float, Callable[..., Any]]]:
        """Returns the selector's metrics up to the previous batch, in the form of `metric_fns` of a learner.

        Args:
          **kwargs: columns of a batch; a batch that is not from this stream, as in evaluation, has no metrics.
        """
        if IDS not in kwargs:
            return {}
        return {f"dps/{name}": (value, np.mean) for name, value in self.selector.metrics().items()}

    def attach(self, learner: Any) -> None:
        """Saves the selector beside every checkpoint of a learner, and restores it if the learner has resumed.

        Call it before `train`. The files are in the folder "dps_jax" beside "actor"; without a checkpoint
        folder, the learner is only checked. A resumed learner then skips no batches: the selector continues with the
        next one. After a checkpoint in the middle of a batch (`num_iterations` above 1, or `mini_batch_size` below B)
        the learner continues with a new batch.

        Args:
          learner: a GRPOLearner or DAPOLearner with the outcome of this stream among its reward functions.

        Raises:
          ValueError: for a learner that is not supported, with the reason; for a checkpoint without the state of this
            selector, or with the state of a selector over other rows. The learner and the selector are not changed.
        """
        _check_learner(learner, self)
        trainer = learner.rl_cluster.actor_trainer
        root = trainer.config.checkpoint_root_directory
        if root is None:
            return
        folder = Path(root).parent / FOLDER
        if trainer.train_steps:
            facts = _states.restore(folder / str(trainer.train_steps), self.selector, self._fingerprint)
            # Prompts in flight belong to a batch that the learner does not continue.
            self.selector.release(np.arange(self.selector.num_prompts))
            self._num_selected = facts["num_batches"]
            learner._iter_steps = learner._last_iter_step
        manager = trainer.checkpoint_manager
        manager.save = functools.partial(_save, self, Path(root), folder, manager.save)

    def _observe(self, prompt_ids: Any, rewards: Any, threshold: float | None, name: str) -> None:
        if prompt_ids is None:
            raise ValueError(f"train_ds: expected a PromptStream, got batches without {IDS}; use learner.train(stream)")
        _outcomes.observe(self.selector, prompt_ids, rewards, threshold, name)
        self._num_heard += 1


def _save(
    stream: PromptStream, root: Path, folder: Path, save: Callable[..., bool], step: int, *args: Any, **kwargs: Any
) -> bool:
    """Saves a checkpoint and, if one was written, the selector; deletes selector files whose checkpoint is gone."""
    is_saved = save(step, *args, **kwargs)
    if is_saved:
        (folder / str(step)).mkdir(parents=True, exist_ok=True)
        _states.save(folder / str(step), stream.selector, stream._fingerprint, num_batches=stream._num_selected)
        # Names of checkpoints may have a prefix and leading zeros, and a suffix while they are being written.
        numbers = [re.search(r"\d+", path.name) for path in root.iterdir()]
        kept = {step, *(int(number.group()) for number in numbers if number)}
        for path in folder.iterdir():
            if path.name.isdecimal() and int(path.name) not in kept:
                _states.forget(path)
    return is_saved


def _batch(rows: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows with the given ids as columns, [B] each."""
    chosen = [rows[index] for index in ids.tolist()]
    for index, row in zip(ids.tolist(), chosen, strict=True):
        _check_row(row, index, chosen[0])
    return {name: _column([row[name] for row in chosen]) for name in chosen[0]} | {IDS: ids}


def _column(values: list[Any]) -> np.ndarray:
    """Returns an array of the values, [B]: of numbers if all values are numbers of one type, and else of objects."""
    if len({type(value) for value in values}) == 1 and isinstance(values[0], (bool, int, float, np.number)):
        return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _check_rows(rows: Any) -> None:
    """Raises ValueError for rows that cannot be indexed by number."""
    if isinstance(rows, (str, Mapping)) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise ValueError(
            f"rows: expected a sequence of mappings, one per prompt, got a {type(rows).__name__}; make a table of a "
            "stream, such as list(stream)"
        )
    if not len(rows):
        raise ValueError("rows: expected at least one, got none")
    _check_row(rows[0], 0, rows[0])


def _check_row(row: Any, index: int, first: Any) -> None:
    """Raises ValueError for a row that tunix cannot use, or whose columns differ from those of its batch."""
    if not isinstance(row, Mapping) or not isinstance(row.get("prompts"), str):
        raise ValueError(f'rows: expected mappings with the text "prompts", got {row!r} in row {index}')
    if row.keys() != first.keys():
        raise ValueError(f"rows: expected the columns {', '.join(first)}, got {', '.join(row)} in row {index}")
    for name, value in row.items():
        if name in _TAKEN:
            raise ValueError(f"rows: expected no column {name!r}, which tunix or dps_jax adds; give it another name")
        if isinstance(value, (list, tuple, np.ndarray)):
            raise ValueError(
                f"rows: expected one text, number or object per column, got a {type(value).__name__} in column "
                f"{name!r} of row {index}, which tunix flattens; write it as a text with json.dumps"
            )


def _check_learner(learner: Any, stream: PromptStream) -> None:
    """Raises ValueError for a learner that a stream cannot be attached to."""
    names = [kind.__name__ for kind in type(learner).__mro__]
    expected = "learner: expected a GRPOLearner or DAPOLearner of tunix"
    if "AgenticRLLearner" in names:
        raise ValueError(
            f"{expected}, got the agentic {names[0]}, which asks for prompts before the outcomes of others have come, "
            "and skips batches when it resumes; use tunix.rl.grpo"
        )
    if "GRPOLearner" not in names:
        raise ValueError(f"{expected}, got {names[0]}")
    num_outcomes = sum(getattr(found, "stream", None) is stream for found in learner.reward_manager.reward_fns)
    if num_outcomes != 1:
        raise ValueError(
            f"learner: expected one outcome of this stream among its reward functions, got {num_outcomes}; build it "
            "with reward_fns=[stream.outcome(reward_fn), ...]"
        )
    trainer = learner.rl_cluster.actor_trainer
    save = getattr(trainer.checkpoint_manager.save, "func", None)
    if save is _save or learner._iter_steps:
        raise ValueError(
            "learner: expected one that has neither trained nor a stream attached, got another; attach once, before "
            "train"
        )
    if "://" in str(trainer.config.checkpoint_root_directory):
        raise ValueError(
            f"learner: expected checkpoints in a folder of this machine, got {trainer.config.checkpoint_root_directory}"
            "; mount it, or do without attach"
        )
    num_processes = importlib.import_module("jax").process_count()
    if num_processes != 1:
        raise ValueError(
            f"learner: expected one process, got {num_processes}; selectors of several would choose different prompts"
        )
