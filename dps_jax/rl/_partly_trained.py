"""Parameters of which only a part is trained: the learner, a reference policy and checkpoints hold that part only."""

from __future__ import annotations

from typing import Any, NamedTuple

from dps_jax._documented import documented


@documented
class PartlyTrained(NamedTuple):
    """Parameters of a policy, split into a trained part and a frozen one, such as LoRA adapters and base weights.

    The frozen part is an argument of the compiled programs, not a constant in them. It has no gradient and no optimiser
    state, and it is not written to checkpoints.

    Attributes:
      trained: parameters that the learner updates.
      frozen: parameters that stay as they are.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl
      >>> def log_probs_fn(params, prompts, completions):  # a policy that ignores its prompt, with fixed biases
      ...     log_probs = jax.nn.log_softmax(params.trained + params.frozen)[completions]
      ...     return log_probs, jnp.zeros_like(log_probs)
      >>> learner = rl.learner(log_probs_fn, learning_rate=0.1)
      >>> params = rl.PartlyTrained(trained=jnp.zeros(4), frozen=jnp.arange(4.0))
      >>> moments = [leaf for leaf in jax.tree.leaves(learner.init(params)) if leaf.ndim]  # the other leaves are counts
      >>> [leaf.shape for leaf in moments]  # both moments of Adam are of `trained` alone
      [(4,), (4,)]
    """

    trained: Any
    frozen: Any


def trained_part(params: Any) -> Any:
    """Returns the trained part of parameters: all of them, unless they are `PartlyTrained`."""
    return params.trained if isinstance(params, PartlyTrained) else params


def with_trained_part(params: Any, trained: Any) -> Any:
    """Returns parameters with another trained part."""
    return params._replace(trained=trained) if isinstance(params, PartlyTrained) else trained
