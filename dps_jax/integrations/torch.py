"""A data set for PyTorch whose next row is the next selected prompt, for training loops of your own.

    selector = PromptSelector(len(rows), "instructive", group_size=8, device="cpu")
    prompts = SelectedPrompts(selector, rows, batch_size=64)
    for batch in torch.utils.data.DataLoader(prompts, batch_size=64, drop_last=True):
        ...  # sample completions, compute rewards [64, 8], update the policy
        prompts.observe(batch["prompt_id"], rewards)

The `DataLoader` must have no worker processes.
"""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax import _checks
from dps_jax.integrations import _building, _fingerprints, _outcomes

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector

__all__ = ["SelectedPrompts"]

_VERSION = 1
_FIELDS = ("version", "fingerprint", "queue", "selector")


class SelectedPrompts:
    """A map-style data set that ignores indices and returns the rows that a selector chooses.

    A batch is selected at the first request after all rows of the previous batch were returned. With a `DataLoader`
    without workers and with the same batch size, the loop makes this request after it has observed the outcomes of the
    previous batch. The batch size of the loader must divide the batch size of this data set; if both
    are equal, `drop_last=True` keeps an epoch from ending within a batch. The length of an epoch is the number of rows.
    Worker processes of a loader are refused, because each would select from a copy of the selector that observes no
    outcomes; moreover, forking a process in which JAX runs can hang. `state_dict` and
    `load_state_dict` follow the protocol of `StatefulDataLoader` in torchdata.

    If your loop runs in several processes, create the selector in only one of them, which has to send the others their
    rows.

    Attributes:
      selector: the selector over the rows.
      rows: all rows of the data set.

    Example:
        from dps_jax import PromptSelector
        from dps_jax.integrations.torch import SelectedPrompts

        selector = PromptSelector(len(rows), "instructive", group_size=8, device="cpu")
        prompts = SelectedPrompts(selector, rows, batch_size=64)
        for batch in torch.utils.data.DataLoader(prompts, batch_size=64, drop_last=True):
            rewards = roll_out_and_grade(batch)  # [64, 8], 0 or 1
            prompts.observe(batch["prompt_id"], rewards)
    """

    def __init__(
        self, selector: PromptSelector, rows: Sequence[Mapping[str, Any]], batch_size: int, *, key: str = "prompt_id"
    ):
        """Combines a selector and rows; nothing is selected yet.

        Args:
          selector: selector over as many prompts as there are rows; `device="cpu"` keeps it off the GPU.
          rows: a row per prompt, such as a list of dicts or a `datasets.Dataset`.
          batch_size: number of prompts that are selected together, B.
          key: name of the column with the prompt id in the rows that are returned.

        Raises:
          ValueError: for rows without a length, no rows, a selector over another number of prompts, rows that are not
            mappings or have the key already, or a batch that is larger than the data set.
        """
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise ValueError(
                f"rows: expected a sequence of mappings, got a {type(rows).__name__}; a selector chooses among all "
                "rows, so make a table of a stream first: rows = list(stream)"
            )
        _building.check_selector(selector, len(rows))
        if not isinstance(rows[0], Mapping) or key in rows[0]:
            found = f"one with {key!r}; give another key=" if isinstance(rows[0], Mapping) else repr(type(rows[0]))
            raise ValueError(f"rows: expected mappings without the key {key!r}, got {found}")
        self.selector, self.rows = selector, rows
        self._batch_size = _checks.check_int("batch_size", batch_size, at_least=1, at_most=len(rows))
        self._key = key
        self._queue: deque[int] = deque()
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Returns the next selected row, a shallow copy with the id of its prompt; the index is ignored.

        Raises:
          ValueError: in a worker of a `DataLoader`.
        """
        _check_no_worker()
        if not self._queue:
            self._queue.extend(self.selector.select(self._batch_size).tolist())
        prompt_id = self._queue.popleft()
        return dict(self.rows[prompt_id]) | {self._key: prompt_id}

    def observe(self, prompt_ids: Any, rewards: Any, threshold: float | None = None) -> None:
        """Lets the selector observe the outcomes of completions, in any order and in any number of calls.

        Args:
          prompt_ids: prompt id of each of R completions, int [R]; or of each of P completion groups, int [P].
          rewards: rewards of the completions, [R]; or of the G completions of each group, [P, G], where groups may
            differ in size. Missing rewards are None or NaN. Lists, arrays and tensors on any device are accepted.
          threshold: smallest reward that counts as correct; None requires rewards of 1 (correct) and 0 (wrong).

        Raises:
          ValueError: for a bad id or reward, or lengths that differ; the selector is not changed.
        """
        _outcomes.check_threshold(threshold)
        ids, values = _listed("prompt_ids", prompt_ids), [_plain(value) for value in _listed("rewards", rewards)]
        if values and all(isinstance(value, (list, tuple)) for value in values):
            if len(ids) != len(values):
                raise ValueError(f"rewards: expected {len(ids)} rows, one per prompt id, got {len(values)}")
            ids = [prompt_id for prompt_id, group in zip(ids, values, strict=True) for _ in group]
            values = [_plain(value) for group in values for value in group]
        _outcomes.observe(self.selector, ids, values, threshold, "rewards")

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state: the selector with its random stream, and the ids of selected rows not returned yet.

        The state consists of texts, numbers and bytes, so that `torch.load` reads it with `weights_only=True`.
        """
        return {
            "version": _VERSION,
            "fingerprint": self._rows_fingerprint(),
            "queue": list(self._queue),
            "selector": _packed(self.selector.state_dict()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; the next rows are those that would have come next.

        Raises:
          ValueError: for a damaged state, or the state of other rows or of another selector; nothing is changed.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) != set(_FIELDS):
            found = ", ".join(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"state_dict: expected the entries {', '.join(_FIELDS)}, got {found or 'none'}")
        if state_dict["version"] != _VERSION:
            raise ValueError(f"state_dict['version']: expected {_VERSION}, got {state_dict['version']!r}")
        if state_dict["fingerprint"] != self._rows_fingerprint():
            raise ValueError(
                "state_dict['fingerprint']: expected that of the rows here, got that of others, or of the same in "
                "another order; the selector identifies prompts by row number. Give the same rows, or start anew"
            )
        queue = _checks.check_ids("state_dict['queue']", state_dict["queue"], len(self.rows), is_distinct=True)
        self.selector.load_state_dict(_unpacked(state_dict["selector"]))
        self._queue = deque(queue.tolist())

    def _rows_fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = _fingerprints.fingerprint(self.rows)
        return self._fingerprint


def _check_no_worker() -> None:
    """Raises ValueError in a worker process of a `DataLoader`; without torch there is none."""
    data = sys.modules.get("torch.utils.data")
    if data is not None and data.get_worker_info() is not None:
        raise ValueError(
            "num_workers: expected 0, got a DataLoader with workers: each would choose from a copy of the selector "
            "that never observes an outcome, and read ahead; build the DataLoader with num_workers=0"
        )


def _plain(value: Any) -> Any:
    """Returns an array or tensor, on any device, as Python values, and anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _listed(name: str, value: Any) -> list[Any]:
    plain = _plain(value)
    if not isinstance(plain, (list, tuple)):
        raise ValueError(f"{name}: expected a list, an array or a tensor of one or two dimensions, got {value!r}")
    return list(plain)


def _packed(value: Any) -> Any:
    """Returns a selector's state with arrays as bytes of `.npy` files."""
    if isinstance(value, dict):
        return {name: _packed(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_packed(entry) for entry in value]
    if isinstance(value, np.ndarray):
        content = io.BytesIO()
        np.save(content, value, allow_pickle=False)
        return {"npy": content.getvalue()}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) != {"npy"}:
            return {name: _unpacked(entry) for name, entry in value.items()}
        try:
            return np.load(io.BytesIO(value["npy"]), allow_pickle=False)
        except (TypeError, ValueError, EOFError) as error:
            raise ValueError(f"state_dict['selector']: expected arrays, got damaged ones ({error})") from error
    return [_unpacked(entry) for entry in value] if isinstance(value, list) else value
