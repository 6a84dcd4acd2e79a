"""Prompt selection inside slime, by two of its options; no code of the user's is needed.

    --data-source-path dps_jax.integrations.slime.DataSource
    --rollout-all-samples-process-path dps_jax.integrations.slime.observe

`DataSource` has a data source of slime inside, which reads, tokenizes and numbers the samples and keeps partial
rollouts; only which prompts come next is chosen. `observe` is given the groups of a rollout, also those that dynamic
sampling dropped. The prompts of a rollout are chosen after the rewards of the one before were observed: the lag is 0.
Where slime asks more than once in a rollout (dynamic sampling), the later prompts are chosen by what was known at its
start.

Options go into the YAML file of slime's `--custom-config-path`:

    dps_method: instructive      # or another of PromptSelector; this is the default
    dps_options: {temperature: 0.1}
    dps_outcome: accuracy        # entry of Sample.reward that tells whether it is correct; default: --reward-key
    dps_threshold: 0.5           # least reward that counts as correct; without it rewards are 0 and 1

What the selector knows is saved beside slime's state of the data, in `rollout/dps_jax_N` of `--save`. slime does not
save partial rollouts; their prompts may be chosen again after a restart. Where `train_async.py` saves, one rollout more
was generated and observed; after a restart it is not trained on, as with slime's own data source.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax.integrations import _building, _fingerprints, _outcomes, _states, _versions

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector

__all__ = ["DataSource", "observe"]

_LOGGER = logging.getLogger(__name__)
_INSTALL = (
    "install it from a clone of its repository, THUDM/slime, at v0.3.1 (the package of this name on PyPI is another)"
)
_OPTIONS = ("dps_method", "dps_options", "dps_outcome", "dps_threshold")
# Where a sample keeps the number of its prompt: in its metadata, which slime copies with it.
_ID = "dps_jax_id"


def observe(args: Any, all_samples: Sequence[Any], get_samples: Callable[..., Any]) -> None:
    """Observes the rewards of a rollout, for `--rollout-all-samples-process-path`.

    Args:
      args: of slime.
      all_samples: groups of samples; in place of a sample there may be a list of those that one completion became.
      get_samples: the method of the `DataSource`.

    Raises:
      ValueError: if prompts do not come from a `DataSource`, and as `DataSource.observe` does.
    """
    source = getattr(get_samples, "__self__", None)
    if not isinstance(source, DataSource):
        raise ValueError(
            f"get_samples: expected the method of a DataSource of dps_jax, got {get_samples!r}; run slime with "
            "--data-source-path dps_jax.integrations.slime.DataSource"
        )
    source.observe(all_samples)


class DataSource:
    """A data source for `--data-source-path`.

    Attributes:
      args: of slime.
      selector: of the prompts, over all rows of `--prompt-data` that slime keeps.
    """

    def __init__(self, args: Any):
        _check_release()
        _check(args)
        _building.keep_jax_on_cpu()
        self.args = args
        # Tokenizing comes first: it takes longest, and says how many prompts are left.
        self._source = importlib.import_module("slime.rollout.data_source").RolloutDataSourceWithBuffer(args)
        samples = self._source.dataset.origin_samples
        if args.over_sampling_batch_size > len(samples):
            raise ValueError(
                f"over_sampling_batch_size: expected at most {len(samples):,}, the prompts of the data set, got "
                f"{args.over_sampling_batch_size:,}"
            )
        for index, sample in enumerate(samples):
            sample.metadata[_ID] = index
        rows = [{"prompt": sample.prompt, "label": sample.label} for sample in samples]
        self._fingerprint = _fingerprints.fingerprint(rows)
        self.selector = _selector(args, len(samples))
        self._prompts = self._source.dataset = _Prompts(samples, self.selector)

    def get_samples(self, num_samples: int) -> list[list[Any]]:
        """Returns groups of samples: partial rollouts first, then groups of chosen prompts."""
        return self._source.get_samples(num_samples)

    def add_samples(self, samples: list[list[Any]]) -> None:
        """Takes partial rollouts back."""
        self._source.add_samples(samples)

    def observe(self, groups: Sequence[Any]) -> None:
        """Observes the rewards of a rollout.

        Completions that were aborted or have no reward are left out. Prompts that were handed out and came to nothing
        may be chosen again at once, unless they come back as partial rollouts.

        Args:
          groups: of samples.

        Raises:
          ValueError: for a sample that lost the number of its prompt, a reward without the entry `dps_outcome`, and
            rewards that are neither 0 nor 1 without `dps_threshold`; the selector is as it was.
        """
        key = _option(self.args, "dps_outcome", self.args.reward_key)
        samples = [sample[-1] if isinstance(sample, list) else sample for group in groups for sample in group]
        ids = np.array([_prompt_id(sample) for sample in samples], np.int64)
        rewards = [_reward(sample, key) for sample in samples]
        threshold = _option(self.args, "dps_threshold")
        _outcomes.observe(self.selector, ids, rewards, threshold, f"reward[{key!r}]" if key else "reward")
        if not self.args.partial_rollout:
            self.selector.release(np.setdiff1d(self._prompts.handed_out, ids))
        self._prompts.handed_out = []
        self.selector.commit()
        figures = self.selector.metrics()
        _LOGGER.info(
            "dps_jax: partially solved %.3f, predicted %.3f",
            figures["effective_sample_ratio"],
            figures["predicted_informative"],
        )

    def save(self, rollout_id: int) -> None:
        """Saves slime's state, and beside it that of the selector."""
        self._source.save(rollout_id)
        folder = _folder(self.args.save, rollout_id)
        folder.mkdir(parents=True, exist_ok=True)
        _states.save(folder, self.selector, self._fingerprint)

    def load(self, rollout_id: int | None = None) -> None:
        """Takes over what `save` wrote into the folder of `--load`; does nothing if slime saved nothing there.

        Raises:
          ValueError: as `states.restore` does, for a checkpoint without a selector or a data set that has changed.
        """
        if self.args.load is not None:
            folder = _folder(self.args.load, rollout_id)
            if folder.exists() or (folder.parent / f"global_dataset_state_dict_{rollout_id}.pt").exists():
                _states.restore(folder, self.selector, self._fingerprint)
                # Nothing is generated now, and what slime kept of partial rollouts is gone.
                self.selector.release(self.selector.state_dict()["in_flight"][0])
        self._source.load(rollout_id)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name == "_source":
            raise AttributeError(name)
        return getattr(self._source, name)


