"""The density of a model as a function of unconstrained parameters, for samplers and optimisers.

NumPyro's own functions for this purpose (`initialize_model`, the autoguides) run the model many times outside of `jit`.
This takes half a minute even if one evaluation of the likelihood takes a millisecond. Here, one abstract trace finds
the sample sites.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import biject_to
from numpyro.infer.util import log_density

from dps_jax.priors._outcomes import Outcomes
from dps_jax.priors._parts import PriorModel, Sites, numpyro_model

Unconstrained = Mapping[str, jax.Array]


class Density(NamedTuple):
    """The density of a model as a function of unconstrained parameters.

    Sites are the sample sites of the NumPyro model; dictionaries map their names to values.

    Attributes:
      shapes: shape of the unconstrained value of each site, by its name.
      constrain: unconstrained values -> values of the sites.
      unconstrain: values of the sites -> unconstrained values.
      log_prob: (unconstrained values, outcomes) -> log density with respect to the unconstrained values, nats, scalar.
      log_prob_of_sites: (sites, outcomes, weight=1.0, given=()) -> log density with respect to the sites, nats, scalar;
        every prompt counts `weight` times, and sites named in `given` are conditioned on.
      log_volume: unconstrained values of some sites -> log absolute determinant of the Jacobian of `constrain`, nats.
    """

    shapes: dict[str, tuple[int, ...]]
    constrain: Callable[[Unconstrained], dict[str, jax.Array]]
    unconstrain: Callable[[Sites], dict[str, jax.Array]]
    log_prob: Callable[[Unconstrained, Outcomes], jax.Array]
    log_prob_of_sites: Callable[..., jax.Array]
    log_volume: Callable[[Unconstrained], jax.Array]


def density(model: PriorModel, outcomes: Outcomes) -> Density:
    """Returns the density of a model, for outcomes with the shapes of the given ones.

    Raises:
      ValueError: for outcomes without the groups or features that the model needs.
    """
    run = numpyro_model(model)
    transforms: dict[str, Any] = {}
    constrained: dict[str, tuple[int, ...]] = {}

    def find_sites(key: jax.Array, outcomes: Outcomes) -> None:
        trace = numpyro.handlers.trace(numpyro.handlers.seed(run, key)).get_trace(outcomes)
        for name, site in trace.items():
            if site["type"] == "sample" and not site["is_observed"]:
                transforms[name] = biject_to(site["fn"].support)
                constrained[name] = site["value"].shape

    jax.eval_shape(find_sites, jax.random.key(0), outcomes)
    shapes = {name: transform.inverse_shape(constrained[name]) for name, transform in transforms.items()}

    def constrain(values: Unconstrained) -> dict[str, jax.Array]:
        return {name: transforms[name](value) for name, value in values.items()}

    def unconstrain(sites: Sites) -> dict[str, jax.Array]:
        return {name: transforms[name].inv(value) for name, value in sites.items()}

    def log_prob_of_sites(
        sites: Sites, outcomes: Outcomes, weight: Any = 1.0, given: Collection[str] = ()
    ) -> jax.Array:
        known = numpyro.handlers.block(numpyro.handlers.substitute(run, data=dict(sites)), hide=list(given))
        return jnp.asarray(log_density(known, (outcomes, weight), {}, {})[0])

    def log_volume(values: Unconstrained) -> jax.Array:
        volumes = [
            jnp.sum(transforms[name].log_abs_det_jacobian(value, transforms[name](value)))
            for name, value in values.items()
        ]
        return sum(volumes, jnp.zeros(()))

    def log_prob(values: Unconstrained, outcomes: Outcomes) -> jax.Array:
        return log_prob_of_sites(constrain(values), outcomes) + log_volume(values)

    return Density(shapes, constrain, unconstrain, log_prob, log_prob_of_sites, log_volume)
