"""Saved states of a `PromptSelector`: their checks, and their transfer to another set of prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dps_jax import _checks
from dps_jax.prompt_selector._in_flight import InFlight
from dps_jax.types import ArrayLayout

VERSION = 3
COUNTERS = ("num_selects", "num_batches", "num_rounds", "num_observed")
LAST_ROUND = ("effective_sample_ratio", "predicted_informative", "brier")
_FIELDS = (
    *("version", "method", "num_prompts", "options", "keys", "groups", "features", "key", "pending", "in_flight"),
    *("is_batch_open", "last_round", "leaves", *COUNTERS),
)


class Prompts(NamedTuple):
    """Names and side information (groups and features) of the prompts.

    Attributes:
      keys: N names of the prompts, or None for prompts that are identified by their ids alone.
      groups: group of each prompt, int64 [N]; None for methods without groups.
      features: checksum of the features of each prompt, uint64 [N]; None for methods without features.
    """

    keys: tuple[Hashable, ...] | None
    groups: np.ndarray | None
    features: np.ndarray | None


class Saved(NamedTuple):
    """A checked state.

    Attributes:
      leaves: arrays of the state of the method.
      key: data of the random key, uint32.
      pending: pending observations: ids, successes and counts, float64 [3, P].
      in_flight: selected prompts without an outcome.
      is_batch_open: whether the next call to `select` with `commit=False` belongs to the last batch.
      last_round: metrics of the last round by name.
      counters: counters by name.
      places: position of each prompt in `leaves`, int64 [N], -1 for new prompts; None if all positions are unchanged.
    """

    leaves: list[np.ndarray]
    key: np.ndarray
    pending: np.ndarray
    in_flight: InFlight
    is_batch_open: bool
    last_round: dict[str, float]
    counters: dict[str, int]
    places: np.ndarray | None


def checksums(features: np.ndarray) -> np.ndarray:
    """Returns a checksum of the features of every prompt, uint64 [N]."""
    bits = np.ascontiguousarray(features, np.float64).view(np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = (bits ^ (bits >> np.uint64(29))) * factors
    return np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(32)), axis=1)


def option_texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns every option as a string, arrays by their checksum, for comparison with another selector."""
    return {name: _text(value) for name, value in sorted(options.items())}


def _text(value: Any) -> str:
    if isinstance(value, (np.ndarray, jax.Array)) and np.ndim(value):
        array = np.asarray(value)
        return f"{array.dtype} {list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if isinstance(value, (list, tuple)):
        return str([_text(entry) for entry in value])
    if isinstance(value, (bool, np.bool_)) or value is None:
        return str(value)
    return str(float(value)) if isinstance(value, (int, float, np.number)) else str(value)


