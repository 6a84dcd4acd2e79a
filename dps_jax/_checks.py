"""Argument checks; every error message has the form "name: expected X, got Y"."""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_MAX_INT32 = 2**31 - 1


def is_traced(value: Any) -> bool:
    """Returns whether a value is a JAX tracer, whose content cannot be checked."""
    # JAX is not imported here, since some processes only pass prompts on and never use JAX.
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def as_array(name: str, value: Any) -> np.ndarray:
    """Returns any sequence or number as an array.

    Raises:
      ValueError: if NumPy cannot convert it to an array.
    """
    try:
        return np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected an array, got {value!r} ({error})") from None


def as_numbers(name: str, value: Any) -> np.ndarray:
    """Returns any sequence of real numbers as a float64 array.

    Raises:
      ValueError: for anything else.
    """
    array = as_array(name, value)
    if array.size and array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected numbers, got {value!r}")
    return array.astype(np.float64)


def check_bool(name: str, value: Any) -> bool:
    """Returns `value` as a Python bool.

    Raises:
      ValueError: if it is neither True nor False.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_path(name: str, value: Any) -> None:
    """Raises ValueError if `value` is neither a text nor a path."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise ValueError(f"{name}: expected a path, got {value!r}")


def check_instance(name: str, value: Any, kind: type) -> None:
    """Raises ValueError if `value` is not an instance of `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected a {kind.__name__}, got {value!r}")


def check_int(name: str, value: Any, *, at_least: int, at_most: int | None = None) -> int:
    """Returns `value` as a Python int.

    Args:
      name: name of the argument, for error messages.
      value: value of the argument.
      at_least: smallest allowed value.
      at_most: largest allowed value; None is the largest int32, since counts and sizes are int32 on the device.

    Raises:
      ValueError: if it is not an integer or is out of range.
    """
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if at_most is None and is_integer and value > _MAX_INT32:
        at_most = _MAX_INT32
    if not is_integer or value < at_least or (at_most is not None and value > at_most):
        limit = f">= {at_least}" + ("" if at_most is None else f" and <= {at_most}")
        raise ValueError(f"{name}: expected an integer {limit}, got {value!r}")
    return int(value)


def check_group_size(value: Any) -> int:
    """Returns the number of completions per prompt, G, as a Python int.

    Raises:
      ValueError: if it is not an integer or is out of range.
    """
    # Tables have one row per outcome, and outcomes are stored in 16 bits.
    return check_int("group_size", value, at_least=1, at_most=2**15 - 2)


def check_in_interval(name: str, value: Any, low: float, high: float) -> Any:
    """Returns `value`; tracers are not checked.

    Raises:
      ValueError: if it is not a number in the closed interval.
    """
    if is_traced(value):
        return value
    array = as_array(name, value)
    if array.ndim != 0 or array.dtype.kind not in "fiu" or not (low <= float(array) <= high):
        raise ValueError(f"{name}: expected a number in [{low}, {high}], got {value!r}")
    return value


def as_float32(value: Any) -> Any:
    """Returns a number as a Python float, and a JAX array as float32.

    Results of operations with this number then have the dtype of the state, even if `jax_enable_x64` is set.
    """
    jax = sys.modules.get("jax")
    return value.astype(np.float32) if jax is not None and isinstance(value, jax.Array) else float(value)


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    may_be_infinite: bool = False,
    hint: str = "",
) -> float:
    """Returns `value` as a Python float.

    Args:
      name: name of the argument, for error messages.
      value: value of the argument.
      at_least: smallest allowed value.
      above: exclusive lower limit.
      at_most: largest allowed value.
      below: exclusive upper limit.
      may_be_infinite: whether infinity is allowed.
      hint: text that the error message ends with, after a semicolon.

    Raises:
      ValueError: if it is not a number, a NaN, infinite where that is not allowed, or out of range.
    """
    limits = ((">=", at_least), (">", above), ("<=", at_most), ("<", below))
    range_text = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)
    array = as_array(name, value)
    number = float(array) if array.ndim == 0 and array.dtype.kind in "fiu" else float("nan")
    is_fine = np.isfinite(number) or (may_be_infinite and not np.isnan(number))
    is_fine = is_fine and (at_least is None or number >= at_least) and (above is None or number > above)
    is_fine = is_fine and (at_most is None or number <= at_most) and (below is None or number < below)
    if not is_fine:
        kind = "number" if may_be_infinite else "finite number"
        raise ValueError(f"{name}: expected a {kind} {range_text}, got {value!r}" + (f"; {hint}" if hint else ""))
    return number


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ValueError with the known choices if `value` is not one of them."""
    choices = list(choices)
    if not isinstance(value, Hashable) or value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {known}, got {value!r}")


