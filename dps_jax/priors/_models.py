"""Models of the transitions between solve states, one function each.

They differ in what all prompts share and what varies between prompts. Every model marginalises over the solve states
with the filter of this library, including rounds in which a prompt was not rolled out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from dps_jax import _checks, _exact
from dps_jax.hmm import online as online_filter
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.hmm.emissions import Emission
from dps_jax.priors._outcomes import Outcomes
from dps_jax.priors._parts import (
    PriorModel,
    Sites,
    StateSpace,
    positive,
    sample,
    sample_units,
    static_log_evidence,
    uniform_rows,
)

# If a model estimates a transition matrix itself, the prior counts of each row sum to this, so that the outcomes of a
# single prompt hardly change it.
_KNOWN = 1000.0
# Median of the log-normal prior on the sum of the Dirichlet parameters of a row.
STRENGTH = 10.0
# Dirichlet parameters below this would give probabilities that underflow in float32.
_SMALLEST_CONCENTRATION = 0.05
# Smallest Dirichlet parameter of a model that draws no rows: the filter only needs positive counts.
_SMALLEST_COUNT = 1e-3


def shared(*, num_states: int = 3, emission: str | Emission = "exact", is_split: bool = False) -> PriorModel:
    """Returns the model in which all prompts have the same initial distribution, transition matrix and emission.

    Args:
      num_states: number of states, K: 2, 3, 5 or 7 for the exact emission.
      emission: "exact", where the outcome determines the state; "binomial" or "beta-binomial" with learned success
        rates; or a known `hmm.Emission`.
      is_split: whether to have two transition matrices: one for transitions out of rounds in which the prompt was
        rolled out, and thus trained on, and one for the other rounds.

    Raises:
      ValueError: if the options are inconsistent.

    Example:
      >>> import numpy as np
      >>> from dps_jax import priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> uniform = {"initial_probs": np.full(3, 1 / 3), "transition_matrix": np.full((3, 3), 1 / 3)}  # parameters
      >>> log_evidence = priors.shared().log_evidence(uniform, outcomes)
      >>> round(float(-log_evidence.sum()) / 80, 2)  # nats per visit, of 80 visits: log 3 for uniform predictions
      1.1
    """
    space = StateSpace(num_states, emission, is_split)

    def sample_sites(outcomes: Outcomes) -> dict[str, Any]:
        del outcomes
        sites = {"initial_probs": sample("initial_probs", uniform_rows(num_states))}
        for kind in space.kinds:
            name = f"{kind}transition_matrix"
            sites[name] = sample(name, uniform_rows(num_states, num_states))
        return sites | space.sample_emission()

    def distributions(sites: Sites, outcomes: Outcomes):
        del outcomes
        return sites["initial_probs"], [sites[f"{kind}transition_matrix"] for kind in space.kinds]

    def parameters(sites: Sites) -> dict[str, Any]:
        names = ("initial_probs", *(f"{kind}transition_matrix" for kind in space.kinds))
        return {name: sites[name] for name in names} | space.emission_parameters(sites)

    def to_prior(means: Sites, outcomes: Outcomes) -> TransitionPrior:
        del outcomes
        counts = {f"{kind}concentration": _KNOWN * means[f"{kind}transition_matrix"] for kind in space.kinds}
        return TransitionPrior(means["initial_probs"], decay=0.0, emission=space.to_emission(means), **counts)

    log_evidence = static_log_evidence(space, distributions)
    return PriorModel("shared", space, sample_sites, None, {}, parameters, log_evidence, to_prior)


def _sample_population(space: StateSpace) -> dict[str, Any]:
    """Samples the Dirichlet parameters of the population: the mean and the sum (strength) of each row."""
    sites = {}
    for kind in space.kinds:
        mean_rows = dist.Dirichlet(jnp.full((space.num_states, space.num_states), 2.0)).to_event(1)
        sites[f"{kind}mean_rows"] = sample(f"{kind}mean_rows", mean_rows)
        sites |= sample_units(f"{kind}strength", space.num_states)
    return sites


def _concentrations(space: StateSpace, sites: Sites, smallest: float = _SMALLEST_CONCENTRATION) -> dict[str, jax.Array]:
    """Returns the population's Dirichlet parameters, [K, K] for each kind of transition."""

    def concentration(kind: str) -> jax.Array:
        return _dirichlet(sites[f"{kind}mean_rows"], positive(sites, f"{kind}strength", STRENGTH), smallest)

    return {f"{kind}concentration": concentration(kind) for kind in space.kinds}


