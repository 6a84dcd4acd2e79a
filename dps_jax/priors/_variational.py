"""Approximates a posterior, or finds its mode, by stochastic gradients over minibatches of prompts.

The shared parameters are approximated by a normal distribution over their unconstrained values, or by a point. The
parameters of single prompts or groups, called members, are probability vectors with a Dirichlet prior that depends on
the shared parameters. They are approximated by a Dirichlet distribution with the parameters of the prior plus counts.
With counts of 0 it is the prior itself. A normal approximation would fail for parameters below 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from dps_jax import _exact
from dps_jax.priors._density import Density
from dps_jax.priors._outcomes import Outcomes
from dps_jax.priors._parts import PriorModel, Sites

# Standard deviation of the initial approximation, in unconstrained space.
_FIRST_SCALE = 0.1
# Draws are clipped from below at this value, so that their logarithms are finite in float32.
_SMALLEST_PROB = 1e-30
# Smallest count that the initial approximation adds.
_SMALLEST_COUNT = 0.01


class Approximation(NamedTuple):
    """An approximation to a posterior.

    Attributes:
      mean: mean of the shared parameters, unconstrained, [D].
      factor: Cholesky factor of the covariance of the shared parameters, [D, D]; None if they are a point.
      log_counts: logs of the counts that are added to the Dirichlet parameters of every member (a parameter of one
        prompt or prompt group), {site: array}.
    """

    mean: jax.Array
    factor: jax.Array | None
    log_counts: dict[str, jax.Array]


class Problem(NamedTuple):
    """A model whose posterior is to be approximated.

    Attributes:
      density: density of the model.
      members: see `PriorModel`.
      log_evidence: see `PriorModel`.
      is_of_prompts: whether members belong to prompts and not to groups, so that a minibatch has only some of them.
      is_point: whether the shared parameters are approximated by a point.
      unravel: mean [D] -> unconstrained sites.
      size: number of shared parameters, D.
    """

    density: Density
    members: Mapping[str, Callable[[Sites], jax.Array]]
    log_evidence: Callable[[Sites, Outcomes], jax.Array]
    is_of_prompts: bool
    is_point: bool
    unravel: Callable[[jax.Array], dict[str, jax.Array]]
    size: int


def problem(model: PriorModel, density: Density, *, is_point: bool) -> Problem:
    """Returns a model as a problem for the functions of this file."""
    shared = {name: jnp.zeros(shape) for name, shape in density.shapes.items() if name not in model.members}
    flat, unravel = ravel_pytree(shared)
    is_of_prompts = model.sample_members is not None
    return Problem(density, model.members, model.log_evidence, is_of_prompts, is_point, unravel, flat.shape[0])


def _member_shape(given: Problem, name: str) -> tuple[int, ...]:
    # A vector of K probabilities has K - 1 unconstrained values.
    *lead, last = given.density.shapes[name]
    return (*lead, last + 1)


def init(given: Problem, mean: jax.Array, outcomes: Outcomes) -> Approximation:
    """Returns the first approximation, around the given mean, [D].

    The counts of members are the result of one step of EM: expected counts under the mean of each member's prior.
    """
    sites = _sites_at(given, mean)
    members = {name: sites[name] for name in given.members}
    # The derivative with respect to the log of a probability is its expected count.
    used = jax.grad(lambda members: jnp.sum(given.log_evidence(sites | members, outcomes)))(members)
    return Approximation(
        mean=mean,
        factor=None if given.is_point else _FIRST_SCALE * jnp.eye(given.size),
        log_counts={name: jnp.log(jnp.maximum(used[name] * members[name], _SMALLEST_COUNT)) for name in members},
    )


def _sites_at(given: Problem, values: jax.Array) -> dict[str, jax.Array]:
    """Returns the sites at values of the shared parameters, [D], with members at the mean of their prior."""
    sites = given.density.constrain(given.unravel(values))
    for name, distribution in given.members.items():
        parameters = distribution(sites)
        mean = parameters / parameters.sum(axis=-1, keepdims=True)
        sites |= {name: jnp.broadcast_to(mean, _member_shape(given, name))}
    return sites


def loss_at(given: Problem, values: jax.Array, outcomes: Outcomes, weight: Any = 1.0) -> jax.Array:
    """Returns minus the log density of the shared parameters, nats, with members at the mean of their prior.

    Without members, its minimum is the mode. With members, its minimum is where stochastic gradient steps start.

    Args:
      given: the problem.
      values: values of the shared parameters, unconstrained, [D].
      outcomes: outcomes to fit to.
      weight: weight of every prompt.
    """
    sites = _sites_at(given, values)
    return -given.density.log_prob_of_sites(sites, outcomes, weight, given=given.members)


def draw(given: Problem, found: Approximation, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Returns one draw of every site, and minus the log densities of the shared parameters and of the members, nats.

    The log density of the shared parameters lacks its normalising constant.
    """
    key_shared, key_members = jax.random.split(key)
    values, entropy = found.mean, jnp.zeros(())
    if found.factor is not None:
        values = values + _exact.matmul(jnp.tril(found.factor), jax.random.normal(key_shared, values.shape))
        entropy = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(found.factor))))
    unconstrained = given.unravel(values)
    sites = given.density.constrain(unconstrained)
    if found.factor is not None:
        entropy = entropy + given.density.log_volume(unconstrained)
    parameters = {name: given.members[name](sites) + jnp.exp(found.log_counts[name]) for name in given.members}
    sites |= _draw_dirichlet(parameters, key_members)
    surprise = [-jnp.sum(dist.Dirichlet(parameters[name]).log_prob(sites[name])) for name in parameters]
    surprise = sum(surprise, jnp.zeros(()))
    return sites, entropy, surprise


