"""Refits the prior of a running filter to the last rounds of the run."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from dps_jax import _checks
from dps_jax.hmm import emissions
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.priors import _mode, _models, _variational
from dps_jax.priors._density import density
from dps_jax.priors._outcomes import Outcomes, prepare
from dps_jax.traces import Trace

# The initial values of the search for the mode must be at least this far from the bounds of every site.
_SMALLEST = 1e-3


def refit(
    prior: TransitionPrior,
    trace: Trace,
    *,
    last_rounds: int = 50,
    max_prompts: int = 512,
    num_steps: int = 40,
) -> TransitionPrior:
    """Returns the prior refitted to the last rounds of a trace, for a filter that is running.

    The result is the best point that a search for the posterior mode of the model `online` finds, starting from the
    given prior. If the search finds no finite posterior density, the given prior is returned. The emission is kept,
    because the meaning of the states must not change while a filter is running. The initial belief is fitted only if
    the rounds used begin with round 0, and kept otherwise. The result depends on the arguments alone, so that a resumed
    run repeats it.

    Args:
      prior: prior of the filter, without groups.
      trace: trace of the run so far.
      last_rounds: number of rounds at the end of the trace to use.
      max_prompts: largest number of prompts to use; if more were visited in these rounds, a random subset is used.
      num_steps: number of evaluations of the loss after which the search ends; its last step may exceed it.

    Raises:
      ValueError: for an empty trace, a prior with groups, or a number below 1.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm, priors, traces
      >>> rng = np.random.default_rng(0)
      >>> run = traces.simulate_learners(rng, num_prompts=16, num_rounds=8, batch_size=8)
      >>> prior = hmm.resolve_prior("uniform", num_states=3)
      >>> priors.refit(prior, run.trace, last_rounds=8, num_steps=5).concentration.shape
      (3, 3)
    """
    if prior.groups:
        raise ValueError(f"prior: expected a prior without groups, got {len(prior.groups)} groups; fit a new one")
    _checks.check_int("num_steps", num_steps, at_least=1)
    _checks.check_int("max_prompts", max_prompts, at_least=1)
    outcomes = prepare(trace, last_rounds=last_rounds)
    is_whole = np.unique(trace.rounds).size <= last_rounds and int(np.min(trace.rounds)) == 0
    if outcomes.num_prompts > max_prompts:
        kept = np.random.default_rng(0).permutation(outcomes.num_prompts)[:max_prompts]
        outcomes = outcomes.take(np.sort(kept))
    padded = _padded(outcomes, last_rounds)
    kind = {"emission": prior.emission, "is_split": prior.trained_concentration is not None}
    start = _start(_sites(prior), padded, **kind)
    best = _mode.minimise(lambda values: _loss(values, padded, **kind), start, max_evaluations=num_steps)
    if not _mode.is_finite(best):
        return prior
    values = _parameters(jnp.asarray(best.values, jnp.float32), padded, **kind)
    found = {name: np.asarray(value, np.float64) for name, value in values.items()}
    return dataclasses.replace(
        prior,
        initial_probs=found["initial_probs"] if is_whole else prior.initial_probs,
        concentration=found["concentration"],
        trained_concentration=found.get("trained_concentration"),
        decay=float(np.clip(found["decay"], 0.0, 1.0)),
    )


def _sites(prior: TransitionPrior) -> dict[str, jax.Array]:
    """Returns a prior as sites of the model `online`, moved strictly inside their ranges."""
    shrink = lambda probs: (probs + _SMALLEST) / (probs + _SMALLEST).sum(axis=-1, keepdims=True)
    sites = {
        "initial_probs": shrink(prior.initial_probs),
        "decay": np.clip(float(prior.decay), _SMALLEST, 1 - _SMALLEST),
    }
    for kind, counts in (("", prior.concentration), ("trained_", prior.trained_concentration)):
        if counts is not None:
            sites[f"{kind}mean_rows"] = shrink(counts / counts.sum(axis=1, keepdims=True))
            sites[f"{kind}strength_units"] = np.log(counts.sum(axis=1) / _models.STRENGTH)
    return {name: jnp.asarray(value, jnp.float32) for name, value in sites.items()}


def _padded(outcomes: Outcomes, num_rounds: int) -> Outcomes:
    """Returns the outcomes, padded with rounds, prompts and distinct outcomes that have no visits."""
    # Powers of two, so that few shapes are compiled.
    round_up = lambda size: int(2 ** np.ceil(np.log2(max(size, 16))))
    rounds, prompts = num_rounds - outcomes.num_rounds, round_up(outcomes.num_prompts) - outcomes.num_prompts
    kinds = round_up(outcomes.counts.shape[0]) - outcomes.counts.shape[0]
    return Outcomes(
        codes=jnp.pad(outcomes.codes, ((0, rounds), (0, prompts))),
        successes=jnp.pad(outcomes.successes, (0, kinds)),
        counts=jnp.pad(outcomes.counts, (0, kinds)),
        prompt_ids=np.pad(outcomes.prompt_ids, (0, prompts), constant_values=-1),
    )


def _problem(emission: emissions.Emission, is_split: bool, outcomes: Outcomes) -> _variational.Problem:
    model = _models.online(num_states=emission.num_states, emission=emission, is_split=is_split)
    return _variational.problem(model, density(model, outcomes), is_point=True)


# Compiled once per emission and size of the outcomes, for all refits of a run.
_jit = functools.partial(jax.jit, static_argnames=("emission", "is_split"))


@_jit
def _start(sites: Any, outcomes: Outcomes, emission: emissions.Emission, is_split: bool) -> jax.Array:
    return ravel_pytree(_problem(emission, is_split, outcomes).density.unconstrain(sites))[0]


@_jit
def _loss(values: jax.Array, outcomes: Outcomes, emission: emissions.Emission, is_split: bool) -> Any:
    problem = _problem(emission, is_split, outcomes)
    return jax.value_and_grad(lambda values: _variational.loss_at(problem, values, outcomes))(values)


@_jit
def _parameters(values: jax.Array, outcomes: Outcomes, emission: emissions.Emission, is_split: bool) -> Any:
    problem = _problem(emission, is_split, outcomes)
    model = _models.online(num_states=emission.num_states, emission=emission, is_split=is_split)
    return model.parameters(problem.density.constrain(problem.unravel(values)))
