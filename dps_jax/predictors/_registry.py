"""The predictors by name, for replays of traces."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from dps_jax import _checks
from dps_jax.predictors._arcsine import arcsine
from dps_jax.predictors._binomial_hmm import binomial_hmm
from dps_jax.predictors._constant import constant
from dps_jax.predictors._ema_variance import ema_variance
from dps_jax.predictors._hmm import hmm
from dps_jax.predictors._last_state import last_state
from dps_jax.predictors._logit_kalman import logit_kalman
from dps_jax.predictors._mopps import mopps
from dps_jax.predictors._queue import queue
from dps_jax.predictors._shared_net import shared_net
from dps_jax.types import Predictor

# By the name of the selection method, if there is one. `history` is absent, since it has one prediction for all prompts
# that are not solved, like `constant`.
PREDICTORS: dict[str, Callable[..., Predictor]] = {
    "binomial_hmm": binomial_hmm,
    "shared_net": shared_net,
    "arcsine": arcsine,
    "logit_kalman": logit_kalman,
    "mopps": mopps,
    "ema_variance": ema_variance,
    "last_state": last_state,
    "queue": queue,
    "dps": hmm,
    "constant": constant,
}


def build(name: str, *, group_size: int = 8, group_ids: Any = None, features: Any = None, **options: Any) -> Predictor:
    """Returns the predictor with the given name.

    Args:
      name: key of `PREDICTORS`. The predictor "dps" is `hmm`.
      group_size: number of completions of a predicted completion group, G.
      group_ids: prompt group of each prompt, int [N]; not used by predictors without this option.
      features: features of the prompts, [N, D]; not used by predictors without this option.
      **options: further options of the factory of the predictor.

    Raises:
      ValueError: for an unknown name or option; the message lists the known ones.

    Example:
      >>> from dps_jax import predictors
      >>> predictor = predictors.build("mopps", group_size=4, decay=0.7)
      >>> predictor.predict(predictor.init(3)).success_rate.tolist()
      [0.5, 0.5, 0.5]
    """
    _checks.check_choice("name", name, PREDICTORS)
    known = inspect.signature(PREDICTORS[name]).parameters
    _checks.check_options(f"options of {name}", options, list(known))
    inputs = {"group_ids": group_ids, "features": features}
    return PREDICTORS[name](
        group_size=group_size, **{key: value for key, value in inputs.items() if key in known}, **options
    )


def register(factory: Callable[..., Predictor]) -> Callable[..., Predictor]:
    """Registers a predictor under the name of its factory, for `build`, replays of traces and `dps_jax.viz`.

    `selectors.register_predictor` registers the predictor as a selection method too.

    Args:
      factory: function of keyword arguments that returns a predictor. It must have an argument `group_size`;
        `group_ids` and `features` are passed to factories that have these arguments.

    Returns:
      The factory.

    Raises:
      ValueError: if the factory has no argument `group_size`, or if another predictor has the same name.

    Example:
      >>> from dps_jax import predictors
      >>> @predictors.register
      ... def forgetful(*, group_size=8):
      ...     return predictors.mopps(decay=0.1, group_size=group_size)
      >>> predictors.build("forgetful", group_size=4).init(3).successes.tolist()  # Beta(1, 1) for each of 3 prompts
      [1.0, 1.0, 1.0]
      >>> del predictors.PREDICTORS["forgetful"]  # only needed here, to undo the example
    """
    name = _checks.check_factory(factory, PREDICTORS, "predictor")
    if "group_size" not in inspect.signature(factory).parameters:
        raise ValueError(
            f"factory: expected a function with the keyword argument group_size, got {name} without it; "
            "add the number of completions for which it predicts"
        )
    PREDICTORS[name] = factory
    return factory
