"""Prompt selection inside verl, by the custom classes that its configuration accepts.

    python3 -m verl.trainer.main_ppo ... \
        data.custom_cls.path=pkg://dps_jax.integrations.verl data.custom_cls.name=SelectedDataset \
        data.dataloader_num_workers=0 '+data.dps_jax.group_size=${actor_rollout_ref.rollout.n}' \
        trainer.v1.sampler.custom_sampler.path=pkg://dps_jax.integrations.verl \
        trainer.v1.sampler.custom_sampler.name=ObservedReplayBuffer \
        trainer.checkpoint_callback_class=dps_jax.integrations.verl.SelectorCheckpoint

The last three options are for the V1 trainer of verl 0.9; the legacy trainer (`use_v1=False`, and before 0.9) does not
need them. `SelectedDataset` selects the rows when the trainer asks for a batch, and its state is part of `data.pt` in
verl's checkpoints. Every batch is observed before the next one is requested, so the lag is 0. The last option exists
from 0.9.1 on and is optional: it rejects incompatible options before anything is loaded, and writes the selector as a
separate file beside each checkpoint. Entries of `data.dps_jax`, of which only the first may be required:

| entry | meaning |
|---|---|
| `group_size` | completions per prompt; required by methods with this option |
| `outcome` | entry of `reward_extra_info` that decides correctness, such as `acc`; by default the reward |
| `threshold` | smallest value that counts as correct; without it the values must be 0 and 1 |
| `method`, `seed` and others | arguments of `PromptSelector` |

Limits that come from verl:

* With a custom replay buffer, verl silently ignores `algorithm.filter_groups` and `sync_refill_failed_groups`. Here
  both are refused. So are asynchronous modes, which ask for one prompt at a time and do not wait for outcomes.
* The legacy trainer saves before outcomes reach the data set: its checkpoint of step t lacks the outcomes of step t,
  and those of the last batch are never observed. It logs no metrics of the selector. The V1 trainer has none of these
  limits.
* From 0.8 on, the legacy trainer does not restore the state of the data set from a checkpoint at the end of an epoch:
  such a run continues with a new selector.
* The legacy trainer with dynamic sampling (`filter_groups`) does not pass on the groups that it discards, which would
  make every prompt look partially solved. Therefore no second batch is returned before the first was observed.
* A run that resumes from a checkpoint without a selector starts with a new selector.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dps_jax.integrations import _building, _fingerprints, _outcomes, _states, _versions

# SelectedDataset, ObservedReplayBuffer and SelectorCheckpoint are not listed: `__getattr__` makes them on request, as
# this imports verl.
__all__ = ["PROMPT_KEY"]

# The entry of `extra_info` with the prompt id; verl passes `extra_info` from the data set to the rewards.
PROMPT_KEY = "dps_jax_prompt"
# Metrics of the selector that go to the log of the V1 trainer.
_LOGGED = ("effective_sample_ratio", "predicted_informative")
_V1_SAMPLER = (
    "trainer.v1.sampler.custom_sampler.path=pkg://dps_jax.integrations.verl and "
    "trainer.v1.sampler.custom_sampler.name=ObservedReplayBuffer"
)
_Base: Any = object
# The training set of this process, for the replay buffer: the buffer is built first, and verl does not pass the
# training set to it.
_training_set: Any = None


class _SelectsRows(_Base):
    """The mixin for verl's data set.

    Attributes:
      selector: selector over the rows; None in the validation set, which works as in verl.
    """

    def __init__(self, data_files: Any, tokenizer: Any, config: Any, *args: Any, **kwargs: Any):
        global _training_set
        self.selector: Any = None
        is_training = _is_training(data_files, config)
        if is_training:
            _check_workers(config)
        super().__init__(data_files, tokenizer, config, *args, **kwargs)
        if is_training:
            self.selector, self._outcome, self._threshold = _built(config, len(self))
            self._fingerprint = _fingerprints.fingerprint(self.dataframe.select_columns([self.prompt_key]))
            self._waiting: np.ndarray | None = None  # prompts of the batch that was not observed yet
            _training_set = self

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns a batch of rows; in training, the selected rows, whatever the indices are."""
        if self.selector is None:
            return [self[index] for index in indices]
        batch_size = self.config.train_batch_size
        if len(indices) < batch_size:
            raise ValueError(
                f"data.gen_batch_size: expected a batch of train_batch_size={batch_size} prompts at a time, got "
                f"{len(indices)}; leave it at null, and algorithm.filter_groups, sync_refill_failed_groups and "
                "asynchronous modes off"
            )
        if self._waiting is not None:
            raise ValueError(
                "data.custom_cls: expected the outcomes of a batch before the next is asked for, got none; with the V1 "
                f"trainer set {_V1_SAMPLER}, and leave dynamic sampling (filter_groups) off"
            )
        ids = self._waiting = self.selector.select(len(indices))
        rows = [self[index] for index in ids.tolist()]
        for row, index in zip(rows, ids.tolist(), strict=True):
            row["extra_info"] = {**row["extra_info"], PROMPT_KEY: index}
        return rows

    def observe(self, extra_infos: Sequence[Any], values: Any, name: str) -> dict[str, float]:
        """Lets the selector observe the outcomes of a round, and returns metrics to log.

        Args:
          extra_infos: `extra_info` of each completion, [R].
          values: outcome of each completion, [R]; None and NaN stand for missing outcomes.
          name: name of the outcome, for messages.
        """
        ids = np.array([_prompt_id(info) for info in extra_infos], np.int64)
        _outcomes.observe(self.selector, ids, values, self._threshold, name)
        if self._waiting is not None:  # prompts whose rollouts failed have no outcome
            self.selector.release(np.setdiff1d(self._waiting, ids))
        self.selector.commit()
        self._waiting = None
        figures = self.selector.metrics()
        return {f"dps/{figure}": figures[figure] for figure in _LOGGED}

    def on_batch_end(self, batch: Any) -> None:
        """Lets the selector observe the outcomes of a batch of the legacy trainer."""
        rows, outcome = batch.non_tensor_batch, self._outcome
        if outcome is None:
            values = batch.batch["token_level_scores"].sum(-1).float().cpu().numpy()
        elif outcome in rows:
            values = rows[outcome]
        else:
            raise _no_outcome(outcome, batch.meta_info.get("reward_extra_keys", ()))
        self.observe(rows.get("extra_info", [None]), values, outcome or "reward")

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that verl writes into its checkpoint."""
        if self.selector is None:
            return {}
        return {"fingerprint": self._fingerprint, "selector": self.selector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; a batch that was not observed by then is dropped."""
        if self.selector is None:
            return
        if set(state) != {"fingerprint", "selector"}:
            raise ValueError(f"state: expected the entries fingerprint and selector, got {', '.join(state) or 'none'}")
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                "data.train_files: expected the data set that the run was started with, got one with other rows or in "
                "another order; the selector identifies prompts by row number. Give the same files, or start anew"
            )
        self.selector.load_state_dict(state["selector"])
        self.selector.release(state["selector"]["in_flight"][0])
        self._waiting = None


