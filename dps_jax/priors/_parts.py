"""What the models of `models` have in common: how outcomes depend on states, how prompts move, the likelihood."""

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
from dps_jax.hmm import emissions, smoothing
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.priors._outcomes import Outcomes

EMISSIONS = ("exact", "binomial", "beta-binomial")
# Median of the prior of the beta-binomial's a + b.
_PRECISION = 20.0
# Sites by name: what a numpyro model samples, or what follows from that.
Sites = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StateSpace:
    """What the hidden states are, and how many kinds of move there are.

    Attributes:
      num_states: K.
      emission: "exact", or "binomial" or "beta-binomial" with learned rates, or an `Emission` that is taken as known.
      is_split: a transition matrix of their own for moves out of rounds in which the prompt was rolled out.

    Raises:
      ValueError: for an unknown emission, or a number of states that it does not have.
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
        """The emission, where nothing of it is learned."""
        if isinstance(self.emission, emissions.Emission):
            return self.emission
        return emissions.exact(self.num_states) if self.emission == "exact" else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Prefixes of the names of what there is one of per kind of move."""
        return ("", "trained_") if self.is_split else ("",)

    def sample_emission(self) -> dict[str, jax.Array]:
        """Samples the rates of the states, in order, and their precision; nothing where the emission is known."""
        sites: dict[str, jax.Array] = {}
        if self.known_emission is None:
            # Gaps of ordered rates in (0, 1); 1 each would be uniform rates, 1.5 keeps two of them from merging.
            gaps = jnp.full(self.num_states + 1, 1.5)
            sites["rate_gaps"] = sample("rate_gaps", dist.Dirichlet(gaps))
        if self.emission == "beta-binomial":
            sites |= sample_units("precision")
        return sites

    def emission_parameters(self, sites: Sites) -> dict[str, jax.Array]:
        """Returns success_rates [K] and precision, as far as there are any."""
        parameters = {}
        if self.known_emission is None:
            rates = jnp.cumsum(sites["rate_gaps"], axis=-1)[..., :-1]
            parameters["success_rates"] = jnp.clip(rates, 1e-4, 1 - 1e-4)
        if self.emission == "beta-binomial":
            parameters["precision"] = positive(sites, "precision", _PRECISION)
        return parameters

    def log_likelihood(self, sites: Sites, outcomes: Outcomes) -> jax.Array:
        """Returns log p(what was seen | state), [T, K, N], without binomial coefficients."""
        parameters = self.emission_parameters(sites)
        successes, counts = outcomes.successes, outcomes.counts
        if self.known_emission is not None:
            # float64 where that is enabled: evidence is a sum over rounds.
            table = emissions.log_likelihood(self.known_emission, successes, counts, jnp.result_type(float))
        else:
            of_rate = lambda rate: emissions.binomial_log_likelihood(
                rate, parameters.get("precision"), successes.astype(rate.dtype), counts.astype(rate.dtype)
            )
            # A loop over states: XLA would otherwise compute gamma functions anew for every cell.
            table = lax.map(of_rate, parameters["success_rates"])
        return jnp.moveaxis(table[:, outcomes.codes], 0, 1)

    def to_emission(self, means: Sites) -> emissions.Emission:
        """Returns the emission with the given success_rates and precision, as data."""
        if self.known_emission is not None:
            return self.known_emission
        precision = means.get("precision")
        return emissions.binomial(
            [float(rate) for rate in means["success_rates"]], None if precision is None else float(precision)
        )


class PriorModel(NamedTuple):
    """A numpyro model of traces.

    Attributes:
      name: of the model.
      space: its states.
      sample: Outcomes -> sites; samples what is not of single prompts. Called inside numpyro.
      sample_members: (sites, Outcomes) -> sites of single prompts, sampled inside the plate of prompts, or None.
      members: sites of single prompts or groups, which MAP does not maximise but averages over: their names, and from
        the other sites the Dirichlet parameters of the distribution that all of them follow.
      parameters: sites -> what users want to know: probabilities, concentrations, rates; without prompt axes. Pure.
      log_evidence: (sites, Outcomes) -> log probability of every prompt's trace, nats, [N]. Pure.
      to_prior: (posterior means of `parameters`, Outcomes) -> `TransitionPrior`.
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
    """Returns a sample site, typed for whoever computes with it."""
    return numpyro.sample(name, distribution)


def sample_units(name: str, *shape: int) -> dict[str, jax.Array]:
    """Samples the units of a log-normal quantity; `positive` makes it of them. Fits start at its centre."""
    return {f"{name}_units": sample(f"{name}_units", dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape)))}


def positive(sites: Sites, name: str, centre: float) -> jax.Array:
    """Returns a log-normal quantity: its median is `centre`, the standard deviation of its log is 1."""
    return centre * jnp.exp(sites[f"{name}_units"])


def uniform_rows(*shape: int) -> dist.Distribution:
    """Returns independent uniform distributions over probability vectors, [*shape[:-1]] of length shape[-1]."""
    return dist.Dirichlet(jnp.ones(shape)).to_event(len(shape) - 1)


def static_log_evidence(
    space: StateSpace, distributions: Callable[[Sites, Outcomes], tuple[jax.Array, Sequence[jax.Array]]]
) -> Callable[[Sites, Outcomes], jax.Array]:
    """Returns the likelihood of models in which a prompt's matrix does not change: solve states summed out exactly.

    Args:
      space: of the model.
      distributions: (sites, Outcomes) -> initial_probs, [K] or [K, N], and a matrix per kind of move, [K, K] or
        [K, K, N].
    """

    def log_evidence(sites: Sites, outcomes: Outcomes) -> jax.Array:
        initial_probs, matrices = distributions(sites, outcomes)
        trained = {"trained_matrix": matrices[1], "is_trained": outcomes.codes > 0} if space.is_split else {}
        logs = space.log_likelihood(sites, outcomes)
        return smoothing.log_evidence(initial_probs, matrices[0], logs, **trained)

    return log_evidence


def numpyro_model(model: PriorModel) -> Callable[..., None]:
    """Returns the function that numpyro runs: (outcomes, weight=1.0) -> None; every prompt counts `weight` times."""

    def run(outcomes: Outcomes, weight: Any = 1.0) -> None:
        sites = model.sample(outcomes)
        with numpyro.plate("prompts", outcomes.num_prompts), numpyro.handlers.scale(scale=weight):
            if model.sample_members is not None:
                sites = sites | model.sample_members(sites, outcomes)
            numpyro.factor("log_evidence", model.log_evidence(sites, outcomes))

    return run
