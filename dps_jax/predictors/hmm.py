"""The solve-state filter as a predictor: DPS with the exact emission, and its binomial relatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax.hmm import emissions, filtering
from dps_jax.hmm.transitions import TransitionPrior, check_group_ids
from dps_jax.predictors import draws
from dps_jax.predictors.side_information import of_prompts
from dps_jax.types import Prediction, Predictor


def hmm(prior: TransitionPrior, *, group_ids: Any = None, group_size: int = 8, is_compact: bool = False) -> Predictor:
    """Returns the predictor that filters every prompt's solve state.

    Args:
      prior: initial belief, prior counts, decay and emission.
      group_ids: int [N] in [-1, M), the group of each prompt for a prior with M groups; -1 where it is not known, which
        is also what prompts past the end get. None: none is known.
      group_size: G of the groups that are predicted.
      is_compact: keep counts in 16 bits; see `filtering.init`.

    Raises:
      ValueError: for a group id out of range. `with_prior` raises it for a prior that is not built like this one.

    Source: DPS (arXiv 2603.10887).
    """
    emission, num_groups, own_ids = prior.emission, len(prior.groups), prior.group_ids
    value = emissions.informative_probs(emission, group_size)
    success_rates = emissions.mean_success_rates(emission)
    variances = emissions.reward_variances(emission, group_size)
    probs_of_states = emissions.outcome_probs(emission, group_size)
    if group_ids is not None:
        # The spare last entry is for prompts past the end.
        group_ids = np.append(check_group_ids("group_ids", group_ids, prior), -1).astype(np.int32)

    def init(num_prompts: int, first_id: Any = 0) -> filtering.FilterState:
        local_ids = None
        if group_ids is not None and num_groups:
            local_ids = of_prompts(group_ids, num_prompts, first_id)
        return filtering.init(num_prompts, prior, value, group_ids=local_ids, is_compact=is_compact)

    def predict(state: filtering.FilterState) -> Prediction:
        probs = filtering.predicted_probs(state)
        expected = lambda values: jnp.sum(probs * jnp.asarray(values, probs.dtype)[:, None], axis=0)
        return Prediction(state.predicted_value, expected(success_rates), expected(variances))

    def predicted_probs(state: filtering.FilterState, positions: jax.Array | None = None) -> jax.Array:
        return filtering.predicted_probs(state if positions is None else filtering.of_some(state, positions))

    def outcome_probs(state: filtering.FilterState, positions: jax.Array) -> jax.Array:
        probs = predicted_probs(state, positions)
        return jnp.asarray(probs_of_states, probs.dtype) @ probs

    def draw(state: filtering.FilterState, bits: jax.Array) -> Prediction:
        drawn = draws.state_of(filtering.predicted_probs(state), bits[0])
        return Prediction(*(jnp.asarray(values, jnp.float32)[drawn] for values in (value, success_rates, variances)))

    def observe(
        state: filtering.FilterState,
        ids: jax.Array,
        successes: jax.Array,
        counts: jax.Array,
        axis_name: str | None = None,
    ) -> filtering.FilterState:
        return filtering.observe(state, emission, ids, successes, counts, value, axis_name=axis_name)

    def with_prior(state: filtering.FilterState, prior: TransitionPrior) -> filtering.FilterState:
        if prior.emission != emission:
            raise ValueError(f"prior: expected the emission {emission}, got {prior.emission}")
        if prior.group_ids != own_ids:
            raise ValueError(
                f"prior: expected groups with the ids {own_ids or 'of their places'}, got {prior.group_ids}"
            )
        return filtering.with_prior(state, prior, value)

    return Predictor(
        init=init,
        predict=predict,
        observe=observe,
        outcome_probs=outcome_probs,
        draw=draw,
        predicted_probs=predicted_probs,
        num_impossible=lambda state: state.num_impossible,
        with_prior=with_prior,
    )
