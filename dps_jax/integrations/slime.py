"""Prompt selection inside slime, by two of its command line options and without custom code.

    --data-source-path dps_jax.integrations.slime.DataSource
    --rollout-all-samples-process-path dps_jax.integrations.slime.observe

`DataSource` wraps a data source of slime, which reads, tokenizes and numbers the samples and keeps partial rollouts;
only the order of the prompts is different. `observe` receives all groups of a rollout, including those that dynamic
sampling dropped. The prompts of a rollout are selected after the rewards of the previous rollout were observed, so the
lag is 0. If slime asks for prompts more than once in a rollout (dynamic sampling), all of them are selected with the
state that the selector has at the start of the rollout.

Options go into the YAML file of slime's `--custom-config-path`:

    dps_method: instructive      # the default; any method of PromptSelector
    dps_options: {temperature: 0.1}
    dps_outcome: accuracy        # entry of Sample.reward that decides correctness; default: --reward-key
    dps_threshold: 0.5           # smallest reward that counts as correct; without it rewards must be 0 and 1

The state of the selector is saved beside slime's state of the data, in `rollout/dps_jax_N` of `--save`. slime does not
save partial rollouts; their prompts may be selected again after a restart. When `train_async.py` saves, one more
rollout has already been generated and observed; after a restart the policy is not trained on it, as with slime's own
data source.
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
# Key of the prompt id in the metadata of a sample; slime copies the metadata with the sample.
_ID = "dps_jax_id"


def observe(args: Any, all_samples: Sequence[Any], get_samples: Callable[..., Any]) -> None:
    r"""Lets the selector observe the rewards of a rollout, for `--rollout-all-samples-process-path`.

    Args:
      args: arguments of slime.
      all_samples: groups of samples. An entry of a group may be a list of samples that are parts of one completion.
      get_samples: the method `get_samples` of a `DataSource`.

    Raises:
      ValueError: if the prompts do not come from a `DataSource`, and in the cases of `DataSource.observe`.

    Example:
        python train.py ... \
            --data-source-path dps_jax.integrations.slime.DataSource \
            --rollout-all-samples-process-path dps_jax.integrations.slime.observe
    """
    source = getattr(get_samples, "__self__", None)
    if not isinstance(source, DataSource):
        raise ValueError(
            f"get_samples: expected the method of a DataSource of dps_jax, got {get_samples!r}; run slime with "
            "--data-source-path dps_jax.integrations.slime.DataSource"
        )
    source.observe(all_samples)


class DataSource:
    r"""A data source for `--data-source-path`, whose prompts a selector chooses.

    Attributes:
      args: arguments of slime.
      selector: selector over all rows of `--prompt-data` that slime keeps.

    Example:
        python train.py ... --custom-config-path dps.yaml \
            --data-source-path dps_jax.integrations.slime.DataSource \
            --rollout-all-samples-process-path dps_jax.integrations.slime.observe
    """

    def __init__(self, args: Any):
        _check_release()
        _check(args)
        _building.keep_jax_on_cpu()
        self.args = args
        # Tokenizing comes first: it takes longest, and slime drops prompts that are too long.
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
        """Returns groups of samples: partial rollouts first, then groups of selected prompts."""
        return self._source.get_samples(num_samples)

    def add_samples(self, samples: list[list[Any]]) -> None:
        """Takes partial rollouts back, to be continued later."""
        self._source.add_samples(samples)

    def observe(self, groups: Sequence[Any]) -> None:
        """Lets the selector observe the rewards of a rollout.

        Completions that were aborted or have no reward are left out. Selected prompts without any rewarded
        completion may be selected again at once; with `--partial-rollout` this holds only for those in `groups`, since
        slime may continue the others.

        Args:
          groups: groups of samples.

        Raises:
          ValueError: for a sample without the number of its prompt, a reward without the entry `dps_outcome`, and
            rewards other than 0 and 1 without `dps_threshold`; the selector is not changed.
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
        """Saves the state of slime's data source, and the state of the selector beside it."""
        self._source.save(rollout_id)
        folder = _folder(self.args.save, rollout_id)
        folder.mkdir(parents=True, exist_ok=True)
        _states.save(folder, self.selector, self._fingerprint)

    def load(self, rollout_id: int | None = None) -> None:
        """Restores the state that `save` wrote into the folder of `--load`; does nothing if slime saved nothing there.

        Raises:
          ValueError: for a checkpoint without a selector, or a data set that has changed.
        """
        if self.args.load is not None:
            folder = _folder(self.args.load, rollout_id)
            if folder.exists() or (folder.parent / f"global_dataset_state_dict_{rollout_id}.pt").exists():
                _states.restore(folder, self.selector, self._fingerprint)
                # No prompt is in flight after a restart, as slime has lost its partial rollouts.
                self.selector.release(self.selector.state_dict()["in_flight"][0])
        self._source.load(rollout_id)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name == "_source":
            raise AttributeError(name)
        return getattr(self._source, name)


class _Prompts:
    """Replaces slime's data set: a slice of `samples` returns as many selected prompts as the slice has indices.

    Attributes:
      handed_out: prompts that were returned since the last rollout was observed.
    """

    def __init__(self, origin_samples: list[Any], selector: PromptSelector):
        self.origin_samples = origin_samples
        self.samples = self
        self.handed_out: list[int] = []
        self._selector = selector

    def shuffle(self, epoch_id: int) -> None:
        """Does nothing, since the selector decides the order."""

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
            return  # a clone of slime on the path, whose release is unknown
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
            "it, got None; without it the selector observes no rewards"
        )
    if not isinstance(_option(args, "dps_options", {}), Mapping):
        raise ValueError(f"dps_options: expected names of options with values, got {args.dps_options!r}")
    _outcomes.check_threshold(_option(args, "dps_threshold"))


def _selector(args: Any, num_prompts: int) -> PromptSelector:
    """Returns the selector with the method and options of the arguments."""
    from dps_jax import selectors
    from dps_jax.prompt_selector import PromptSelector

    method = _option(args, "dps_method", _building.DEFAULT_METHOD)
    options = dict(_option(args, "dps_options", {}))
    if method in selectors.SELECTORS and "group_size" in selectors.option_names(method):
        options = {"group_size": args.n_samples_per_prompt} | options
    return PromptSelector(num_prompts, method, seed=args.rollout_seed, device="cpu", **options)


def _prompt_id(sample: Any) -> int:
    """Returns the prompt id of a sample."""
    found = sample.metadata.get(_ID)
    if found is None:
        raise ValueError(
            f"metadata: expected the entry {_ID} in every sample, got a sample without it; a function that generates "
            "has to keep the metadata of the sample that it is given"
        )
    return found


def _reward(sample: Any, key: str | None) -> Any:
    """Returns the reward that decides whether a completion is correct, or None."""
    if sample.reward is None or sample.status.value == "aborted":
        return None
    if key is None and not isinstance(sample.reward, Mapping):
        return sample.reward
    if not isinstance(sample.reward, Mapping) or key not in sample.reward:
        found = ", ".join(map(str, sample.reward)) if isinstance(sample.reward, Mapping) else repr(sample.reward)
        raise ValueError(
            f"dps_outcome: expected the entry of Sample.reward that decides whether a completion is correct, got "
            f"{key!r} for a reward of {found}"
        )
    return sample.reward[key]