def _concentration_of(space: StateSpace, kind: str) -> Callable[[Sites], jax.Array]:
    return lambda sites: _concentrations(space, sites)[f"{kind}concentration"]


def _dirichlet(mean: jax.Array, strength: jax.Array, smallest: float = _SMALLEST_CONCENTRATION) -> jax.Array:
    return jnp.maximum(mean * strength[..., None], smallest)


def hierarchical(*, num_states: int = 3, emission: str | Emission = "exact", is_split: bool = False) -> PriorModel:
    """Returns the model in which every prompt has a transition matrix of its own.

    The rows of these matrices have Dirichlet distributions whose parameters are learned from all prompts.

    Args:
      num_states: number of states, K: 2, 3, 5 or 7 for the exact emission.
      emission: "exact", where the outcome determines the state; "binomial" or "beta-binomial" with learned success
        rates; or a known `hmm.Emission`.
      is_split: whether to have two transition matrices: one for transitions out of rounds in which the prompt was
        rolled out, and thus trained on, and one for the other rounds.

    Raises:
      ValueError: if the options are inconsistent.

    Example:
      >>> from dps_jax import priors
      >>> model = priors.hierarchical(num_states=5)
      >>> model.name, model.space.num_states, sorted(model.members)  # rows of each prompt's matrix
      ('hierarchical', 5, ['rows'])
    """
    space = StateSpace(num_states, emission, is_split)

    def sample_sites(outcomes: Outcomes) -> dict[str, Any]:
        del outcomes
        sites = {"initial_probs": sample("initial_probs", uniform_rows(num_states))}
        return sites | _sample_population(space) | space.sample_emission()

    def sample_members(sites: Sites, outcomes: Outcomes) -> dict[str, Any]:
        del outcomes
        concentrations = _concentrations(space, sites)
        return {
            f"{kind}rows": sample(f"{kind}rows", dist.Dirichlet(concentrations[f"{kind}concentration"]).to_event(1))
            for kind in space.kinds
        }

    def distributions(sites: Sites, outcomes: Outcomes):
        del outcomes
        return sites["initial_probs"], [jnp.moveaxis(sites[f"{kind}rows"], 0, -1) for kind in space.kinds]

    def parameters(sites: Sites) -> dict[str, Any]:
        emission_parameters = space.emission_parameters(sites)
        return {"initial_probs": sites["initial_probs"]} | _concentrations(space, sites) | emission_parameters

    def to_prior(means: Sites, outcomes: Outcomes) -> TransitionPrior:
        del outcomes
        counts = {f"{kind}concentration": means[f"{kind}concentration"] for kind in space.kinds}
        return TransitionPrior(means["initial_probs"], decay=1.0, emission=space.to_emission(means), **counts)

    members = {f"{kind}rows": _concentration_of(space, kind) for kind in space.kinds}
    log_evidence = static_log_evidence(space, distributions)
    return PriorModel("hierarchical", space, sample_sites, sample_members, members, parameters, log_evidence, to_prior)


