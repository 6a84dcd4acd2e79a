"""The methods by name: a method is one file with one factory, and `register` above it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from dps_jax import _checks
from dps_jax.selectors._options import checks_options, options_of
from dps_jax.types import Selector

_Params = ParamSpec("_Params")

SELECTORS: dict[str, Callable[..., Selector]] = {}


def register(factory: Callable[_Params, Selector]) -> Callable[_Params, Selector]:
    """Registers a method under the name of its factory, for `build` and `PromptSelector(method=...)`; a decorator.

    Args:
      factory: (num_prompts, *, ...) -> Selector, whose options are keyword-only. With `**acquisition`, it takes the
        options of the acquisition too, see `AcquisitionOptions`.

    Returns:
      The factory, which now refuses unknown options with a ValueError that lists the known ones.

    Raises:
      ValueError: for a name that another factory has.
    """
    name = factory.__name__
    previous = SELECTORS.get(name)
    # The same one again is a module or a cell of a notebook that runs twice.
    if previous is not None and _origin(previous) != _origin(factory):
        raise ValueError(f"factory: expected a name that no other method has, got {name!r}")
    SELECTORS[name] = checks_options(factory)
    return SELECTORS[name]


def _origin(factory: Callable[..., Any]) -> tuple[str, str]:
    return factory.__module__, factory.__qualname__


def option_names(method: str) -> list[str]:
    """Returns the names of a method's options.

    Raises:
      ValueError: for an unknown method, with the known ones.
    """
    _checks.check_choice("method", method, SELECTORS)
    return options_of(SELECTORS[method])


def build(method: str, num_prompts: int, **options: Any) -> Selector:
    """Returns the selector of a method by its name.

    Raises:
      ValueError: for an unknown method or option, with the known ones, or an option out of range.
    """
    _checks.check_options(f"options of method {method!r}", options, option_names(method))
    return SELECTORS[method](num_prompts, **options)
