"""Common parts of the models: state spaces and emissions, the type of a model, and the likelihood."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.hmm import emissions, smoothing
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.priors._outcomes import Outcomes

EMISSIONS = ("exact", "binomial", "beta-binomial")
# Median of the prior on the precision a + b of the beta-binomial distribution.
_PRECISION = 20.0
# Values of sample sites of a NumPyro model by their names, or parameters computed from these.
Sites = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StateSpace:
    """The hidden states of a model, their emission, and the kinds of transition.

    Attributes:
      num_states: number of states, K.
      emission: "exact", or "binomial" or "beta-binomial" with learned success rates, or a known `hmm.Emission`.
      is_split: whether transitions out of rounds in which the prompt was rolled out have a matrix of their own.

    Raises:
      ValueError: for an unknown emission, or a number of states that is not possible with it.
    """

    num_states: int = 3
    emission: str | emissions.Emission = "exact"
    is_split: bool = False

    def __post_init__(self):
        if isinstance(self.emission, emissions.Emission):
            _checks.check_choice("num_states", self.num_states, (self.emission.num_states,))
            return
        _checks.check_choice("emission", self.emission, EMISSIONS)
        if self.emission == "exact":
            _checks.check_choice("num_states", self.num_states, emissions.EXACT_NUM_STATES)
        _checks.check_int("num_states", self.num_states, at_least=2, at_most=32)

    @property
    def known_emission(self) -> emissions.Emission | None:
        """The emission if it is known, or None if its parameters are learned."""
        if isinstance(self.emission, emissions.Emission):
            return self.emission
        return emissions.exact(self.num_states) if self.emission == "exact" else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Prefixes of parameter names, one for each kind of transition."""
        return ("", "trained_") if self.is_split else ("",)

    def sample_emission(self) -> dict[str, jax.Array]:
        """Samples the gaps between the ordered success rates of the states, and the precision, if these are learned."""
        sites: dict[str, jax.Array] = {}
        if self.known_emission is None:
            # With Dirichlet parameters of 1 the ordered rates would be uniform in (0, 1); 1.5 keeps them apart.
            gaps = jnp.full(self.num_states + 1, 1.5)
            sites["rate_gaps"] = sample("rate_gaps", dist.Dirichlet(gaps))
        if self.emission == "beta-binomial":
            sites |= sample_units("precision")
        return sites

    def emission_parameters(self, sites: Sites) -> dict[str, jax.Array]:
        """Returns success_rates [K] and precision, if these are learned."""
        parameters = {}
        if self.known_emission is None:
            rates = jnp.cumsum(sites["rate_gaps"], axis=-1)[..., :-1]
            parameters["success_rates"] = jnp.clip(rates, 1e-4, 1 - 1e-4)
        if self.emission == "beta-binomial":
            parameters["precision"] = positive(sites, "precision", _PRECISION)
        return parameters

    def log_likelihood(self, sites: Sites, outcomes: Outcomes) -> jax.Array:
        """Returns log p(outcome | state), [T, K, N], without binomial coefficients."""
        parameters = self.emission_parameters(sites)
        successes, counts = outcomes.successes, outcomes.counts
        if self.known_emission is not None:
            # float64 if it is enabled, since the evidence is a sum over rounds.
            table = emissions.log_likelihood(self.known_emission, successes, counts, jnp.result_type(float))
        else:
            of_rate = lambda rate: emissions.binomial_log_likelihood(
                rate, parameters.get("precision"), successes.astype(rate.dtype), counts.astype(rate.dtype)
            )
            # A loop over states; XLA would otherwise recompute gamma functions for every cell.
            table = lax.map(of_rate, parameters["success_rates"])
        return jnp.moveaxis(table[:, outcomes.codes], 0, 1)

    def to_emission(self, means: Sites) -> emissions.Emission:
        """Returns the emission with the given success_rates and precision."""
        if self.known_emission is not None:
            return self.known_emission
        precision = means.get("precision")
        return emissions.binomial(
            [float(rate) for rate in means["success_rates"]], None if precision is None else float(precision)
        )