def grouped(
    num_groups: int, *, num_states: int = 3, emission: str | Emission = "exact", is_split: bool = False
) -> PriorModel:
    """Returns the model in which every prompt group has an initial distribution and a transition matrix of its own.

    Both have Dirichlet priors around the corresponding distributions of the population, with a learned concentration:
    the more similar the groups are in the trace, the more they are pooled. Prompts of unknown group (-1) have the mean
    distributions of the population.

    Args:
      num_groups: number of prompt groups, L; group ids are 0, ..., L - 1.
      num_states: number of states, K: 2, 3, 5 or 7 for the exact emission.
      emission: "exact", where the outcome determines the state; "binomial" or "beta-binomial" with learned success
        rates; or a known `hmm.Emission`.
      is_split: whether to have two transition matrices: one for transitions out of rounds in which the prompt was
        rolled out, and thus trained on, and one for the other rounds.

    Raises:
      ValueError: if the options are inconsistent. `fit` raises it for outcomes without groups.

    Example:
      >>> from dps_jax import priors
      >>> model = priors.grouped(num_groups=4, is_split=True)
      >>> sorted(model.members)  # parameters of single groups
      ['group_initial', 'group_rows', 'trained_group_rows']
    """
    space = StateSpace(num_states, emission, is_split)
    _checks.check_int("num_groups", num_groups, at_least=1)

    def initial_concentration(sites: Sites) -> jax.Array:
        return _dirichlet(sites["initial_probs"], positive(sites, "initial_strength", STRENGTH))

    def sample_sites(outcomes: Outcomes) -> dict[str, Any]:
        if outcomes.groups is None:
            raise ValueError("groups: expected a group id for every prompt, got none; the model 'grouped' needs them")
        sites = _sample_population(space)
        sites["initial_probs"] = sample("initial_probs", dist.Dirichlet(jnp.full(num_states, 2.0)))
        sites |= sample_units("initial_strength")
        concentrations = _concentrations(space, sites)
        with numpyro.plate("groups", num_groups):
            sites["group_initial"] = sample("group_initial", dist.Dirichlet(initial_concentration(sites)))
            for kind in space.kinds:
                rows = dist.Dirichlet(concentrations[f"{kind}concentration"]).to_event(1)
                sites[f"{kind}group_rows"] = sample(f"{kind}group_rows", rows)
        return sites | space.sample_emission()

    def distributions(sites: Sites, outcomes: Outcomes):
        # The population comes last, where the index -1 finds it.
        of_prompts = lambda groups, mean: jnp.moveaxis(jnp.concatenate([groups, mean[None]])[outcomes.groups], 0, -1)
        rows = [of_prompts(sites[f"{kind}group_rows"], sites[f"{kind}mean_rows"]) for kind in space.kinds]
        return of_prompts(sites["group_initial"], sites["initial_probs"]), rows

    def parameters(sites: Sites) -> dict[str, Any]:
        names = ["initial_probs", "group_initial"]
        names += [f"{kind}{name}" for kind in space.kinds for name in ("mean_rows", "group_rows")]
        strengths = ["initial_strength", *(f"{kind}strength" for kind in space.kinds)]
        found = {name: sites[name] for name in names}
        found |= {name: positive(sites, name, STRENGTH) for name in strengths}
        return found | space.emission_parameters(sites)

    def to_prior(means: Sites, outcomes: Outcomes) -> TransitionPrior:
        fixed = {"decay": 0.0, "emission": space.to_emission(means)}
        names = () if outcomes.group_ids is None else tuple(outcomes.group_ids.tolist())

        def counts(name: str, place: Any = ...) -> dict[str, np.ndarray]:
            return {f"{kind}concentration": _KNOWN * means[f"{kind}{name}"][place] for kind in space.kinds}

        of_groups = tuple(
            TransitionPrior(means["group_initial"][group], **counts("group_rows", group), **fixed)
            for group in range(num_groups)
        )
        population = means["initial_probs"]
        return TransitionPrior(population, **counts("mean_rows"), **fixed, groups=of_groups, group_ids=names)

    members = {f"{kind}group_rows": _concentration_of(space, kind) for kind in space.kinds}
    members["group_initial"] = initial_concentration
    log_evidence = static_log_evidence(space, distributions)
    return PriorModel("grouped", space, sample_sites, None, members, parameters, log_evidence, to_prior)


