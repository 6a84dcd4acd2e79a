"""Arguments of a `PromptSelector`: checks, sums over repeated prompts, and padding to few shapes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import jax
import numpy as np

from dps_jax import _checks

# Pools and observations are padded to a power of two that is at least this, so that few shapes are compiled.
_SMALLEST_SHAPE = 8


def padded_size(size: int) -> int:
    """Returns the next power of two, and at least the smallest size."""
    return max(_SMALLEST_SHAPE, 1 << max(size - 1, 0).bit_length())


def padded(array: np.ndarray, fill: int) -> np.ndarray:
    """Returns an array as int32, padded with `fill` to the size of `padded_size`."""
    found = np.full(padded_size(array.size), fill, np.int32)
    found[: array.size] = array
    return found


def summed(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns distinct ids and the sums of their successes and counts, int64 [P] each, from float64 rows [3, R]."""
    # Several times faster than np.unique and np.bincount for a few hundred rows.
    ordered = rows[:, np.argsort(rows[0], kind="stable")]
    is_first = ordered[0, 1:] != ordered[0, :-1]
    if not is_first.all():
        starts = np.flatnonzero(np.append(True, is_first))
        sums = np.add.reduceat(ordered[1:], starts, axis=1)
        ordered = np.concatenate([ordered[:1, starts], sums])
    ids, successes, counts = np.rint(ordered).astype(np.int64)
    if not np.array_equal(successes, ordered[1]):
        # A small sum of rewards is partial credit and counts as a correct completion; 1e-6 allows for rounding.
        is_partial = (ordered[1] > 1e-6) & (ordered[1] < counts - 1e-6) & (counts > 1)
        successes = np.where(is_partial, np.clip(successes, 1, counts - 1), successes)
    return ids, successes, counts


def check_sums(rows: np.ndarray) -> None:
    """Raises ValueError if the counts of a prompt sum to more than the largest int32."""
    ids, position = np.unique(rows[0].astype(np.int64), return_inverse=True)
    counts = np.bincount(position, weights=rows[2], minlength=ids.size)
    if np.any(counts >= _checks.MAX_COUNT):
        worst = int(np.argmax(counts))
        raise ValueError(
            f"counts: expected fewer than 2**31 completions of a prompt in a round, got {counts[worst]:.0f} of prompt "
            f"{ids[worst]}; commit in between"
        )


def checked_keys(keys: Any, num_prompts: int) -> tuple[Hashable, ...] | None:
    """Returns the names of the prompts, or None without names.

    Raises:
      ValueError: if there are not N names, or if a name is not hashable or occurs twice.
    """
    if keys is None:
        return None
    if isinstance(keys, np.ndarray):
        keys = keys.tolist()
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise ValueError(f"keys: expected {num_prompts} names, one per prompt, got {keys!r}")
    names = tuple(keys)
    if len(names) != num_prompts:
        raise ValueError(f"keys: expected {num_prompts}, one per prompt, got {len(names)}")
    places: dict[Hashable, int] = {}
    for position, name in enumerate(names):
        try:
            first = places.setdefault(name, position)
        except TypeError:
            raise ValueError(f"keys: expected hashable names, got {name!r} at position {position}") from None
        if name != name:
            raise ValueError(f"keys: expected names that are equal to themselves, got {name!r} at position {position}")
        if first != position:
            raise ValueError(f"keys: expected distinct names, got {name!r} at positions {first} and {position}")
    return names


def checked_device(device: Any, mesh: Any) -> Any:
    """Returns the device of a selector, a jax.Device, or None."""
    if device is None:
        return None
    if mesh is not None:
        raise ValueError(f"device: expected None along with a mesh, whose devices are used, got {device!r}")
    if isinstance(device, jax.Device):
        return device
    try:
        return jax.local_devices(backend=device)[0]
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"device: expected a jax.Device or a platform such as 'cpu', got {device!r} ({error})"
        ) from error
