"""The methods by name: each method is one file with one factory, which has the decorator `register`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from jax.sharding import Mesh

from dps_jax import _checks, predictors
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import checks_options, options_of
from dps_jax.types import Predictor, Selector

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
      ValueError: if another method has the same name, or if the first argument of the factory is not `num_prompts`.

    Example:
      >>> from dps_jax import predictors, selectors
      >>> @selectors.register
      ... def easiest(num_prompts, *, mesh=None, **acquisition):
      ...     predictor = predictors.mopps()
      ...     rate = lambda state: predictor.predict(state).success_rate
      ...     return selectors.from_predictor(num_prompts, predictor, rate, mesh=mesh, **acquisition)
      >>> del selectors.SELECTORS["easiest"]  # only needed here, to undo the example
    """
    name = _checks.check_factory(factory, SELECTORS, "method")
    if next(iter(inspect.signature(factory).parameters), None) != "num_prompts":
        raise ValueError(
            f"factory: expected a function (num_prompts, *, ...) -> Selector, got {name}{inspect.signature(factory)}; "
            "name its first argument num_prompts"
        )
    SELECTORS[name] = checks_options(factory)
    return SELECTORS[name]


def register_predictor(factory: Callable[..., Predictor]) -> Callable[..., Predictor]:
    """Registers a predictor of your own, and the method that ranks prompts by its predictions; for use as a decorator.

    Both have the name of the factory. `build` and `PromptSelector(method=...)` accept this name with the options of
    the predictor and those of `AcquisitionOptions`; `predictors.build`, `dps_jax.viz` and reports accept it too.

    Args:
      factory: function of keyword arguments that returns a predictor. It must have an argument `group_size`; its
        arguments `group_ids` and `features`, if any, receive the options `groups` and `features` of the method.

    Returns:
      The factory.

    Raises:
      ValueError: if the factory has no argument `group_size`, or if another method or predictor has the same name.

    Example:
      >>> from dps_jax import PromptSelector, predictors, selectors
      >>> @selectors.register_predictor
      ... def forgetful(*, decay=0.1, group_size=8):
      ...     return predictors.mopps(decay=decay, group_size=group_size)
      >>> PromptSelector(100, method="forgetful", decay=0.2, temperature=0.5, group_size=4, seed=0).select(3).shape
      (3,)
      >>> del selectors.SELECTORS["forgetful"], predictors.PREDICTORS["forgetful"]  # only needed here
    """
    name = _checks.check_factory(factory, SELECTORS, "method")
    known = inspect.signature(factory).parameters
    own = {"groups" if option == "group_ids" else option: parameter for option, parameter in known.items()}
    method = functools.partial(_select_by, factory, frozenset(own))
    # What `options_of` reads: the options of the predictor, and any option of the acquisition.
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("num_prompts", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(parameter.replace(name=option, kind=keyword) for option, parameter in own.items()),
        inspect.Parameter("mesh", keyword, default=None),
        inspect.Parameter("acquisition", inspect.Parameter.VAR_KEYWORD),
    ]
    copied = {
        attribute: getattr(factory, attribute) for attribute in ("__module__", "__name__", "__qualname__", "__doc__")
    }
    vars(method).update(copied, __signature__=inspect.Signature(parameters))
    predictors.register(factory)
    SELECTORS[name] = checks_options(method)
    return factory


def _select_by(
    factory: Callable[..., Predictor],
    own: frozenset[str],
    num_prompts: int,
    *,
    mesh: Mesh | None = None,
    **options: Any,
) -> Selector:
    """Returns the selector that ranks prompts by the predictor of a factory, whose options are `own`."""
    of_predictor = {"group_ids" if name == "groups" else name: value for name, value in options.items() if name in own}
    acquisition = {name: value for name, value in options.items() if name == "groups" or name not in own}
    return from_predictor(num_prompts, factory(**of_predictor), mesh=mesh, **acquisition)


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