class _Prompts:
    """Takes the place of slime's data set: a slice of its samples is that many chosen prompts.

    Attributes:
      handed_out: prompts since the last rollout was observed.
    """

    def __init__(self, origin_samples: list[Any], selector: PromptSelector):
        self.origin_samples = origin_samples
        self.samples = self
        self.handed_out: list[int] = []
        self._selector = selector

    def shuffle(self, epoch_id: int) -> None:
        """Does nothing: the order is the selector's."""

    def __len__(self) -> int:
        return len(self.origin_samples)

    def __getitem__(self, places: slice) -> list[Any]:
        size = len(range(len(self))[places])
        ids = self._selector.select(size).tolist() if size else []
        self.handed_out += ids
        return [self.origin_samples[index] for index in ids]


def _folder(root: str, rollout_id: int | None) -> Path:
    return Path(root) / "rollout" / f"dps_jax_{rollout_id}"


def _option(args: Any, name: str, default: Any = None) -> Any:
    found = getattr(args, name, None)
    return default if found is None else found


def _check_release() -> None:
    """Raises ImportError without slime, and ValueError for a release that is not supported."""
    try:
        metadata.version("slime")
    except metadata.PackageNotFoundError:
        if importlib.util.find_spec("slime") is not None:
            return  # a clone on the path, whose release is not known
    _versions.require("slime", "0.3", "0.4", install=_INSTALL)


def _check(args: Any) -> None:
    """Raises ValueError for arguments that a selector cannot work with."""
    unknown = sorted(name for name in vars(args) if name.startswith("dps_") and name not in _OPTIONS)
    if unknown:
        raise ValueError(f"custom_config_path: expected options among {', '.join(_OPTIONS)}, got {', '.join(unknown)}")
    if not args.rollout_global_dataset or args.prompt_data is None:
        raise ValueError(
            "prompt_data: expected a file of prompts to choose from, got none; give --prompt-data, without "
            "--disable-rollout-global-dataset"
        )
    if args.rollout_all_samples_process_path is None:
        raise ValueError(
            "rollout_all_samples_process_path: expected dps_jax.integrations.slime.observe, or a function that calls "
            "it, got None; without it the selector hears of no rewards"
        )
    if not isinstance(_option(args, "dps_options", {}), Mapping):
        raise ValueError(f"dps_options: expected names of options with values, got {args.dps_options!r}")
    _outcomes.check_threshold(_option(args, "dps_threshold"))


def _selector(args: Any, num_prompts: int) -> PromptSelector:
    """Returns the selector that the options ask for."""
    from dps_jax import selectors
    from dps_jax.prompt_selector import PromptSelector

    method = _option(args, "dps_method", _building.DEFAULT_METHOD)
    options = dict(_option(args, "dps_options", {}))
    if method in selectors.SELECTORS and "group_size" in selectors.option_names(method):
        options = {"group_size": args.n_samples_per_prompt} | options
    return PromptSelector(num_prompts, method, seed=args.rollout_seed, device="cpu", **options)


def _prompt_id(sample: Any) -> int:
    """Returns the number of the prompt of a sample."""
    found = sample.metadata.get(_ID)
    if found is None:
        raise ValueError(
            f"metadata: expected the entry {_ID} in every sample, got a sample without it; a function that generates "
            "has to keep the metadata of the sample that it is given"
        )
    return found


def _reward(sample: Any, key: str | None) -> Any:
    """Returns the reward that tells whether a completion is correct, or None."""
    if sample.reward is None or sample.status.value == "aborted":
        return None
    if key is None and not isinstance(sample.reward, Mapping):
        return sample.reward
    if not isinstance(sample.reward, Mapping) or key not in sample.reward:
        found = ", ".join(map(str, sample.reward)) if isinstance(sample.reward, Mapping) else repr(sample.reward)
        raise ValueError(
            f"dps_outcome: expected the entry of Sample.reward that tells whether a completion is correct, got {key!r} "
            f"for a reward of {found}"
        )
    return sample.reward[key]