@documented
class PriorModel(NamedTuple):
    """A NumPyro model of traces, as returned by `build`.

    In the signatures below, "sites" is a dictionary from the names of NumPyro's sample sites, which are the sampled
    parameters of the model, to their values.

    Attributes:
      name: name of the model in `MODELS`.
      space: hidden states of the model, with `num_states` and `emission`.
      sample: Outcomes -> sites; samples all parameters except those with one value per prompt. It is called inside a
        NumPyro model.
      sample_members: (sites, Outcomes) -> sites; samples the parameters with one value per prompt. It is called inside
        the plate of prompts; None if there are no such parameters.
      members: for each site with one value per prompt or prompt group, by name, the function from the other sites to
        the parameters of its Dirichlet prior. MAP integrates these sites out and maximises over the other ones.
      parameters: sites -> parameters to report: probabilities, concentrations and success rates, without prompt axes.
      log_evidence: (sites, Outcomes) -> log probability of all outcomes of each prompt, nats, [N].
      to_prior: (posterior means of `parameters`, Outcomes) -> `hmm.TransitionPrior`.

    Example:
      >>> import numpy as np
      >>> from dps_jax import priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> model = priors.shared()  # its sites are also its parameters
      >>> values = {"initial_probs": np.full(3, 1 / 3), "transition_matrix": np.eye(3) / 2 + 1 / 6}
      >>> model.log_evidence(values, outcomes).shape == (outcomes.num_prompts,)
      True
      >>> prior = model.to_prior(values, outcomes)  # as if `values` were the posterior means
      >>> (prior.concentration / prior.concentration.sum(axis=1, keepdims=True)).round(2)[0].tolist()
      [0.67, 0.17, 0.17]
    """

    name: str
    space: StateSpace
    sample: Callable[[Outcomes], dict[str, Any]]
    sample_members: Callable[[Sites, Outcomes], dict[str, Any]] | None
    members: Mapping[str, Callable[[Sites], jax.Array]]
    parameters: Callable[[Sites], dict[str, Any]]
    log_evidence: Callable[[Sites, Outcomes], jax.Array]
    to_prior: Callable[[Sites, Outcomes], TransitionPrior]


def sample(name: str, distribution: Any) -> Any:
    """Returns the value of a sample site, typed `Any` for the type checker."""
    return numpyro.sample(name, distribution)


def sample_units(name: str, *shape: int) -> dict[str, jax.Array]:
    """Samples the standard normal variable from which `positive` computes a log-normal quantity."""
    return {f"{name}_units": sample(f"{name}_units", dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape)))}


def positive(sites: Sites, name: str, centre: float) -> jax.Array:
    """Returns a log-normal quantity with median `centre`; its logarithm has standard deviation 1."""
    return centre * jnp.exp(sites[f"{name}_units"])


def uniform_rows(*shape: int) -> dist.Distribution:
    """Returns the distribution of arrays of this shape whose last axis has independent, uniform probability vectors."""
    return dist.Dirichlet(jnp.ones(shape)).to_event(len(shape) - 1)


def static_log_evidence(
    space: StateSpace, distributions: Callable[[Sites, Outcomes], tuple[jax.Array, Sequence[jax.Array]]]
) -> Callable[[Sites, Outcomes], jax.Array]:
    """Returns the function `PriorModel.log_evidence` of models whose matrices do not change over rounds.

    Args:
      space: state space of the model.
      distributions: (sites, Outcomes) -> initial_probs, [K] or [K, N], and a matrix for each kind of transition,
        [K, K] or [K, K, N].
    """

    def log_evidence(sites: Sites, outcomes: Outcomes) -> jax.Array:
        initial_probs, matrices = distributions(sites, outcomes)
        trained = {"trained_matrix": matrices[1], "is_trained": outcomes.codes > 0} if space.is_split else {}
        logs = space.log_likelihood(sites, outcomes)
        return smoothing.log_evidence(initial_probs, matrices[0], logs, **trained)

    return log_evidence


def numpyro_model(model: PriorModel) -> Callable[..., None]:
    """Returns the model function for NumPyro: (outcomes, weight=1.0) -> None; every prompt counts `weight` times."""

    def run(outcomes: Outcomes, weight: Any = 1.0) -> None:
        sites = model.sample(outcomes)
        with numpyro.plate("prompts", outcomes.num_prompts), numpyro.handlers.scale(scale=weight):
            if model.sample_members is not None:
                sites = sites | model.sample_members(sites, outcomes)
            numpyro.factor("log_evidence", model.log_evidence(sites, outcomes))

    return run
