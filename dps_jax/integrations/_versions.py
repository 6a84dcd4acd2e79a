"""Checks that a supported release of a framework is installed."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from typing import Any


def require(name: str, at_least: str, below: str, *, package: str | None = None, install: str | None = None) -> Any:
    """Imports a framework and returns it.

    Args:
      name: name of the distribution on PyPI.
      at_least: the first supported release, such as "1.16".
      below: the first later release that is not supported.
      package: name of the package to import, if it differs.
      install: instructions for installing it; None stands for pip install from PyPI.

    Raises:
      ImportError: if the framework is not installed; the message names the command that installs it.
      ValueError: for an unsupported release; the message names it and the supported ones.
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
    """Returns the leading numbers of a version; a release candidate counts as the release."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = () if release is None else tuple(int(part) for part in release.group().split("."))
    return (*numbers, *(0,) * (4 - len(numbers)))
