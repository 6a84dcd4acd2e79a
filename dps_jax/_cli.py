"""Command lines whose help texts are the docstrings of config fields, as paragraphs.

tyro keeps the line breaks of a field's docstring where lines are indented, which leaves ragged paragraphs.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

_Config = TypeVar("_Config")


def cli(
    config_type: type[_Config],
    description: str | None = None,
    *,
    prog: str | None = None,
    config: Sequence[Any] = (),
) -> _Config:
    """Returns the config that the arguments of the command line describe.

    Args:
      config_type: dataclass of the options.
      description: text above the options in the output of `--help`.
      prog: command in the output of `--help`; by default the path of the script.
      config: settings of the parser, from `tyro.conf`.
    """
    import tyro

    _add_help(config_type)
    return tyro.cli(config_type, description=description, prog=prog, config=tuple(config))


def _add_help(kind: Any) -> None:
    """Puts the docstrings of all fields into their metadata, where tyro looks for help texts first."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if "__dataclass_fields__" in vars(base):
            texts |= _docstrings(base)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in texts:
            field.metadata = types.MappingProxyType({**field.metadata, "help": texts[field.name]})
        if dataclasses.is_dataclass(hints[field.name]):
            _add_help(hints[field.name])


def _docstrings(kind: type) -> dict[str, str]:
    """Returns the docstring below each field of a dataclass, as one paragraph."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[field.target.id] = " ".join(text.split())
    return found