def check(
    state: Any,
    method: str,
    options: Mapping[str, str],
    prompts: Prompts,
    layout: Sequence[ArrayLayout],
    num_prompts: int,
) -> Saved:
    """Returns a checked state with the ids that the prompts have in this selector; leaves are unchanged.

    Args:
      state: result of `PromptSelector.state_dict`.
      method: method of this selector.
      options: options of this selector, from `option_texts`.
      prompts: names and side information of the prompts of this selector.
      layout: layout of the arrays of this selector's state.
      num_prompts: number of prompts of this selector, N.

    Raises:
      ValueError: for a state that is damaged, or that was saved by another kind of selector.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"state: expected a dict from state_dict(), got {type(state).__name__}")
    missing = [name for name in _FIELDS if name not in state]
    if missing and state.get("version", VERSION) == VERSION:
        raise ValueError(f"state: expected a dict from state_dict(), got one without {', '.join(missing)}")
    for name, expected in (("version", VERSION), ("method", method)):
        if state.get(name) is None or not np.array_equal(state[name], expected):
            raise ValueError(f"state[{name!r}]: expected {expected!r}, got {_short(state.get(name))}")
    size = _int(state, "num_prompts", at_least=1)
    _check_options(state["options"], options)
    saved_keys = state["keys"]
    if (saved_keys is None) != (prompts.keys is None) or (saved_keys is None and size != num_prompts):
        remedy = "" if saved_keys is None and prompts.keys is None else " (one of the two has keys, the other none)"
        raise ValueError(f"state['num_prompts']: expected {num_prompts}, got {size}{remedy}; give both selectors keys")
    if saved_keys is not None and len(saved_keys) != size:
        raise ValueError(f"state['keys']: expected {size}, one per prompt, got {len(saved_keys)}")
    places = _places(saved_keys, prompts.keys, num_prompts)
    _check_per_prompt("groups", state["groups"], prompts.groups, size, places)
    _check_per_prompt("features", state["features"], prompts.features, size, places)
    leaves = _checked_leaves(state["leaves"], layout, size)
    pending = _checked_pending(state["pending"], size)
    in_flight = _array(state, "in_flight", np.int64)
    if in_flight.ndim != 2 or in_flight.shape[0] != 3 or not np.all(np.isin(in_flight[2], (0, 1))):
        raise ValueError(f"state['in_flight']: expected ids, batches and 0 or 1, [3, F], got {_short(in_flight)}")
    ids = _checks.check_ids("state['in_flight']", in_flight[0], size, is_distinct=True)
    key = _array(state, "key", np.uint32)
    expected = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    if key.shape != expected:
        raise ValueError(f"state['key']: expected shape {list(expected)}, got {list(key.shape)}")
    counters = {name: _int(state, name) for name in COUNTERS}
    if np.any(in_flight[1] > counters["num_batches"]) or np.any(in_flight[1] < 0):
        raise ValueError("state['in_flight']: expected batches up to state['num_batches'], got a later one")
    saved = Saved(
        leaves=leaves,
        key=key,
        pending=pending,
        in_flight=InFlight(ids, in_flight[1], in_flight[2].astype(bool)),
        is_batch_open=bool(_int(state, "is_batch_open", at_most=1)),
        last_round=_checked_figures(state["last_round"]),
        counters=counters,
        places=None,
    )
    return saved if places is None else _moved(saved._replace(places=places), places, size)


def _places(saved: Sequence[Hashable] | None, keys: Sequence[Hashable] | None, num_prompts: int) -> np.ndarray | None:
    """Returns the position of each prompt in the saved state, int64 [N]; None if all positions are unchanged.

    New prompts have -1.
    """
    if saved is None or keys is None:
        return None
    numbers = {key: place for place, key in enumerate(saved)}
    places = np.array([numbers.get(key, -1) for key in keys], np.int64)
    return None if len(saved) == num_prompts and np.array_equal(places, np.arange(num_prompts)) else places


def _moved(saved: Saved, places: np.ndarray, size: int) -> Saved:
    """Returns the saved state of the prompts that still exist, with their current ids; leaves are not moved."""
    numbers = np.full(size, -1, np.int64)
    numbers[places[places >= 0]] = np.flatnonzero(places >= 0)
    pending = saved.pending.copy()
    pending[0] = numbers[saved.pending[0].astype(np.int64)]
    in_flight = saved.in_flight._replace(ids=numbers[saved.in_flight.ids])
    return saved._replace(pending=pending[:, pending[0] >= 0], in_flight=in_flight.without(np.array([-1])))


def carried_over(
    saved: Sequence[np.ndarray], cold: Sequence[np.ndarray], places: np.ndarray, layout: Sequence[ArrayLayout]
) -> list[np.ndarray]:
    """Returns leaves with the saved entries of known prompts, and with the initial entries of new prompts.

    Args:
      saved: leaves of the saved state.
      cold: leaves of a state without observations.
      places: position of each prompt in the saved state, int [N], -1 for new prompts.
      layout: layout of every leaf.
    """
    is_known = places >= 0
    found = []
    for old, first, of_leaf in zip(saved, cold, layout, strict=True):
        if not of_leaf.has_prompts:
            found.append(old)
            continue
        leaf = np.array(first)
        leaf[..., is_known] = old[..., places[is_known]]
        found.append(leaf)
    return found


def _check_options(saved: Any, options: Mapping[str, str]) -> None:
    if not isinstance(saved, Mapping):
        raise ValueError(f"state['options']: expected a dict of strings, got {type(saved).__name__}")
    differing = [
        f"{name} = {options.get(name)} (was {saved.get(name)})"
        for name in sorted(options.keys() | saved.keys())
        if options.get(name) != saved.get(name)
    ]
    if differing:
        raise ValueError(
            f"state['options']: expected the options of this selector, got others: {', '.join(differing)}; build the "
            "selector with the same options"
        )


def _check_per_prompt(name: str, saved: Any, mine: np.ndarray | None, size: int, places: np.ndarray | None) -> None:
    """Raises ValueError if the groups or features of a known prompt differ from the saved ones."""
    if (saved is None) != (mine is None):
        raise ValueError(
            f"{name}: expected {'none' if saved is None else 'those that the state was saved with'}, got "
            f"{'none' if mine is None else 'some'}; build the selector with the same {name}"
        )
    if saved is None or mine is None:
        return
    theirs = np.asarray(saved)
    if theirs.shape != (size,) or theirs.dtype.kind not in "iu":
        raise ValueError(f"state[{name!r}]: expected {size} integers, got shape {list(theirs.shape)}")
    kept = np.arange(mine.size) if places is None else np.flatnonzero(places >= 0)
    is_other = theirs[kept if places is None else places[kept]] != mine[kept]
    if np.any(is_other):
        position = int(kept[np.argmax(is_other)])
        raise ValueError(
            f"{name}: expected those that the state was saved with, got others, first for prompt {position}; build the "
            f"selector with the same {name}"
        )


def _checked_leaves(leaves: Any, layout: Sequence[ArrayLayout], size: int) -> list[np.ndarray]:
    """Returns the leaves of a state of `size` prompts."""
    if not isinstance(leaves, (list, tuple)):
        raise ValueError(f"state['leaves']: expected a list of arrays, got {type(leaves).__name__}")
    arrays = [np.asarray(leaf) for leaf in leaves]
    expected = [str(of_leaf.of(size)) for of_leaf in layout]
    found = [f"{array.dtype}{list(array.shape)}" for array in arrays]
    if found != expected:
        raise ValueError(
            f"state['leaves']: expected {', '.join(expected)}, got {', '.join(found) or 'none'}; build the selector "
            "with the same options"
        )
    for number, array in enumerate(arrays):
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise ValueError(f"state['leaves']: expected finite numbers, got {_first_bad(array)} in array {number}")
    return arrays


def _first_bad(array: np.ndarray) -> Any:
    return array[~np.isfinite(array)].flat[0]


def _checked_pending(value: Any, size: int) -> np.ndarray:
    pending = np.asarray(value)
    if pending.ndim != 2 or pending.shape[0] != 3 or pending.dtype.kind not in "iuf":
        raise ValueError(f"state['pending']: expected numbers of shape [3, P], got shape {list(pending.shape)}")
    pending = pending.astype(np.float64)
    _checks.check_ids("state['pending']", pending[0], size)
    _checks.check_rewards(pending[1] / np.maximum(pending[2], 1), pending[2], pending.shape[1], name="state['pending']")
    return pending


def _checked_figures(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping) or set(value) != set(LAST_ROUND):
        raise ValueError(f"state['last_round']: expected {', '.join(LAST_ROUND)}, got {_short(value)}")
    figures = {name: value[name] for name in LAST_ROUND}
    for name, figure in figures.items():
        _checks.check_in_interval(f"state['last_round'][{name!r}]", figure, 0.0, 1.0)
    return {name: float(figure) for name, figure in figures.items()}


def _array(state: Mapping[str, Any], name: str, dtype: Any) -> np.ndarray:
    array = np.asarray(state[name])
    if array.dtype != dtype:
        raise ValueError(f"state[{name!r}]: expected an array of {np.dtype(dtype)}, got {_short(state[name])}")
    return array.copy()


def _int(state: Mapping[str, Any], name: str, *, at_least: int = 0, at_most: int = 2**62) -> int:
    value = state[name]
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    value = int(value) if isinstance(value, bool) else value
    return _checks.check_int(f"state[{name!r}]", value, at_least=at_least, at_most=at_most)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
