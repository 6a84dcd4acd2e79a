"""Command lines whose help texts are the docstrings of config fields, as paragraphs.

tyro keeps the line breaks of a field's docstring where lines are indented, which leaves ragged paragraphs.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import os
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

_Config = TypeVar("_Config")

_IMPORT_HELP = (
    "With --import MODULE, a module of yours is imported first, which may register methods, predictors and tasks; the "
    "option can be repeated."
)


def cli(
    config_type: type[_Config],
    description: str | None = None,
    *,
    prog: str | None = None,
    config: Sequence[Any] = (),
    may_import: bool = False,
) -> _Config:
    """Returns the config that the arguments of the command line describe.

    Args:
      config_type: dataclass of the options.
      description: text above the options in the output of `--help`.
      prog: command in the output of `--help`; by default the path of the script.
      config: settings of the parser, from `tyro.conf`.
      may_import: whether the command has the option `--import MODULE`, which imports a module first, from the current
        folder or as any other module. The process exits with a message if the module cannot be imported.
    """
    import tyro

    arguments = sys.argv[1:]
    if may_import:
        modules, arguments = _split_imports(arguments)
        for module in modules:
            _import(module)
        description = f"{description or ''}\n\n{_IMPORT_HELP}".strip()
    _add_help(config_type)
    try:
        return tyro.cli(config_type, args=arguments, description=description, prog=prog, config=tuple(config))
    except BrokenPipeError:  # as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        sys.exit(1)


def _split_imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the modules to import and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    found, others = parser.parse_known_args(arguments)
    return found.modules, others


def _import(module: str) -> None:
    """Imports a module, from the current folder if it is there; exits with a message if it cannot be imported."""
    sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except ImportError as error:
        sys.exit(
            f"error: import: expected a module in {os.getcwd()} or in the environment, got {module!r} ({error}); run "
            f"the command in the folder of {module.partition('.')[0]}.py, or set PYTHONPATH"
        )
    finally:
        sys.path.remove(os.getcwd())


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