def covariates(
    num_features: int, *, num_states: int = 3, emission: str | Emission = "exact", is_split: bool = False
) -> PriorModel:
    """Returns the model in which the features of a prompt determine its initial and its stationary distribution.

    Each distribution is a softmax regression on the features, with an intercept. The weights have normal priors with
    mean 0 and a learned scale. In each round, a prompt in state i draws a new state with probability
    `mobility[i]`, and otherwise stays in state i. The distribution of the new state, which may be i again, is chosen
    such that the chain has the stationary distribution of the regression. With `is_split`, transitions out of rounds in
    which the prompt was rolled out have their own mobility and intercept.

    Args:
      num_features: number of features, D; the scale of each feature should be about 1.
      num_states: number of states, K: 2, 3, 5 or 7 for the exact emission.
      emission: "exact", where the outcome determines the state; "binomial" or "beta-binomial" with learned success
        rates; or a known `hmm.Emission`.
      is_split: whether to have two transition matrices: one for transitions out of rounds in which the prompt was
        rolled out, and thus trained on, and one for the other rounds.

    Raises:
      ValueError: if the options are inconsistent. `fit` raises it for outcomes without features.

    Example:
      >>> import numpy as np
      >>> from dps_jax import priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace, features=run.features)
      >>> model = priors.covariates(num_features=outcomes.features.shape[1])  # for `fit`, with these outcomes
      >>> model.name, outcomes.features.shape[1]
      ('covariates', 4)
    """
    space = StateSpace(num_states, emission, is_split)
    _checks.check_int("num_features", num_features, at_least=1)
    names_of_distributions = ("initial", *(f"{kind}stationary" for kind in space.kinds))
    normal = lambda scale, *shape: dist.Normal(jnp.zeros(shape), scale).to_event(len(shape))

    def sample_sites(outcomes: Outcomes) -> dict[str, Any]:
        found = None if outcomes.features is None else outcomes.features.shape[1]
        if found != num_features:
            raise ValueError(
                f"features: expected {num_features} for every prompt, got {'none' if found is None else found}"
            )
        sites = {}
        for name in names_of_distributions:
            sites[f"{name}_intercept"] = sample(f"{name}_intercept", normal(1.5, num_states - 1))
        for name in ("initial", "stationary"):
            sites[f"{name}_scale"] = sample(f"{name}_scale", dist.HalfNormal(1.0))
            # A non-centred parametrisation, as the scale may go to zero.
            sites[f"{name}_units"] = sample(f"{name}_units", normal(1.0, num_features, num_states - 1))
        for kind in space.kinds:
            mobility = dist.Beta(jnp.ones(num_states), 2.0).to_event(1)
            sites[f"{kind}mobility"] = sample(f"{kind}mobility", mobility)
        return sites | space.sample_emission()

    def parameters(sites: Sites) -> dict[str, Any]:
        found = {f"{name}_intercept": sites[f"{name}_intercept"] for name in names_of_distributions}
        for name in ("initial", "stationary"):
            scale = jnp.asarray(sites[f"{name}_scale"])
            found[f"{name}_weights"] = scale[..., None, None] * sites[f"{name}_units"]
        found |= {f"{kind}mobility": sites[f"{kind}mobility"] for kind in space.kinds}
        return found | space.emission_parameters(sites)

    def distributions(sites: Sites, outcomes: Outcomes):
        return distributions_of_features(parameters(sites), outcomes.features, space)

    def to_prior(means: Sites, outcomes: Outcomes) -> TransitionPrior:
        initial, matrices = distributions_of_features(means, outcomes.features, space)
        pairs = zip(space.kinds, matrices, strict=True)
        counts = {f"{kind}concentration": _KNOWN * np.asarray(matrix).mean(axis=-1) for kind, matrix in pairs}
        initial_probs = np.asarray(initial, np.float64).mean(axis=-1)
        emission_of_all = space.to_emission(means)
        return TransitionPrior(initial_probs / initial_probs.sum(), decay=0.0, emission=emission_of_all, **counts)

    log_evidence = static_log_evidence(space, distributions)
    return PriorModel("covariates", space, sample_sites, None, {}, parameters, log_evidence, to_prior)


