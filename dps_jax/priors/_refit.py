"""The prior of a running filter, fitted anew to what the run has seen lately."""

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

# What the mode is searched from must be inside the range of every site.
_SMALLEST = 1e-3


def refit(
    prior: TransitionPrior,
    trace: Trace,
    *,
    last_rounds: int = 50,
    max_prompts: int = 512,
    num_steps: int = 40,
) -> TransitionPrior:
    """Returns the mode of the model `online` on the last rounds of a trace, searched from the prior at hand.

    Takes the emission as known: what the states mean must not change under a running filter. The initial belief is
    fitted while the rounds used begin with round 0, and kept after that. A function of its arguments alone, so that a
    run that is resumed does the same again.

    Args:
      prior: without groups.
      trace: of the run so far.
      last_rounds: of the trace to use.
      max_prompts: a random part of the prompts seen in these rounds, if there are more.
      num_steps: evaluations of the loss at most.

    Raises:
      ValueError: for an empty trace, or a prior with groups.
    """
    if prior.groups:
        raise ValueError(f"prior: expected one without groups to refit, got {len(prior.groups)} groups")
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
    """Returns a prior as sites of the model `online`, strictly inside their ranges."""
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
    """Returns the same outcomes with rounds, prompts and kinds in which nothing was seen, up to sizes that recur."""
    # Powers of two, so that few shapes are ever compiled.
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
