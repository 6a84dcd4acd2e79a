"""A data set for PyTorch whose next row is the next chosen prompt, for training loops of one's own.

prompts = SelectedPrompts(PromptSelector(len(rows), "instructive", group_size=8, device="cpu"), rows, batch_size=64)
for batch in torch.utils.data.DataLoader(prompts, batch_size=64, drop_last=True):
    ...  # completions, rewards [64, 8] and a step of the policy
    prompts.observe(batch["prompt_id"], rewards)
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
    """A map-style data set that hands out chosen prompts, whichever rows it is asked for.

    A batch is chosen when the one before was handed out: with a `DataLoader` without workers that is when the loop asks
    for it, after the outcomes of the batch before have come. The loader's batch size is that of this data set, or
    divides it; `drop_last=True` keeps an epoch from ending within a batch. The length, and so the length of an epoch,
    is that of the rows. A worker of a loader refuses to hand out rows; use none, as a fork of a process in which JAX
    runs may also hang. `state_dict` and `load_state_dict` are what a `StatefulDataLoader` of torchdata looks for.

    Where a loop runs in several processes, one of them has the selector and sends the others their rows.

    Attributes:
      selector: that chooses.
      rows: all of them.
    """

    def __init__(
        self, selector: PromptSelector, rows: Sequence[Mapping[str, Any]], batch_size: int, *, key: str = "prompt_id"
    ):
        """Binds a selector to rows; nothing is chosen yet.

        Args:
          selector: over as many prompts as there are rows; `device="cpu"` keeps it off the GPU.
          rows: one per prompt, such as a list of dicts or a `datasets.Dataset`.
          batch_size: B, prompts that are chosen at a time.
          key: what the prompt's id is called in the rows that are handed out.

        Raises:
          ValueError: for rows without a length, no rows, another number of them than the selector has prompts, rows
            that are no mappings or have the key already, or a batch that is larger than the data set.
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
        """Returns the next chosen row, a shallow copy with the id of its prompt; the index is ignored.

        Raises:
          ValueError: in a worker of a `DataLoader`.
        """
        _check_no_worker()
        if not self._queue:
            self._queue.extend(self.selector.select(self._batch_size).tolist())
        prompt_id = self._queue.popleft()
        return dict(self.rows[prompt_id]) | {self._key: prompt_id}

    def observe(self, prompt_ids: Any, rewards: Any, threshold: float | None = None) -> None:
        """Gives the selector the outcomes of completions, in any order and in as many calls as you like.

        Args:
          prompt_ids: prompt of each completion, int [R]; or of each completion group, [P].
          rewards: of the completions, [R]; or those of each group, [P, G], also of groups that differ in size. Missing
            ones are None or NaN. Lists, arrays and tensors on any device.
          threshold: rewards from it on are correct; None takes 1 as correct and 0 as wrong, and nothing else.

        Raises:
          ValueError: for a bad id or reward, or lengths that differ; the selector is as it was.
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
        """Returns everything: what the selector knows, its random stream, and rows that were chosen and not handed out.

        It holds texts, numbers and bytes alone, which `torch.load` reads as it is.
        """
        return {
            "version": _VERSION,
            "fingerprint": self._rows_fingerprint(),
            "queue": list(self._queue),
            "selector": _packed(self.selector.state_dict()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned; the rows that come next are those that would have come.

        Raises:
          ValueError: if the state is damaged, of other rows or of another selector; nothing is changed.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) != set(_FIELDS):
            found = ", ".join(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"state_dict: expected the entries {', '.join(_FIELDS)}, got {found or 'none'}")
        if state_dict["version"] != _VERSION:
            raise ValueError(f"state_dict['version']: expected {_VERSION}, got {state_dict['version']!r}")
        if state_dict["fingerprint"] != self._rows_fingerprint():
            raise ValueError(
                "state_dict['fingerprint']: expected that of the rows here, got that of others, or of the same in "
                "another order; the selector knows prompts by their row. Give the same rows, or start anew"
            )
        queue = _checks.check_ids("state_dict['queue']", state_dict["queue"], len(self.rows), is_distinct=True)
        self.selector.load_state_dict(_unpacked(state_dict["selector"]))
        self._queue = deque(queue.tolist())

    def _rows_fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = _fingerprints.fingerprint(self.rows)
        return self._fingerprint


def _check_no_worker() -> None:
    """Raises ValueError in a worker process of a `DataLoader`; where torch is not imported there is none."""
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
