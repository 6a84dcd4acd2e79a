"""Prompt selection inside SkyRL, by a mixin for its experiments.

    from dps_jax.integrations.skyrl import SelectsPrompts
    from skyrl.train.entrypoints.main_base import BasePPOExp

    class Experiment(SelectsPrompts, BasePPOExp):
        threshold = 0.5  # only if rewards are not 0 and 1

Then call `Experiment(cfg).run()` instead of `BasePPOExp(cfg).run()`, with `data.dataloader.num_workers=0`. The mixin
overrides the methods that SkyRL has for custom experiments, `get_train_dataset`, `get_generator` and `get_trainer`, and
adds a callback.

Prompts are selected when the data loader asks for a batch, after the rewards of the previous step were observed, so the
lag is 0. Every generated batch is observed, including the groups that dynamic sampling discards. The batches of one
step have different prompts, as SkyRL requires, and are all selected with the state that the selector has at
the start of the step. The trainer logs `dps/effective_sample_ratio` and `dps/predicted_informative`. The state of the
selector is saved beside every checkpoint.

The fully asynchronous trainer is not supported, because it trains on every row of an epoch once, whatever is selected.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax.integrations import _building, _fingerprints, _outcomes, _states, _versions

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector

__all__ = ["Generator", "Prompts", "SelectsPrompts"]

_LOGGED = ("effective_sample_ratio", "predicted_informative")
_Base: Any = object


class SelectsPrompts(_Base):
    """A mixin for experiments of SkyRL, to be put before `BasePPOExp` or a subclass in the list of bases.

    Attributes:
      outcome: entry of `env_metrics` that decides whether a completion is correct; None uses the reward itself, summed
        over tokens where rewards are per token.
      threshold: smallest value that counts as correct; None requires values of 0 and 1.

    Example:
        from dps_jax import PromptSelector
        from dps_jax.integrations.skyrl import SelectsPrompts

        class Experiment(SelectsPrompts, BasePPOExp):
            threshold = 0.5

            def make_selector(self, num_prompts):
                return PromptSelector(num_prompts, "binomial_hmm", group_size=8, device="cpu")

        Experiment(cfg).run()
    """

    outcome: str | None = None
    threshold: float | None = None

    def make_selector(self, num_prompts: int) -> PromptSelector:
        """Returns the selector over all rows of the training set, in their order; override it to set options."""
        cfg = self.cfg
        return _building.default_selector(num_prompts, cfg.generator.n_samples_per_prompt, seed=cfg.trainer.seed)

    def get_train_dataset(self) -> Prompts:
        """Returns SkyRL's training set with batches that the selector chooses.

        Raises:
          ValueError: for an unsupported release of SkyRL, worker processes of the data loader, a bad threshold, or a
            selector of another size.
        """
        _versions.require("skyrl", "0.3", "0.4")
        _outcomes.check_threshold(self.threshold)
        num_workers = self.cfg.data.dataloader.num_workers
        if num_workers != 0:
            raise ValueError(
                f"data.dataloader.num_workers: expected 0, as a selector cannot follow into other processes, got "
                f"{num_workers}; run with data.dataloader.num_workers=0"
            )
        _building.keep_jax_on_cpu()
        rows = super().get_train_dataset()
        selector = self.make_selector(len(rows))
        _building.check_selector(selector, len(rows))
        return Prompts(rows, selector)

    def get_generator(self, *args: Any, **kwargs: Any) -> Generator:
        """Returns SkyRL's generator in a wrapper that lets the selector observe the rewards of training batches."""
        generator = super().get_generator(*args, **kwargs)
        importlib.import_module("skyrl.train.generators.base").GeneratorInterface.register(Generator)
        return Generator(generator, self.train_dataset, self.outcome, self.threshold)

    def get_trainer(self, *args: Any, **kwargs: Any) -> Any:
        """Returns SkyRL's trainer, with a callback that saves and restores the selector.

        Raises:
          ValueError: for a trainer whose prompts cannot be selected.
        """
        trainer = super().get_trainer(*args, **kwargs)
        if any("FullyAsync" in kind.__name__ for kind in type(trainer).__mro__):
            raise ValueError(
                f"trainer: expected a RayPPOTrainer, got {type(trainer).__name__}, which takes every row of an epoch "
                "once; use the synchronous trainer"
            )
        if not isinstance(trainer.train_dataset, Prompts) or not isinstance(trainer.generator, Generator):
            raise ValueError(
                "trainer: expected the data set and the generator of get_train_dataset and get_generator, got others; "
                "let overrides of these methods call super(), and put SelectsPrompts first among the bases"
            )
        trainer.add_callback(_saver(trainer.train_dataset))
        return trainer


