"""The built-in graders by name, and the function that makes a grader from its name and options.

Worker processes load this folder by its path, as a package of its own, because importing `dps_jax` imports JAX.
Therefore the modules of this folder import only the standard library and each other at module level.
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
    "make",
]

Grader = Callable[[str, Any, Mapping[str, Any]], Any]
"""A grader: (completion, answer, info) -> a bool, a number, or both; see docs/grading.md."""


class BuiltIn(NamedTuple):
    """A built-in grader. Its module has `make(**options) -> Grader` and `rules(**options) -> str`.

    Attributes:
      file: name of the module of the grader in `dps_jax.grading.graders`.
      extra: name of the optional extra of this project that the grader needs; None if the grader needs only the
        standard library.
      library: name of the library that the extra installs and the grader imports; None without an extra.

    Example:
      >>> from dps_jax.grading.graders import BUILT_IN
      >>> BUILT_IN["math-verify"].extra, BUILT_IN["numeric"].extra
      ('math', None)
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


def _module_of(name: str) -> ModuleType:
    """Returns the module of a built-in grader; this imports only the standard library."""
    return importlib.import_module(f"{__name__}.{BUILT_IN[name].file}")


def make(name: str, options: Mapping[str, Any]) -> Grader:
    """Returns a built-in grader as a function that runs in the current process.

    The library that the grader needs is imported at once. A `grading.GraderPool` runs graders in processes of their
    own, with time limits.

    Args:
      name: name of a grader in `BUILT_IN`.
      options: keyword options of the grader, such as `ignore_case` of "exact".

    Raises:
      ValueError: for a bad value of an option, or if the optional extra that the grader needs is not installed.

    Example:
      >>> from dps_jax.grading.graders import make
      >>> grade = make("exact", {"ignore_case": True})
      >>> grade("Paris", answer="paris", info={})
      Grade(is_correct=True, reward=1.0)
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
    return _module_of(name).make(**options)


def _load(import_path: str, options: Mapping[str, Any]) -> tuple[Grader, str]:
    """Returns a user's grader and its rules, which are its attribute `rules`, or "" without one.

    Args:
      import_path: "module:function"; the function may be an attribute of a class: "module:Class.function".
      options: keyword arguments for every call.

    Raises:
      ValueError: if the module has no such function.
      Exception: any exception that importing the module raises.
    """
    module, _, attribute = import_path.partition(":")
    try:
        grade = operator.attrgetter(attribute)(importlib.import_module(module))
    except AttributeError as error:
        # An AttributeError that the module itself raises while it is imported is passed on unchanged.
        if isinstance(getattr(error, "obj", None), (ModuleType, type)) and error.name in attribute.split("."):
            raise ValueError(f"no function {attribute!r} in module {module!r}") from error
        raise
    if not callable(grade):
        raise ValueError(f"{attribute!r} in module {module!r} is not a function but {type(grade).__name__}")
    rules = getattr(grade, "rules", "")
    if not isinstance(rules, str):
        raise ValueError(f"{import_path}.rules: expected a text, got {rules!r}")
    return functools.partial(grade, **options) if options else grade, rules
