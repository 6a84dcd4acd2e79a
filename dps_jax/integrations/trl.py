"""Prompt selection inside the trainers of TRL: GRPOTrainer, RLOOTrainer and their subclasses.

    from dps_jax.integrations.trl import attach

    trainer = GRPOTrainer(...)
    attach(trainer)
    trainer.train()

TRL has no hook for this. `attach` changes the class of the trainer to a subclass that overrides two private methods:
`_generate_and_score_completions`, where the selected rows of the data set replace those that TRL's sampler drew, and
`_calculate_rewards`, whose result the selector observes. Prompts are selected when a generation batch begins, after the
rewards of the previous batch were observed, so the lag is 0. TRL's sampler still sets the length of an epoch.

It was tested with TRL 1.16.0 and 1.0.0, and with GRPOTrainer of 0.20.0. Other releases from 0.20 on and before 2 are
accepted if the trainer has the methods and attributes that are used.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax.integrations import _building, _fingerprints, _outcomes, _states, _versions

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector

__all__ = ["attach"]

# Methods and attributes of a trainer, most of them private, that this module uses.
_HOOKS = ("_generate_and_score_completions", "_calculate_rewards", "_metrics", "num_generations", "reward_func_names")
# Metrics of the selector that go to the trainer's log.
_LOGGED = ("effective_sample_ratio", "predicted_informative")
_Base: Any = object


def attach(
    trainer: Any, selector: PromptSelector | None = None, *, outcome: str | None = None, threshold: float | None = None
) -> PromptSelector | None:
    """Makes a trainer generate completions for prompts that a selector chooses.

    Call it on every rank, before `train`. Rank 0 selects and broadcasts the selection to the other ranks, which need no
    selector and no JAX. The state of the selector is saved beside every checkpoint, and restored by
    `train(resume_from_checkpoint=...)`. After a checkpoint in the middle of a generation batch
    (`num_iterations` above 1, or `steps_per_generation` above `gradient_accumulation_steps`) the run continues with a
    new generation batch, as TRL itself does.

    The trainer logs `dps/effective_sample_ratio`, the share of prompts in the last generation batch that were partially
    solved, and `dps/predicted_informative`, the selector's prediction of this share.

    Args:
      trainer: a GRPOTrainer or RLOOTrainer.
      selector: selector over all rows of the training set, in their order; ignored on ranks other than 0. None builds a
        selector with the default method, seeded by `args.seed`.
      outcome: name of the reward function that decides whether a completion is correct; None if there is only one.
      threshold: smallest reward of that function that counts as correct; None requires rewards of 0 and 1.

    Returns:
      The selector; None on ranks other than 0.

    Raises:
      ValueError: for a trainer whose prompts cannot be selected, an unknown reward function, or a selector of another
        size; the trainer is not changed.

    Example:
        from dps_jax import PromptSelector
        from dps_jax.integrations import trl

        trainer = GRPOTrainer(model, reward_funcs=is_right, args=GRPOConfig(num_generations=8), train_dataset=rows)
        selector = PromptSelector(len(rows), "instructive", group_size=8, device="cpu")
        trl.attach(trainer, selector, threshold=0.5)
        trainer.train()
    """
    _check_trainer(trainer)
    num_prompts = len(trainer.train_dataset)
    batch_size = trainer.args.generation_batch_size // trainer.num_generations
    if batch_size > num_prompts:
        raise ValueError(
            f"trainer: expected at most {num_prompts:,} prompts in a generation batch, the rows of the training set, "
            f"got {batch_size:,}; lower steps_per_generation or per_device_train_batch_size"
        )
    _outcomes.check_threshold(threshold)
    run = _Run(_outcome_column(trainer, outcome), threshold)
    _on_rank_0(trainer, lambda: _start(run, trainer, selector))
    trainer._dps_jax = run
    trainer.__class__ = type(type(trainer).__name__, (_SelectsPrompts, type(trainer)), {})
    trainer.add_callback(_saver(run))
    return run.selector


@dataclasses.dataclass
class _Run:
    """The state that is attached to a trainer.

    Attributes:
      column: column of the reward function that decides whether a completion is correct.
      threshold: smallest reward that counts as correct, or None.
      selector: the selector on rank 0; None on other ranks.
      fingerprint: fingerprint of the data set, on rank 0.
      ids: prompt id of every completion in the current generation batch, over all ranks.
    """

    column: int
    threshold: float | None
    selector: Any = None
    fingerprint: str = ""
    ids: np.ndarray | None = None


class _SelectsPrompts(_Base):
    """The mixin for the class of a trainer."""

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        folder = resume_from_checkpoint
        if folder is True:
            folder = importlib.import_module("transformers.trainer_utils").get_last_checkpoint(self.args.output_dir)
        if folder:
            run = self._dps_jax
            _on_rank_0(self, lambda: _states.restore(folder, run.selector, run.fingerprint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        run = self._dps_jax
        num_prompts = len(inputs) * self.accelerator.num_processes // self.num_generations
        ids = _on_rank_0(self, lambda: run.selector.select(num_prompts))
        run.ids = np.repeat(ids, self.num_generations)
        try:
            found = super()._generate_and_score_completions(_rows(self, inputs))
        finally:
            run.ids = None
        if run.selector is not None:
            run.selector.commit()
            figures = run.selector.metrics()
            for name in _LOGGED:
                self._metrics["train"][f"dps/{name}"].append(figures[name])
        return found

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        rewards = super()._calculate_rewards(*args, **kwargs)
        run = self._dps_jax
        if run.ids is not None:
            # TRL has gathered the rewards of all ranks.
            values = rewards[:, run.column].float().cpu().numpy()
            name = self.reward_func_names[run.column]
            _on_rank_0(self, lambda: _outcomes.observe(run.selector, run.ids, values, run.threshold, name))
        return rewards


def _rows(trainer: Any, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns copies of the rows of this rank's part of the generation batch; TRL writes into them."""
    first = trainer.accelerator.process_index * len(inputs)
    ids = trainer._dps_jax.ids[first : first + len(inputs)].tolist()
    rows = [dict(trainer.train_dataset[index]) for index in ids]
    if trainer.args.remove_unused_columns:
        rows = [{name: row[name] for name in inputs[0]} for row in rows]
    return rows


