"""The state between two calls: a file of `PromptSelector.save` with a few more entries."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dps_jax import _checks, _files, _npz
from dps_jax.integrations import _building
from dps_jax.next_prompts._data_files import PromptFile
from dps_jax.prompt_selector import PromptSelector
from dps_jax.selectors import option_names

_ARRAYS = ("next_facts", "next_chosen", "next_visits")
_FACTS = ("fingerprint", "key", "group_size", "digests")
_EXPECTED = "a state that dps_jax.next_prompts wrote"
_REMEDY = "restore it, or name another file as --state and give all rollouts so far"


@dataclasses.dataclass
class Memory:
    """The state between two calls of the command.

    Attributes:
      selector: selector over the rows of the data file.
      group_size: number of completions per prompt, G, with which the selector was built.
      key: column with the names of the prompts, or None.
      fingerprint: fingerprint of the data file.
      digests: checksums of the rounds that were observed.
      visits: number of visits of every prompt in these rounds, int64 [N].
      chosen: numbers of the rows that the last call chose, int64 [B]; empty before the first selection.
    """

    selector: PromptSelector
    group_size: int
    key: str | None
    fingerprint: str
    digests: list[str]
    visits: np.ndarray
    chosen: np.ndarray


def begin(file: PromptFile, key: str | None, method: str | None, group_size: int, seed: int) -> Memory:
    """Returns the memory of a new selector, which has observed no round; the method None is the default method."""
    selector = _build(file, method or _building.DEFAULT_METHOD, group_size, seed)
    no_visits, none = np.zeros(len(file), np.int64), np.zeros(0, np.int64)
    return Memory(selector, group_size, key, file.fingerprint, [], no_visits, none)


def _build(file: PromptFile, method: str, group_size: int, seed: int) -> PromptSelector:
    options: dict[str, Any] = {"group_size": group_size} if "group_size" in option_names(method) else {}
    return PromptSelector(len(file), method, seed=seed, keys=file.keys, device="cpu", **options)


def write(path: Path, memory: Memory) -> None:
    """Writes a memory to a file, atomically.

    Raises:
      OSError: if the file cannot be written; an existing file is not changed.
    """
    with tempfile.TemporaryDirectory() as folder:
        memory.selector.save(Path(folder) / "selector.npz")
        content = io.BytesIO((Path(folder) / "selector.npz").read_bytes())
    facts = {name: getattr(memory, name) for name in _FACTS}
    facts_array = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with zipfile.ZipFile(content, "a") as archive:
        for name, array in zip(_ARRAYS, (facts_array, memory.chosen, memory.visits), strict=True):
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    _files.write_atomically(path, content.getvalue())


def read(path: Path) -> Memory:
    """Returns the memory in a file that `write` wrote.

    Raises:
      ValueError: if the file is damaged or was not written by `write`; the message names the file.
      OSError: if the file cannot be read.
    """
    with open(path, "rb") as stream:
        arrays = _npz.read(path, stream, _EXPECTED, lambda names: [n for n in _ARRAYS if n in names], remedy=_REMEDY)
    try:
        facts = json.loads(bytes(arrays["next_facts"]))
        visits, chosen = (arrays[name].astype(np.int64) for name in ("next_visits", "next_chosen"))
        memory = Memory(
            selector=PromptSelector.load(path, device="cpu"),
            group_size=int(facts["group_size"]),
            key=facts["key"],
            fingerprint=str(facts["fingerprint"]),
            digests=list(map(str, facts["digests"])),
            visits=visits,
            chosen=chosen,
        )
        _checks.check_ids("chosen", chosen, memory.selector.num_prompts, is_distinct=True)
        if visits.shape != (memory.selector.num_prompts,):
            raise ValueError(f"{visits.size} visits")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected {_EXPECTED}, got another or a damaged one ({error}); {_REMEDY}") from error
    return memory


def difference(
    memory: Memory, file: PromptFile, key: str | None, method: str | None, group_size: int | None
) -> str | None:
    """Returns the reason why a call cannot use a memory, as the end of an error message; None if it can.

    Args:
      memory: memory that `read` returned.
      file: data file of the call.
      key: column with the names of the prompts in the data file, or None.
      method: selection method of the call; None accepts the method of the memory.
      group_size: number of completions per prompt, G; None accepts that of the memory.
    """
    saved = (("key", key, memory.key), ("method", method, memory.selector.method))
    for name, given, mine in (*saved, ("group_size", group_size, memory.group_size)):
        if given != mine and (name == "key" or given is not None):
            return f"{name}: expected that of the state, {mine!r}, got {given!r}; {_REMEDY}"
    if not file.has_key and memory.fingerprint != file.fingerprint:
        return (
            f"expected {file.path} with the rows that the state was written for, got others, or in another order; rows "
            "are known by their numbers. Restore the file, or begin another state with --key, which lets rows change"
        )
    return None


def carried_over(memory: Memory, file: PromptFile) -> Memory:
    """Returns the memory for the rows of another data file; a prompt that both files have keeps what was learned."""
    if memory.fingerprint == file.fingerprint:
        return memory
    state = memory.selector.state_dict()
    selector = _build(file, memory.selector.method, memory.group_size, 0)
    selector.load_state_dict(state)
    return dataclasses.replace(
        memory,
        selector=selector,
        fingerprint=file.fingerprint,
        visits=_moved(memory.visits, state["keys"], file.keys or []),
        chosen=np.zeros(0, np.int64),
    )


def _moved(visits: np.ndarray, old_keys: Sequence[Any], keys: Sequence[str]) -> np.ndarray:
    places = dict(zip(old_keys, visits.tolist(), strict=True))
    return np.array([places.get(key, 0) for key in keys], np.int64)
