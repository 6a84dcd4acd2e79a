"""The file of a `PromptSelector`: one .npz without pickled objects."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dps_jax import _files, _npz
from dps_jax.hmm._transitions import TransitionPrior

_FORMAT = "dps_jax.PromptSelector"
_ARRAYS = ("key", "pending", "in_flight", "groups", "features")


def write(path: os.PathLike[str] | str, state: Mapping[str, Any], built_with: Mapping[str, Any]) -> None:
    """Writes the result of `PromptSelector.state_dict` and the arguments of the constructor to a file, atomically.

    Raises:
      ValueError: for a key or an option that cannot be written.
      OSError: if the file cannot be written; an existing file is not changed.
    """
    arrays = {name: state[name] for name in _ARRAYS if state[name] is not None}
    arrays |= {f"leaf_{number}": leaf for number, leaf in enumerate(state["leaves"])}
    arrays |= {f"given_{name}": value for name, value in built_with.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in state.items() if name not in (*_ARRAYS, "leaves", "keys")}
    header = {
        "format": _FORMAT,
        "state": plain,
        "num_leaves": len(state["leaves"]),
        "keys": None if state["keys"] is None else [_key_to_json(key) for key in state["keys"]],
        "built_with": {
            name: _to_json(name, value) for name, value in built_with.items() if f"given_{name}" not in arrays
        },
    }
    text = np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8)
    with _files.atomic(path) as file:
        np.savez(file, header=text, **arrays)  # pyright: ignore[reportArgumentType]


def read(path: os.PathLike[str] | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the state and the arguments of the constructor from a file.

    Raises:
      ValueError: if the file is damaged or was not written by `write`; the message names the file.
      OSError: if the file cannot be read.
    """
    path = Path(path)
    expected, remedy = "a file that PromptSelector.save wrote", "save it again or restore it"
    with open(path, "rb") as file:
        named = _npz.read(path, file, expected, remedy=remedy)
    try:
        header = json.loads(bytes(named.pop("header")))
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']!r}")
        state = dict(header["state"]) | {name: named.get(name) for name in _ARRAYS}
        state["leaves"] = [named[f"leaf_{number}"] for number in range(header["num_leaves"])]
        state["keys"] = None if header["keys"] is None else [_key_from_json(key) for key in header["keys"]]
        built_with = {name: _from_json(value) for name, value in header["built_with"].items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected {expected}, got a different or damaged file ({error}); {remedy}") from error
    prefix = "given_"
    built_with |= {name[len(prefix) :]: value for name, value in named.items() if name.startswith(prefix)}
    return state, built_with


_KEYS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Hashable]]] = {
    "s": (str, str, str),
    "b": (bool, bool, bool),
    "i": (int, int, int),
    "f": (float, float, float),
    "u": (uuid.UUID, str, uuid.UUID),
    "x": (bytes, bytes.hex, bytes.fromhex),
}


def _key_to_json(key: Hashable) -> Any:
    """Returns a pair: a letter for the type of a key, and the key."""
    if isinstance(key, tuple):
        return ["t", [_key_to_json(part) for part in key]]
    if isinstance(key, np.generic):
        key = key.item()
    for letter, (kind, write_key, _) in _KEYS.items():
        if type(key) is kind:
            return [letter, write_key(key)]
    raise ValueError(
        f"keys: expected strings, numbers, bytes, UUIDs or tuples of these in a file, got {key!r} of type "
        f"{type(key).__name__}; use state_dict(), which accepts any keys"
    )


def _key_from_json(pair: Any) -> Hashable:
    letter, value = pair
    return tuple(_key_from_json(part) for part in value) if letter == "t" else _KEYS[letter][2](value)


def _to_json(name: str, value: Any) -> Any:
    """Returns an option as a JSON value: {"prior": fields} for a prior, and other options unchanged."""
    if isinstance(value, TransitionPrior):
        return {"prior": value.to_dict()}
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, np.generic):
        value = value.item()
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected an option that can be stored in a file, got {value!r} of type {type(value).__name__}; "
            "use state_dict() instead"
        ) from error
    return value


def _from_json(value: Any) -> Any:
    return TransitionPrior.from_dict(value["prior"], "prior") if isinstance(value, dict) else value
