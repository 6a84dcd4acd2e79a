"""Parameters of which only a part is trained: what the learner, a reference policy and checkpoints have of them."""

from __future__ import annotations

from typing import Any, NamedTuple


class PartlyTrained(NamedTuple):
    """Parameters of a policy in two parts.

    The frozen part is an argument of every compiled program, not a constant in it, and nothing differentiates with
    respect to it: it has no gradient and no state of an optimiser, and is in no checkpoint.

    Attributes:
      trained: what the learner changes.
      frozen: what stays as it is.
    """

    trained: Any
    frozen: Any


def trained_part(params: Any) -> Any:
    """Returns what of parameters is trained: all of them, unless they are `PartlyTrained`."""
    return params.trained if isinstance(params, PartlyTrained) else params


def with_trained_part(params: Any, trained: Any) -> Any:
    """Returns parameters whose trained part is another."""
    return params._replace(trained=trained) if isinstance(params, PartlyTrained) else trained