class _ObservesBatches(_Base):
    """The mixin for the replay buffer of the V1 trainer."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        _check_mode(self.trainer_mode)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Returns a batch of trajectories, after the selector has observed it; validation batches are not observed."""
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if partition_id == "train":
            metrics = metrics | _observe_stored(_the_training_set(), batch)
        return batch, metrics


class _SavesSelector(_Base):
    """The mixin for verl's checkpoint callback."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        if config is not None:
            _check_v1(config)

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, **kwargs: Any) -> None:
        """Writes the selector into the folder of a checkpoint, where `PromptSelector.load` can read it."""
        training_set = _the_training_set()
        _states.save(checkpoint_dir, training_set.selector, training_set._fingerprint, step=global_step)


# The mixin, the module and the base of each class. Releases before 0.9 have only the first module, and 0.9.0 lacks the
# third.
_CLASSES = {
    "SelectedDataset": (_SelectsRows, "verl.utils.dataset.rl_dataset", "RLHFDataset"),
    "ObservedReplayBuffer": (_ObservesBatches, "verl.trainer.ppo.v1.replay_buffer", "ReplayBuffer"),
    "SelectorCheckpoint": (_SavesSelector, "verl.trainer.ppo.checkpoint_callback", "CheckpointCallback"),
}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _versions.require("verl", "0.7", "0.10")
    mixin, module, base = _CLASSES[name]
    made = type(name, (mixin, getattr(importlib.import_module(module), base)), {"__module__": __name__})
    globals()[name] = made
    return made


def _is_training(data_files: Any, config: Any) -> bool:
    """Returns whether a data set is the training set; verl makes the validation set of the same class."""
    given, train, val = (
        [files] if isinstance(files, str) else list(files or ())
        for files in (data_files, config.get("train_files"), config.get("val_files"))
    )
    if train == val:
        raise ValueError(
            f"data.val_files: expected other files than train_files, got {', '.join(val)} for both, which does not "
            "show which data set is trained on; give a copy under another name"
        )
    if given not in (train, val):
        raise ValueError(f"data_files: expected data.train_files or data.val_files, got {', '.join(given)}")
    return given == train


def _check_workers(config: Any) -> None:
    num_workers = config.get("dataloader_num_workers", 0)
    if num_workers != 0:
        raise ValueError(
            f"data.dataloader_num_workers: expected 0, got {num_workers}; other processes read ahead, from copies of "
            "the data set that no outcome reaches"
        )


def _built(config: Any, num_prompts: int) -> tuple[Any, str | None, float | None]:
    """Returns the selector, outcome and threshold that the data section of a configuration describes."""
    _building.keep_jax_on_cpu()
    from dps_jax import selectors
    from dps_jax.prompt_selector import PromptSelector

    container = importlib.import_module("omegaconf").OmegaConf.to_container
    options = container(config.dps_jax, resolve=True) if config.get("dps_jax") else {}
    outcome, threshold = options.pop("outcome", None), options.pop("threshold", None)
    if outcome is not None and not isinstance(outcome, str):
        raise ValueError(f"data.dps_jax.outcome: expected the name of an entry or null, got {outcome!r}")
    _outcomes.check_threshold(threshold)
    options: dict[str, Any] = {"method": _building.DEFAULT_METHOD} | options
    if "group_size" not in selectors.option_names(options["method"]):
        options.pop("group_size", None)
    elif "group_size" not in options:
        raise ValueError(
            "data.dps_jax.group_size: expected the number of completions of a prompt, got none; add "
            "'+data.dps_jax.group_size=${actor_rollout_ref.rollout.n}'"
        )
    try:
        return PromptSelector(num_prompts, device="cpu", **options), outcome, threshold
    except ValueError as error:
        raise ValueError(f"data.dps_jax: {error}") from error


def _check_mode(mode: str) -> None:
    if mode != "sync":
        raise ValueError(
            f"trainer.v1.trainer_mode: expected sync, got {mode}, which asks for prompts before the outcomes of those "
            "before are there; set trainer.v1.trainer_mode=sync"
        )


def _check_v1(config: Any) -> None:
    """Raises ValueError for options that verl ignores with a custom replay buffer, or if that buffer is missing."""
    _check_mode(config.trainer.v1.trainer_mode)
    sampler = config.trainer.v1.sampler
    for name, is_on in (
        ("algorithm.filter_groups.enable", (config.algorithm.get("filter_groups") or {}).get("enable")),
        ("trainer.v1.sampler.sync_refill_failed_groups", sampler.get("sync_refill_failed_groups")),
    ):
        if is_on:
            raise ValueError(f"{name}: expected False, got True; verl leaves it out with a replay buffer of others")
    if (sampler.get("custom_sampler") or {}).get("name") != "ObservedReplayBuffer":
        raise ValueError(f"trainer.v1.sampler.custom_sampler: expected ObservedReplayBuffer; set {_V1_SAMPLER}")


def _the_training_set() -> Any:
    if _training_set is None:
        raise ValueError(
            "data.custom_cls: expected SelectedDataset, got another class; set data.custom_cls.path="
            "pkg://dps_jax.integrations.verl and data.custom_cls.name=SelectedDataset"
        )
    return _training_set


def _observe_stored(training_set: Any, batch: Any) -> dict[str, float]:
    """Lets the data set observe a batch in the transfer queue; only the last part of a completion counts."""
    last: dict[str, tuple[int, str]] = {}
    for key in batch.keys:
        session, _, part = key.rpartition("_")
        last[session] = max(last.get(session, (-1, "")), (int(part), key))
    queue, outcome = importlib.import_module("transfer_queue"), training_set._outcome
    keys = [key for _, key in last.values()]
    fields = ["extra_info", "extra_fields" if outcome else "rm_scores"]
    stored = queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
    missing = [name for name in fields if name not in stored]
    if missing:
        raise ValueError(
            f"rewards: expected {' and '.join(fields)} with the rollouts, got none of {' and '.join(missing)}; a "
            "reward model in the pool of the trainer (enable_resource_pool=False) comes too late"
        )
    if outcome is None:
        values: Any = np.array([float(scores.sum()) for scores in stored["rm_scores"]], np.float32)
    else:
        infos = [_plain(entry).get("reward_extra_info") or {} for entry in stored["extra_fields"]]
        names = sorted({name for info in infos for name in info})
        if outcome not in names:
            raise _no_outcome(outcome, names)
        values = [info.get(outcome) for info in infos]
    return training_set.observe([_plain(info) for info in stored["extra_info"]], values, outcome or "reward")


def _plain(value: Any) -> Any:
    """Returns the value inside a wrapper of tensordict."""
    return getattr(value, "data", value)


def _prompt_id(extra_info: Any) -> int:
    if not isinstance(extra_info, Mapping) or PROMPT_KEY not in extra_info:
        raise ValueError(
            f"extra_info: expected the entry {PROMPT_KEY} that SelectedDataset adds, got {extra_info!r:.80}; an agent "
            "loop has to pass extra_info on"
        )
    return int(extra_info[PROMPT_KEY])


def _no_outcome(outcome: str, names: Any) -> ValueError:
    return ValueError(
        f"data.dps_jax.outcome: expected an entry of reward_extra_info, one of {', '.join(names) or '(none)'}, got "
        f"{outcome!r}"
    )
