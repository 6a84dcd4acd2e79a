"""Docstrings for the fields of a NamedTuple, and a short form of one whose fields are functions."""

from __future__ import annotations

import inspect
import re
from typing import Any, TypeVar, cast

_Class = TypeVar("_Class", bound=type)

_ENTRY = re.compile(r"  (\w+): (.*)")


def documented(cls: _Class) -> _Class:
    """Returns the NamedTuple class, whose fields have the text of its `Attributes:` section as their docstrings.

    Python itself gives the fields of a NamedTuple the docstring "Alias for field number 0", which `help` and
    documentation tools show.

    Args:
      cls: NamedTuple class whose docstring has an entry `name: text` for each field in its `Attributes:` section. A
        field without an entry keeps its docstring.
    """
    for name, text in _attributes(inspect.getdoc(cls) or "").items():
        if name in getattr(cls, "_fields", ()):
            cast(Any, cls.__dict__[name]).__doc__ = text
    return cls


def short_repr(self: Any) -> str:
    """Returns the class of a NamedTuple of functions, and the names of those that it has, for its `__repr__`.

    The full form would list everything that the functions are bound to, which may be thousands of lines.
    """
    names = [name for name, function in zip(self._fields, self, strict=True) if function is not None]
    return f"{type(self).__name__}({', '.join(names)})"


def _attributes(docstring: str) -> dict[str, str]:
    """Returns the entries of the `Attributes:` section of a docstring without indentation, each as one paragraph."""
    _, _, section = docstring.partition("\nAttributes:\n")
    entries: dict[str, str] = {}
    name = None
    for line in section.splitlines():
        if line.strip() and not line.startswith("  "):
            break
        if found := _ENTRY.fullmatch(line):
            name = found[1]
            entries[name] = found[2]
        elif name is not None and line.strip():
            entries[name] += f" {line.strip()}"
    return entries
