"""Options of methods as text, and properties that follow from options alone. Nothing in this module runs JAX."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dps_jax.selectors import SELECTORS, option_names
from dps_jax.selectors._acquisition import Acquisition

# Options with one value per prompt, which cannot be given as text.
PER_PROMPT = ("groups", "features", "expected_tokens")


def literal(text: str) -> Any:
    """Returns the value of a text that is a Python or JSON literal, and any other text unchanged."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def parse(words: Sequence[str], field: str = "options") -> dict[str, Any]:
    """Returns the options that a config field gives as words NAME=VALUE; `literal` reads the values.

    Raises:
      ValueError: for a word without a name or without "=", or a name that is given twice.
    """
    options: dict[str, Any] = {}
    if isinstance(words, (str, bytes)) or not isinstance(words, Iterable) or not all(isinstance(w, str) for w in words):
        raise ValueError(f"{field}: expected words NAME=VALUE, got {words!r}")
    for word in words:
        name, is_set, text = word.partition("=")
        name = name.strip()
        if not is_set or not name:
            raise ValueError(f"{field}: expected words NAME=VALUE, got {word!r}")
        if name in options:
            raise ValueError(f"{field}: expected every option once, got {name!r} twice")
        options[name] = literal(text.strip())
    return options


def default(method: str, name: str) -> Any:
    """Returns the default of an option of a method."""
    parameter = inspect.signature(SELECTORS[method]).parameters.get(name)
    return getattr(Acquisition(), name) if parameter is None else parameter.default


def check_types(method: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError if an option whose default is a flag or a number has a value of another type.

    Otherwise, a string such as "no" would count as true, and a string or a list cannot be compared with a number.
    """
    for name, value in options.items():
        usual = default(method, name)
        if isinstance(usual, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected True or False, got {value!r}")
        elif isinstance(usual, (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{name}: expected a number, got {value!r}")


def has_inclusion_probs(method: str, options: Mapping[str, Any]) -> bool:
    """Returns whether a selector reports the inclusion probabilities of its picks.

    Args:
      method: name of the method, a key of `SELECTORS`.
      options: checked options of the method.
    """
    if method == "uniform":
        return options.get("max_wait") is None and options.get("quotas") is None
    return Acquisition(temperature=options.get("temperature", default(method, "temperature"))).is_random


def names_in_text(method: str) -> list[str]:
    """Returns the names of the options of a method that can be given as text."""
    return [name for name in option_names(method) if name not in (*PER_PROMPT, "mesh")]