def check_options(name: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises ValueError with the known option names if `options` has an unknown name."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        known_names = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{name}: expected options among {known_names}, got {', '.join(unknown)}")


def check_factory(factory: Any, registry: Mapping[str, Any], noun: str) -> str:
    """Returns the name under which a factory can be registered.

    A factory of the same module and name may replace an earlier one: a module was reloaded, or a notebook cell ran
    twice.

    Raises:
      ValueError: if `factory` is not a function with a name, or if another factory has this name.
    """
    name = getattr(factory, "__name__", "")
    if not callable(factory) or not name.isidentifier():
        raise ValueError(f"factory: expected a function with a name, got {factory!r}; define it with def")
    known = registry.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (factory.__module__, factory.__qualname__):
        raise ValueError(f"factory: expected a name that no other {noun} has, got {name!r}; rename the function")
    return name


def check_probs(name: str, value: Any) -> np.ndarray:
    """Returns a float64 vector of probabilities.

    Raises:
      ValueError: if it is not one-dimensional, has a negative or non-finite entry, or does not sum to 1.
    """
    probs = as_numbers(name, value)
    if probs.ndim != 1 or not np.all(np.isfinite(probs)) or np.any(probs < 0) or abs(probs.sum() - 1) > 1e-5:
        raise ValueError(f"{name}: expected non-negative probabilities that sum to 1, got {value!r}")
    return probs / probs.sum()


def check_concentration(name: str, value: Any, num_states: int) -> np.ndarray:
    """Returns a float64 [K, K] array of Dirichlet parameters, row i for transitions out of state i.

    Raises:
      ValueError: for a wrong shape, a negative or non-finite entry, or a row of zeros.
    """
    concentration = as_numbers(name, value)
    if concentration.shape != (num_states, num_states):
        raise ValueError(f"{name}: expected shape [{num_states}, {num_states}], got {list(concentration.shape)}")
    if not np.all(np.isfinite(concentration)) or np.any(concentration < 0):
        raise ValueError(f"{name}: expected finite entries >= 0, got {value!r}")
    if np.any(concentration.sum(axis=1) <= 0):
        row = int(np.argmin(concentration.sum(axis=1)))
        raise ValueError(f"{name}: expected every row to have a positive entry, got zeros in row {row}")
    return concentration


def check_integer_array(name: str, value: Any) -> np.ndarray:
    """Returns a one-dimensional int64 array.

    Raises:
      ValueError: if it is not one-dimensional, or has a NaN or a number that is not whole.
    """
    array = as_array(name, value)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {list(array.shape)}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.dtype.kind == "f":
        is_bad = ~np.isfinite(array) | (array != np.floor(array))
        if np.any(is_bad):
            raise ValueError(f"{name}: expected whole numbers, got {array[is_bad][0]} at position {np.argmax(is_bad)}")
    return array.astype(np.int64)


def check_ids(name: str, value: Any, num_prompts: int, *, is_distinct: bool = False) -> np.ndarray:
    """Returns prompt ids as int64 [P].

    Raises:
      ValueError: if an id is a text or not in [0, num_prompts), or appears twice although `is_distinct` is set.
    """
    if as_array(name, value).dtype.kind in "US":
        raise ValueError(
            f"{name}: expected integers in [0, {num_prompts}), got texts such as {np.ravel(value)[0]!r}; pass the ids "
            "of prompts, not their names"
        )
    ids = check_integer_array(name, value)
    is_bad = (ids < 0) | (ids >= num_prompts)
    if np.any(is_bad):
        position = int(np.argmax(is_bad))
        raise ValueError(f"{name}: expected ids in [0, {num_prompts}), got {ids[position]} at position {position}")
    if is_distinct:
        unique, counts = np.unique(ids, return_counts=True)
        if unique.size != ids.size:
            raise ValueError(f"{name}: expected distinct ids, got {unique[np.argmax(counts)]} more than once")
    return ids


