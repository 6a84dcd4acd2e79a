"""The built-in graders, by name, and how a grader is made from its name and options.

Worker processes load this folder by its path, as a package of its own, because importing `dps_jax` imports JAX. What is
imported at the top of these files is therefore of the standard library or relative.
"""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

__all__ = [
    "BUILT_IN",
    "BuiltIn",
    "Grader",
    "load",
    "make",
    "module_of",
]

Grader = Callable[[str, Any, Mapping[str, Any]], Any]


class BuiltIn(NamedTuple):
    """A grader of this folder. Its file has `make(**options) -> Grader` and `rules(**options) -> str`.

    Attributes:
      file: name of the file in this folder, without suffix.
      extra: of this project, which the grader needs; None where the standard library is enough.
      library: what the extra is imported for.
    """

    file: str
    extra: str | None = None
    library: str | None = None


BUILT_IN = {
    "exact": BuiltIn("exact"),
    "numeric": BuiltIn("numeric"),
    "math-verify": BuiltIn("math_verify", "math", "math_verify"),
    "countdown": BuiltIn("countdown"),
    "reasoning-gym": BuiltIn("reasoning_gym", "reasoning-gym", "reasoning_gym"),
}


def module_of(name: str) -> ModuleType:
    """Returns the module of a built-in grader; nothing but the standard library is imported."""
    return importlib.import_module(f"{__name__}.{BUILT_IN[name].file}")


def make(name: str, options: Mapping[str, Any]) -> Grader:
    """Returns a built-in grader; what its extra brings is imported.

    Raises:
      ValueError: for a bad option, or if the extra is not installed.
    """
    built_in = BUILT_IN[name]
    if built_in.library is not None:
        try:
            importlib.import_module(built_in.library)
        except ImportError as error:
            raise ValueError(
                f"grader {name!r}: expected {built_in.library} to be installed, got {error}; install the extra "
                f"`{built_in.extra}`: pip install -e '.[{built_in.extra}]'"
            ) from error
    return module_of(name).make(**options)


def load(import_path: str, options: Mapping[str, Any]) -> tuple[Grader, str]:
    """Returns a user's grader and its rules, from its attribute `rules`; "" without one.

    Args:
      import_path: "module:function"; the function may be an attribute of a class: "module:Class.function".
      options: keyword arguments of every call.

    Raises:
      ValueError: if the module has no such function.
      Exception: what importing the module raises.
    """
    module, _, attribute = import_path.partition(":")
    try:
        grade = operator.attrgetter(attribute)(importlib.import_module(module))
    except AttributeError as error:
        # One that the module itself raises while it is imported has another cause, and is not for us to explain.
        if isinstance(getattr(error, "obj", None), (ModuleType, type)) and error.name in attribute.split("."):
            raise ValueError(f"no function {attribute!r} in module {module!r}") from error
        raise
    if not callable(grade):
        raise ValueError(f"{attribute!r} in module {module!r} is no function but {type(grade).__name__}")
    rules = getattr(grade, "rules", "")
    if not isinstance(rules, str):
        raise ValueError(f"{import_path}.rules: expected a text, got {rules!r}")
    return functools.partial(grade, **options) if options else grade, rules
