"""Tunes the scale of the prior counts and the decay of a filter such that the filter predicts a trace well."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax.hmm import emissions, online
from dps_jax.hmm._transitions import TransitionPrior, check_group_ids
from dps_jax.priors._outcomes import Outcomes

DECAYS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
# With more cells (rounds x prompts), a random subset of the prompts is used, which suffices for two numbers.
_MAX_CELLS = 300_000


def _tables(prior: TransitionPrior, field: str, groups: np.ndarray | None) -> Any:
    """Returns a field of the prior for each prompt, with the prompts on the last axis, or one field for all prompts."""
    whole = getattr(prior, field)
    if whole is None or not prior.groups or groups is None:
        return whole
    every = np.stack([*(getattr(group, field) for group in prior.groups), whole])
    return np.moveaxis(every[groups], 0, -1)


@functools.partial(jax.jit, static_argnames=("emission", "is_belief"))
def _filter(tables, decay, outcomes, emission, is_belief):
    dtype = tables["concentration"].dtype
    logs = emissions.log_likelihood(emission, outcomes.successes, outcomes.counts, dtype)[:, outcomes.codes]
    fn = online.predicted_probs if is_belief else online.log_predictive_probs
    rest = decay, jnp.moveaxis(logs, 0, 1), outcomes.codes > 0, tables.get("trained_concentration")
    return fn(tables["initial_probs"], tables["concentration"], *rest)


def _run(prior: TransitionPrior, outcomes: Outcomes, *, is_belief: bool) -> jax.Array:
    if prior.groups and outcomes.groups is None:
        raise ValueError(f"outcomes: expected groups for a prior with {len(prior.groups)} groups, got none")
    groups = None if outcomes.groups is None else np.asarray(outcomes.groups)
    if groups is not None and (prior.group_ids or outcomes.group_ids is not None):
        names = outcomes.group_ids
        called = groups if names is None else np.where(groups < 0, -1, names[np.maximum(groups, 0)])
        groups = check_group_ids("outcomes.groups", called, prior)
    elif prior.groups and groups is not None and groups.max() >= len(prior.groups):
        raise ValueError(
            f"outcomes.groups: expected ids below {len(prior.groups)}, the groups of the prior, got {groups.max()}"
        )
    fields = ("initial_probs", "concentration", "trained_concentration")
    tables = {field: _tables(prior, field, groups) for field in fields}
    tables = {field: jnp.asarray(table, float) for field, table in tables.items() if table is not None}
    return _filter(tables, prior.decay, outcomes, prior.emission, is_belief)


def log_predictive_probs(prior: TransitionPrior, outcomes: Outcomes) -> jax.Array:
    """Returns the log probability of each outcome, predicted by the filter from the earlier rounds, nats, [T, N].

    Binomial coefficients are omitted. The result is 0 where a prompt was not rolled out, and the sum over rounds and
    prompts is the log evidence.

    Args:
      prior: prior of the filter.
      outcomes: outcomes as returned by `prepare`.

    Raises:
      ValueError: if the prior has groups and the outcomes have none.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm, priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> prior = hmm.TransitionPrior(np.full(3, 1 / 3), np.full((3, 3), 1.0), decay=0.9)
      >>> log_probs = priors.log_predictive_probs(prior, outcomes)
      >>> log_probs.shape == outcomes.codes.shape, bool(log_probs.sum() < 0)
      (True, True)
    """
    return _run(prior, outcomes, is_belief=False)


def predicted_probs(prior: TransitionPrior, outcomes: Outcomes) -> jax.Array:
    """Returns the belief of the filter about the state in each round, given the earlier rounds, [T, K, N].

    Args:
      prior: prior of the filter.
      outcomes: outcomes as returned by `prepare`.

    Raises:
      ValueError: if the prior has groups and the outcomes have none.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm, priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> prior = hmm.TransitionPrior(np.full(3, 1 / 3), np.full((3, 3), 1.0), decay=0.9)
      >>> belief = priors.predicted_probs(prior, outcomes)
      >>> belief.shape[:2], bool(np.allclose(belief[0], 1 / 3))  # in round 0, the belief is initial_probs
      ((8, 3), True)
    """
    return _run(prior, outcomes, is_belief=True)


def scale(prior: TransitionPrior, strength: float, decay: float) -> TransitionPrior:
    """Returns the prior with the given decay, and with rows of `concentration` that sum to `strength` on average."""
    factor = strength / float(np.mean(prior.concentration.sum(axis=1)))

    def change(one: TransitionPrior, **more: Any) -> TransitionPrior:
        trained = None if one.trained_concentration is None else factor * one.trained_concentration
        return dataclasses.replace(
            one, concentration=factor * one.concentration, trained_concentration=trained, decay=decay, **more
        )

    return change(prior, groups=tuple(change(group) for group in prior.groups))


def tune(prior: TransitionPrior, outcomes: Outcomes) -> TransitionPrior:
    """Returns the prior, with its counts scaled and its decay set such that the filter predicts a trace best.

    Models other than "online" determine the mean transition matrix, but not how fast the filter should learn and forget
    the transitions of a single prompt. This function chooses both numbers from a grid, by `log_predictive_probs`, on a
    random subset of the prompts if the trace is large. It returns the prior unchanged if no point of the grid predicts
    better.

    Args:
      prior: prior of the filter.
      outcomes: outcomes as returned by `prepare`.

    Raises:
      ValueError: if the prior has groups and the outcomes have none.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm, priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> prior = hmm.TransitionPrior(np.full(3, 1 / 3), np.full((3, 3), 1.0), decay=0.9)
      >>> tuned = priors.tune(prior, outcomes)
      >>> log_probs = [float(priors.log_predictive_probs(each, outcomes).sum()) for each in (prior, tuned)]
      >>> log_probs[0] <= log_probs[1]
      True
    """
    num_kept = max(_MAX_CELLS // outcomes.num_rounds, 1)
    if num_kept < outcomes.num_prompts:
        kept = np.random.default_rng(0).permutation(outcomes.num_prompts)[:num_kept]
        outcomes = outcomes.take(np.sort(kept))
    tried: list[tuple[float, TransitionPrior]] = [(float(log_predictive_probs(prior, outcomes).sum()), prior)]
    for value in STRENGTHS:
        # With the strongest prior nothing is learned, so that the decay has no effect.
        for decay in DECAYS if value < STRENGTHS[-1] else DECAYS[:1]:
            scaled = scale(prior, value, decay)
            tried.append((float(log_predictive_probs(scaled, outcomes).sum()), scaled))
    return max(tried, key=lambda pair: pair[0])[1]