def check_groups(groups: Any, num_prompts: int) -> np.ndarray:
    """Returns the group id of every prompt, int64 [N].

    Raises:
      ValueError: for a wrong number of ids, or a number that is not whole.
    """
    ids = check_integer_array("groups", groups)
    if ids.size != num_prompts:
        raise ValueError(f"groups: expected {num_prompts} ids, one per prompt, got {ids.size}")
    return ids


def check_features(features: Any, num_prompts: int | None = None) -> np.ndarray:
    """Returns features of every prompt, float64 [N, D].

    Raises:
      ValueError: for a wrong shape, an empty array, or a number that is not finite.
    """
    array = as_numbers("features", features)
    if array.ndim != 2 or array.size == 0 or num_prompts not in (None, array.shape[0]):
        expected = "N" if num_prompts is None else num_prompts
        raise ValueError(f"features: expected finite numbers of shape [{expected}, D], got shape {list(array.shape)}")
    if not np.all(np.isfinite(array)):
        prompt, feature = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"features: expected finite numbers, got {array[prompt, feature]} as feature {feature} of prompt {prompt}"
        )
    return array


# Exclusive upper limit of a sum of counts, which are int32 on the device.
MAX_COUNT = 2**31


def check_outcomes(successes: Any, counts: Any, num_observations: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns successes and counts as int64 [P]; `counts` may be one int.

    Raises:
      ValueError: for a wrong length, a count below 1 or from 2**31 on, or successes outside [0, count].
    """
    successes = check_integer_array("successes", successes)
    counts = check_counts(counts, num_observations)
    _check_size("successes", successes, num_observations)
    is_bad = (successes < 0) | (successes > counts)
    if np.any(is_bad):
        position = int(np.argmax(is_bad))
        raise ValueError(
            f"successes: expected values in [0, count], got {successes[position]} of {counts[position]} "
            f"at position {position}"
        )
    return successes, counts


def check_counts(counts: Any, num_observations: int, *, name: str = "counts") -> np.ndarray:
    """Returns numbers of completions as int64 [P]; one int stands for all.

    Raises:
      ValueError: for a wrong length, or a count below 1 or from 2**31 on.
    """
    counts = as_array(name, counts)
    if counts.ndim == 0:
        counts = np.full(num_observations, counts)
    counts = check_integer_array(name, counts)
    _check_size(name, counts, num_observations)
    is_bad = (counts < 1) | (counts >= MAX_COUNT)
    if np.any(is_bad):
        position = int(np.argmax(is_bad))
        expected = "at least 1" if counts[position] < 1 else f"fewer than 2**31 = {MAX_COUNT}"
        remedy = "; leave out prompts without a completion" if counts[position] < 1 else ""
        raise ValueError(f"{name}: expected {expected}, got {counts[position]} at position {position}{remedy}")
    return counts


def check_rewards(
    rewards: Any, counts: Any, num_observations: int, *, name: str = "rewards"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean rewards as float64 [P] and counts as int64 [P]; `counts` may be one int.

    Raises:
      ValueError: for a wrong length, a count below 1 or from 2**31 on, or a reward that is not in [0, 1].
    """
    array = as_array(name, rewards)
    if array.size == 0:
        array = array.astype(np.float64)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected numbers of one dimension, got {array.dtype} of shape {list(array.shape)}")
    array = array.astype(np.float64)
    counts = check_counts(counts, num_observations, name="counts" if name == "rewards" else name)
    _check_size(name, array, num_observations)
    is_bad = ~((array >= 0) & (array <= 1))
    if np.any(is_bad):
        position = int(np.argmax(is_bad))
        raise ValueError(f"{name}: expected numbers in [0, 1], got {array[position]} at position {position}")
    return array, counts


def _check_size(name: str, array: np.ndarray, num_observations: int) -> None:
    if array.size != num_observations:
        raise ValueError(f"{name}: expected {num_observations} values, one per prompt id, got {array.size}")
