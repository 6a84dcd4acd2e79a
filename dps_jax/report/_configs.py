"""Configs of runs: rebuilds them from their JSON values, and finds the options that differ between runs."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

_Config = TypeVar("_Config")
# The name and place of a run, and records that are not options.
_NO_OPTIONS = ("name", "out_dir", "resume", "weights_checksum", "changes")


def rebuilt(config_type: type[_Config], values: Mapping[str, Any]) -> _Config:
    """Returns a config from the JSON values of its fields; missing fields have their defaults.

    Raises:
      ValueError: for values that the config rejects.
    """
    hints = typing.get_type_hints(config_type)
    fields = {
        field.name: _value(hints[field.name], values[field.name])
        for field in dataclasses.fields(typing.cast(Any, config_type))
        if field.name in values
    }
    try:
        return config_type(**fields)
    except TypeError as error:
        raise ValueError(f"config.json: expected the options of {config_type.__name__}, got others ({error})") from None


def _value(hint: Any, value: Any) -> Any:
    """Returns the value of a field from its JSON value."""
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return rebuilt(typing.cast(Any, hint), value)
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the options of a config by dotted names, without the name and place of the run."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if not prefix and name in _NO_OPTIONS:
            continue
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def differences(configs: Sequence[Mapping[str, Any] | None]) -> dict[str, list[Any]]:
    """Returns the options that differ between runs: name -> value in each run, or None if it has no such option."""
    options = [flat(config) for config in configs if config is not None]
    names = sorted({name for values in options for name in values})
    different = [name for name in names if any(values.get(name) != options[0].get(name) for values in options)]
    return {name: [None if config is None else flat(config).get(name) for config in configs] for name in different}