def distributions_of_features(parameters: Sites, features: Any, space: StateSpace) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the distributions of prompts in the model `covariates`.

    Args:
      parameters: parameters of one draw, or posterior means.
      features: features of the prompts, [N, D].
      space: state space of the model.

    Returns:
      initial_probs, [K, N], and a transition matrix for each kind of transition, [K, K, N].
    """

    def distribution(name: str, weights: str) -> jax.Array:
        moved = _exact.matmul(jnp.asarray(features), parameters[f"{weights}_weights"])
        logits = (moved + parameters[f"{name}_intercept"]).T
        return jax.nn.softmax(jnp.concatenate([jnp.zeros((1, logits.shape[1])), logits]), axis=0)

    def matrix(kind: str) -> jax.Array:
        mobility = jnp.asarray(parameters[f"{kind}mobility"])[:, None]
        target = mobility * distribution(f"{kind}stationary", "stationary")
        target = target / target.sum(axis=0)
        stays = jnp.eye(space.num_states)[..., None] * (1 - mobility)[:, None]
        return stays + mobility[:, None] * target[None]

    return distribution("initial", "initial"), [matrix(kind) for kind in space.kinds]


def online(*, num_states: int = 3, emission: str | Emission = "exact", is_split: bool = False) -> PriorModel:
    """Returns a model of the filter of `dps`; its parameters are the filter's initial belief, prior counts and decay.

    The likelihood of a trace is the product over all visits of the probability that the filter predicts for the
    outcome; see docs/concepts/method.md. With `is_split`, transitions out of rounds in which the prompt was rolled out
    have prior counts of their own.

    Args:
      num_states: number of states, K: 2, 3, 5 or 7 for the exact emission.
      emission: "exact", where the outcome determines the state; "binomial" or "beta-binomial" with learned success
        rates; or a known `hmm.Emission`.
      is_split: whether to have two transition matrices: one for transitions out of rounds in which the prompt was
        rolled out, and thus trained on, and one for the other rounds.

    Raises:
      ValueError: if the options are inconsistent.

    Example:
      >>> from dps_jax import hmm, priors
      >>> model = priors.online(num_states=4, emission=hmm.binomial([0.02, 0.3, 0.7, 0.98]))
      >>> model.name, model.space.num_states
      ('online', 4)
    """
    space = StateSpace(num_states, emission, is_split)

    def sample_sites(outcomes: Outcomes) -> dict[str, Any]:
        del outcomes
        sites = {"initial_probs": sample("initial_probs", uniform_rows(num_states))}
        sites["decay"] = sample("decay", dist.Beta(1.0, 1.0))
        return sites | _sample_population(space) | space.sample_emission()

    def parameters(sites: Sites) -> dict[str, Any]:
        fixed = {name: sites[name] for name in ("initial_probs", "decay")}
        return fixed | _concentrations(space, sites, _SMALLEST_COUNT) | space.emission_parameters(sites)

    def log_evidence(sites: Sites, outcomes: Outcomes) -> jax.Array:
        counts = _concentrations(space, sites, _SMALLEST_COUNT)
        return online_filter.log_predictive_probs(
            sites["initial_probs"],
            counts["concentration"],
            sites["decay"],
            space.log_likelihood(sites, outcomes),
            outcomes.codes > 0,
            counts.get("trained_concentration"),
        ).sum(axis=0)

    def to_prior(means: Sites, outcomes: Outcomes) -> TransitionPrior:
        del outcomes
        counts = {f"{kind}concentration": means[f"{kind}concentration"] for kind in space.kinds}
        decay, emission_of_all = float(means["decay"]), space.to_emission(means)
        return TransitionPrior(means["initial_probs"], decay=decay, emission=emission_of_all, **counts)

    return PriorModel("online", space, sample_sites, None, {}, parameters, log_evidence, to_prior)


MODELS: dict[str, Callable[..., PriorModel]] = {
    "shared": shared,
    "hierarchical": hierarchical,
    "grouped": grouped,
    "covariates": covariates,
    "online": online,
}


def build(name: str, outcomes: Outcomes, **options: Any) -> PriorModel:
    """Returns the model with the given name; the numbers of groups and features are taken from the outcomes.

    Args:
      name: name of a model in `MODELS`.
      outcomes: outcomes as returned by `prepare`, to which the model will be fitted.
      **options: other arguments of the function that builds the model: `num_states`, `emission`, `is_split`.

    Raises:
      ValueError: for an unknown name or option (the message lists the known ones), or outcomes without the groups or
        features that the model needs.

    Example:
      >>> import numpy as np
      >>> from dps_jax import priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace, groups=run.groups)
      >>> priors.build("grouped", outcomes, emission="binomial").name
      'grouped'
    """
    _checks.check_choice("model", name, MODELS)
    sizes = {}
    if name == "grouped":
        if outcomes.groups is None or int(outcomes.groups.max()) < 0:
            raise ValueError("groups: expected a group id for every prompt, got none; the model 'grouped' needs them")
        named = outcomes.group_ids
        sizes["num_groups"] = int(outcomes.groups.max()) + 1 if named is None else named.size
    if name == "covariates":
        if outcomes.features is None:
            raise ValueError("features: expected a row for every prompt, got none; the model 'covariates' needs them")
        sizes["num_features"] = outcomes.features.shape[1]
    known = [option for option in inspect.signature(MODELS[name]).parameters if not option.startswith("num_g")]
    _checks.check_options(f"options of model {name!r}", options, [option for option in known if option not in sizes])
    return MODELS[name](**sizes, **options)