def _start(run: _Run, trainer: Any, selector: PromptSelector | None) -> None:
    """Sets the selector of a run."""
    rows = trainer.train_dataset
    _building.keep_jax_on_cpu()
    if selector is None:
        selector = _building.default_selector(len(rows), trainer.num_generations, seed=trainer.args.seed)
    _building.check_selector(selector, len(rows))
    # Environments receive whole rows, so that their fingerprint includes all columns.
    columns = None if _environments(trainer) else ("prompt",)
    if columns and hasattr(rows, "select_columns"):
        rows = rows.select_columns(list(columns))  # so that images in other columns are not decoded
    run.fingerprint = _fingerprints.fingerprint(rows, columns)
    run.selector = selector


def _on_rank_0(trainer: Any, compute: Callable[[], Any]) -> Any:
    """Returns the result of rank 0 on every rank; a ValueError on rank 0 is raised on every rank."""
    found, error = None, None
    if trainer.accelerator.process_index == 0:
        try:
            found = compute()
        except (ValueError, OSError) as caught:
            error = caught
    found, error = importlib.import_module("accelerate.utils").broadcast_object_list([found, error])
    if error is not None:
        raise error
    return found


def _saver(run: _Run) -> Any:
    """Returns a callback that saves the selector beside every checkpoint."""

    class SavesSelector(importlib.import_module("transformers").TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if run.selector is not None:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                _states.save(folder, run.selector, run.fingerprint)

    return SavesSelector()


def _check_trainer(trainer: Any) -> None:
    """Raises ValueError for a trainer whose prompts cannot be selected."""
    names = [kind.__name__ for kind in type(trainer).__mro__]
    expected = "trainer: expected a GRPOTrainer or RLOOTrainer of TRL or a subclass"
    if isinstance(trainer, _SelectsPrompts):
        raise ValueError("trainer: expected one without a selector, got one that a selector is attached to already")
    if "AsyncGRPOTrainer" in names:
        raise ValueError(
            f"{expected}, got an AsyncGRPOTrainer, which reads prompts and grades completions in a process of its own, "
            "where no selector can follow; use GRPOTrainer"
        )
    missing = [name for name in _HOOKS if not hasattr(trainer, name)]
    if missing and not {"GRPOTrainer", "RLOOTrainer"} & set(names):
        raise ValueError(f"{expected}, got {names[0]}")
    _versions.require("trl", "0.20", "2")
    if missing:
        raise ValueError(f"{expected} with {', '.join(missing)}, which this release of TRL lacks; install trl>=1.0")
    if trainer.is_in_train:
        raise ValueError("trainer: expected one that does not train yet, got one in train(); attach before it")
    rows = trainer.train_dataset
    if rows is None:
        raise ValueError("trainer: expected a train_dataset to choose prompts from, got None")
    if not hasattr(type(rows), "__len__"):
        raise ValueError(
            f"trainer: expected a train_dataset with rows that can be chosen by number, got the stream "
            f"{type(rows).__name__}; make a table of it, such as datasets.Dataset.from_list(list(stream))"
        )
    if _environments(trainer) and all(row == {"prompt": rows[0].get("prompt")} for row in rows):
        raise ValueError(
            "trainer: expected a train_dataset whose rows differ, got an environment that makes up its prompts; give "
            "reset() a column to make them from, such as a seed"
        )


def _environments(trainer: Any) -> Any:
    """Returns the factories of environments, which receive whole rows; None without any, or in older releases."""
    return getattr(trainer, "environment_factories", None)


def _outcome_column(trainer: Any, outcome: str | None) -> int:
    """Returns the index of the reward function that decides whether a completion is correct."""
    names = list(trainer.reward_func_names)
    wanted = names[0] if outcome is None and len(names) == 1 else outcome
    if names.count(wanted) != 1:
        expected = "expected the name of the reward function that decides whether a completion is correct, one of"
        raise ValueError(f"outcome: {expected} {', '.join(names)}, once; got {outcome!r}")
    return names.index(wanted)