def _draw_dirichlet(parameters: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Returns a differentiable draw from each Dirichlet distribution.

    All draws are one call, because XLA compiles the derivatives of a gamma draw slowly.
    """
    if not parameters:
        return {}
    flat, unravel = ravel_pytree(parameters)
    logs = unravel(jax.random.loggamma(key, flat))
    return {name: jnp.maximum(jax.nn.softmax(values), _SMALLEST_PROB) for name, values in logs.items()}


def _loss(
    given: Problem, found: Approximation, outcomes: Outcomes, positions: jax.Array | None, key: jax.Array
) -> jax.Array:
    """Returns an estimate of the negative evidence lower bound, up to a constant, nats."""
    weight = 1.0
    if positions is not None:
        weight = outcomes.num_prompts / positions.shape[0]
        outcomes = outcomes.take(positions)
        if given.is_of_prompts:
            found = found._replace(log_counts={name: leaf[positions] for name, leaf in found.log_counts.items()})
    sites, entropy, surprise = draw(given, found, key)
    bound = given.density.log_prob_of_sites(sites, outcomes, weight) + entropy
    return -(bound + (weight if given.is_of_prompts else 1.0) * surprise)


def optimiser(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """Returns Adam with a learning rate that falls to a hundredth in `num_steps` steps."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps, alpha=0.01))


def take_steps(
    given: Problem,
    adam: optax.GradientTransformation,
    found: Approximation,
    opt_state: Any,
    outcomes: Outcomes,
    key: jax.Array,
    *,
    num_steps: int,
    batch_size: int | None = None,
) -> tuple[Approximation, Any, jax.Array]:
    """Returns the approximation and the state of the optimiser some steps later, and the losses, nats, [num_steps].

    A pure function.

    Args:
      given: the problem.
      adam: the optimiser.
      found: the approximation so far.
      opt_state: state of the optimiser.
      outcomes: outcomes to fit to.
      key: random key of minibatches and draws.
      num_steps: number of steps.
      batch_size: number of prompts in a minibatch; None uses all prompts.
    """

    def step(carry: Any, key: jax.Array) -> Any:
        found, opt_state = carry
        key_batch, key_draw = jax.random.split(key)
        positions = None
        if batch_size is not None:
            positions = jax.random.choice(key_batch, outcomes.num_prompts, (batch_size,), replace=False)
        loss, grads = jax.value_and_grad(lambda found: _loss(given, found, outcomes, positions, key_draw))(found)
        updates, opt_state = adam.update(grads, opt_state)
        return (optax.apply_updates(found, updates), opt_state), loss

    (found, opt_state), losses = lax.scan(step, (found, opt_state), jax.random.split(key, num_steps))
    return found, opt_state, losses
