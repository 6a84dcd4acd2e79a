"""Resolves the name of a grader to a specification that worker processes can load."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from dps_jax import _checks
from dps_jax.grading import _process, graders

_REASONING_GYM = "reasoning-gym:"


@dataclasses.dataclass(frozen=True)
class GraderSpec:
    """The specification of a grader, as returned by `resolve`; specifications can be pickled.

    Attributes:
      name: name of a built-in grader, or an import path.
      import_path: import path "module:function" of the grader, or of the function that makes a built-in one.
      options: keyword options of the grader, such as `ignore_case` of "exact".
      rules: grading rules in one or two sentences, for a prompt template; "" if unknown.

    Example:
      >>> from dps_jax import grading
      >>> spec = grading.resolve("exact", ignore_case=True)
      >>> spec.name, spec.options
      ('exact', {'ignore_case': True})
      >>> print(spec.rules)
      Your whole reply has to be the expected answer and nothing else, in capital or small letters.
    """

    name: str
    import_path: str
    options: Mapping[str, Any]
    rules: str


def resolve(name: str, **options: Any) -> GraderSpec:
    r"""Returns the specification of a grader by its name.

    A grader with an optional extra, and a function of your own, are checked by loading them in a separate process, so
    that the trainer never imports them.

    Args:
      name: "exact", "numeric", "math-verify", "countdown", "reasoning-gym", "reasoning-gym:TASK", or the import path
        "module:function" of a function; its module is searched for in the current folder, PYTHONPATH and `sys.path`.
      **options: options of a built-in grader, or keyword arguments for every call of the function.

    Raises:
      ValueError: for an unknown name or task, an unknown or bad option of a built-in grader, a function that cannot be
        imported (the message has the cause), or if the optional extra that the grader needs is not installed.

    Example:
      >>> from pathlib import Path
      >>> from dps_jax import grading
      >>> _ = Path("letters.py").write_text("def grade(completion, answer, info):\n    return answer in completion\n")
      >>> with grading.GraderPool(grading.resolve("letters:grade"), num_processes=1) as pool:
      ...     grades = pool.submit(["(A) or (B)", "(C)"], answers=["B", "A"]).result()
      >>> grades.is_correct.tolist()
      [True, False]
    """
    if not isinstance(name, str):
        raise ValueError(f"grader: expected a name, got {name!r}")
    if name in graders.BUILT_IN or name.startswith(_REASONING_GYM):
        return _resolve_built_in(name, options)
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        known = ", ".join(repr(known_name) for known_name in graders.BUILT_IN)
        raise ValueError(
            f"grader: expected one of {known}, 'reasoning-gym:TASK' or an import path 'module:function', got {name!r}"
        )
    if module == "__main__":
        raise ValueError(
            f"grader: expected a function of a module that other processes can import, got {name!r}; put it into a "
            "file of its own"
        )
    return GraderSpec(name, name, options, _checked_in_worker(name, name, options))


def _resolve_built_in(name: str, options: dict[str, Any]) -> GraderSpec:
    base, _, task = name.partition(":")
    module = graders._module_of(base)
    known = list(inspect.signature(module.make).parameters)
    if task:
        options = {**options, "task": task}
    elif name != base:
        raise ValueError(f"grader: expected 'reasoning-gym:TASK', got {name!r}; name a task")
    _checks.check_options(f"grader {base!r}", options, known)
    import_path = f"dps_jax.grading.graders.{graders.BUILT_IN[base].file}:make"
    if graders.BUILT_IN[base].library is None:
        module.make(**options)
    else:
        _checked_in_worker(name, import_path, options)
    return GraderSpec(name, import_path, options, module.rules(**options))


def _checked_in_worker(name: str, import_path: str, options: dict[str, Any]) -> str:
    """Returns the rules of a grader, after a process has loaded it."""
    config = _process.make_config(name, import_path, options, threshold=1.0, time_limit_s=1.0, memory_limit_gib=None)
    try:
        return _process.check_in_worker(config)
    except ValueError as error:
        raise ValueError(f"grader: expected {name!r} to be importable, got {error}") from error
