"""The methods by name: each method is one file with one factory, which has the decorator `register`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from dps_jax import _checks
from dps_jax.selectors._options import checks_options, options_of
from dps_jax.types import Selector

_Params = ParamSpec("_Params")

SELECTORS: dict[str, Callable[..., Selector]] = {}


def register(factory: Callable[_Params, Selector]) -> Callable[_Params, Selector]:
    """Registers a method under the name of its factory; for use as a decorator.

    `build` and `PromptSelector(method=...)` then accept this name.

    Args:
      factory: function (num_prompts, *, ...) -> Selector, whose options are keyword-only. A factory with
        `**acquisition` also accepts the options that `AcquisitionOptions` describes.

    Returns:
      The factory, wrapped such that an unknown option raises a ValueError that lists the known options.

    Raises:
      ValueError: if another method has the same name.

    Example:
      >>> from dps_jax import predictors, selectors
      >>> @selectors.register
      ... def easiest(num_prompts, *, mesh=None, **acquisition):
      ...     predictor = predictors.mopps()
      ...     rate = lambda state: predictor.predict(state).success_rate
      ...     return selectors.from_predictor(num_prompts, predictor, rate, mesh=mesh, **acquisition)
      >>> del selectors.SELECTORS["easiest"]  # only needed here, to undo the example
    """
    name = factory.__name__
    previous = SELECTORS.get(name)
    # The same factory is registered again when a module or a notebook cell runs twice.
    if previous is not None and _origin(previous) != _origin(factory):
        raise ValueError(f"factory: expected a name that no other method has, got {name!r}")
    SELECTORS[name] = checks_options(factory)
    return SELECTORS[name]


def _origin(factory: Callable[..., Any]) -> tuple[str, str]:
    return factory.__module__, factory.__qualname__


def option_names(method: str) -> list[str]:
    """Returns the names of the options of a method.

    Args:
      method: name of the method, a key of `SELECTORS`.

    Raises:
      ValueError: for an unknown method; the message lists the known methods.

    Example:
      >>> from dps_jax import selectors
      >>> selectors.option_names("uniform")
      ['group_size', 'max_wait', 'quotas', 'groups', 'mesh']
    """
    _checks.check_choice("method", method, SELECTORS)
    return options_of(SELECTORS[method])


def build(method: str, num_prompts: int, **options: Any) -> Selector:
    """Returns the selector of the method with the given name.

    Args:
      method: name of the method, a key of `SELECTORS`.
      num_prompts: number of prompts, N.
      **options: options of the method; see the factory of the same name in `dps_jax.selectors`.

    Raises:
      ValueError: for an unknown method or option, with a list of the known ones, or if an option is out of range.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.build("mopps", 100, decay=0.7, max_wait=20)
      >>> selector.predict(selector.init(jax.random.key(0))).p_informative.shape
      (100,)
    """
    _checks.check_options(f"options of method {method!r}", options, option_names(method))
    return SELECTORS[method](num_prompts, **options)