class Prompts:
    """The training set of SkyRL with batches that a selector chooses, whatever indices the data loader asks for.

    `SelectsPrompts.get_train_dataset` returns it.

    Attributes:
      rows: SkyRL's `PromptDataset`.
      selector: selector over the rows.
      fingerprint: fingerprint of the rows.

    Example:
        prompts = Prompts(rows, PromptSelector(len(rows), "instructive", group_size=8, device="cpu"))
        batch = prompts.__getitems__(range(64))  # 64 selected rows, as the data loader gets them
    """

    def __init__(self, rows: Any, selector: PromptSelector):
        self.rows = rows
        self.selector = selector
        self.fingerprint = _fingerprints.fingerprint(_Contents(rows))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Returns the rows of selected prompts, as many as there are indices."""
        # A step of dynamic sampling has several batches, so the round is committed only at its end, in `_saver`.
        return [self.rows[index] for index in self.selector.select(len(indices), commit=False).tolist()]

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> Any:
        if name == "rows":
            raise AttributeError(name)
        return getattr(self.rows, name)


class Generator:
    """A wrapper around a generator of SkyRL that lets the selector observe the rewards of training batches.

    `SelectsPrompts.get_generator` returns it.

    Attributes:
      generator: the wrapped generator.

    Example:
        generator = Generator(generator, prompts, outcome=None, threshold=0.5)
        output = await generator.generate(input_batch)  # prompts.selector has observed the rewards
    """

    def __init__(self, generator: Any, prompts: Prompts, outcome: str | None, threshold: float | None):
        self.generator = generator
        self._prompts = prompts
        self._outcome, self._threshold = outcome, threshold

    async def generate(self, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the output of the generator; the rewards of a training batch are observed first.

        Raises:
          ValueError: for rewards or metrics that do not decide whether a completion is correct.
        """
        output = await self.generator.generate(input_batch, *args, **kwargs)
        metadata = input_batch.get("batch_metadata")
        if metadata is not None and metadata.training_phase == "train":
            self._observe(input_batch, output)
        return output

    def _observe(self, input_batch: Any, output: Any) -> None:
        # If each turn of a conversation is a row, the output has an id for each row, and the last turn of a completion
        # counts.
        trajectories = output.get("trajectory_ids") or input_batch["trajectory_ids"]
        is_last = output.get("is_last_step") or [True] * len(trajectories)
        ids = [int(trajectory.instance_id) for trajectory in trajectories]
        values = _rewards(output) if self._outcome is None else _metrics(output, self._outcome)
        if len(values) == len(ids):
            ids, values = ([entry for entry, last in zip(x, is_last, strict=True) if last] for x in (ids, values))
        name = self._outcome or "rewards"
        _outcomes.observe(self._prompts.selector, np.array(ids), values, self._threshold, name)

    def __getattr__(self, name: str) -> Any:
        if name == "generator":
            raise AttributeError(name)
        return getattr(self.generator, name)


class _Contents:
    """Rows of SkyRL as mappings, for their fingerprint."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt, env_class, extras, _ = self.rows[index]
        return {"prompt": prompt, "env_class": env_class, "extras": extras}


def _rewards(output: Any) -> list[Any]:
    """Returns one reward per row of the output; rewards per token are summed."""
    return [
        (None if any(part is None for part in reward) else sum(reward)) if isinstance(reward, list) else reward
        for reward in output["rewards"]
    ]


def _metrics(output: Any, name: str) -> list[Any]:
    """Returns an entry of the metrics of every row; None for rows without it."""
    metrics = [entry or {} for entry in output.get("env_metrics") or []]
    if not any(name in entry for entry in metrics):
        found = sorted({key for entry in metrics for key in entry})
        raise ValueError(
            f"outcome: expected an entry of env_metrics, one of {', '.join(found) or 'none'}, got {name!r}; name "
            "another, or None for the reward"
        )
    return [entry.get(name) for entry in metrics]


def _saver(prompts: Prompts) -> Any:
    """Returns a callback that commits rounds, saves and restores the selector, and logs its metrics."""
    io = importlib.import_module("skyrl.backends.skyrl_train.utils.io.io")

    class SavesSelector(importlib.import_module("skyrl.train.utils.callbacks").TrainingCallback):
        def on_step_end(self, trainer: Any, callback_input: Any, control: Any) -> None:
            prompts.selector.commit()

        def on_save(self, trainer: Any, callback_input: Any, control: Any) -> None:
            with io.local_work_dir(callback_input.ckpt_path) as folder:
                _states.save(folder, prompts.selector, prompts.fingerprint)

        def on_train_start(self, trainer: Any, callback_input: Any, control: Any) -> None:
            if callback_input.global_step > 0:
                with io.local_read_dir(_checkpoint(trainer.cfg.trainer, callback_input.global_step)) as folder:
                    _states.restore(folder, prompts.selector, prompts.fingerprint)

        def on_log(self, trainer: Any, callback_input: Any, control: Any) -> None:
            figures = prompts.selector.metrics()
            callback_input.logs.update({f"dps/{name}": figures[name] for name in _LOGGED})

    return SavesSelector()


def _checkpoint(cfg: Any, step: int) -> str:
    """Returns the checkpoint that SkyRL continues from."""
    if cfg.resume_mode == "from_path":
        return str(cfg.resume_path)
    return os.path.join(cfg.ckpt_path, f"global_step_{step}")
