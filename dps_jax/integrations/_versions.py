"""Which releases of a framework a module was written for."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from typing import Any


def require(name: str, at_least: str, below: str, *, package: str | None = None, install: str | None = None) -> Any:
    """Returns a framework, imported.

    Args:
      name: of the distribution, as on PyPI.
      at_least: the first release that is supported, such as "1.16".
      below: the first that is not.
      package: what is imported, if it has another name.
      install: how it is installed; None is by pip, from PyPI.

    Raises:
      ImportError: if it is not installed, naming what to install.
      ValueError: for a release that is not supported, naming it and those that are.
    """
    remedy = install or f"run pip install '{name}>={at_least},<{below}'"
    try:
        found = metadata.version(name)
        module = importlib.import_module(package or name)
    except (ImportError, metadata.PackageNotFoundError) as error:
        raise ImportError(f"{name}: expected it to be installed ({error}); {remedy}") from error
    if not _numbers(at_least) <= _numbers(found) < _numbers(below):
        raise ValueError(f"{name}: expected a release from {at_least} on and before {below}, got {found}; {remedy}")
    return module


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers that a version begins with; a release candidate counts as the release."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = () if release is None else tuple(int(part) for part in release.group().split("."))
    return (*numbers, *(0,) * (4 - len(numbers)))
