"""The solve-state filter as a predictor: DPS with the exact emission, and its binomial relatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dps_jax.hmm import emissions, filtering
from dps_jax.hmm.transitions import TransitionPrior
from dps_jax.types import Prediction, Predictor


def hmm(prior: TransitionPrior, *, group_size: int = 8, is_compact: bool = False) -> Predictor:
    """Returns the predictor that filters every prompt's solve state.

    Args:
      prior: initial belief, prior counts, decay and emission.
      group_size: G of the groups that are predicted; the exact emission does not depend on it.
      is_compact: keep counts in 16 bits; see `filtering.init`.

    Source: DPS (arXiv 2603.10887).
    """
    value = emissions.informative_probs(prior.emission, group_size)
    success_rates = emissions.mean_success_rates(prior.emission)

    def init(num_prompts: int) -> filtering.FilterState:
        return filtering.init(num_prompts, prior, value, is_compact=is_compact)

    def predict(state: filtering.FilterState) -> Prediction:
        probs = filtering.predicted_probs(state, prior)
        success_rate = jnp.sum(probs * jnp.asarray(success_rates, probs.dtype)[:, None], axis=0)
        return Prediction(p_informative=state.predicted_value, success_rate=success_rate)

    def observe(
        state: filtering.FilterState,
        ids: jax.Array,
        successes: jax.Array,
        counts: jax.Array,
        axis_name: str | None = None,
    ) -> filtering.FilterState:
        return filtering.observe(state, prior, ids, successes, counts, value, axis_name=axis_name)

    return Predictor(
        init=init,
        predict=predict,
        observe=observe,
        predicted_probs=lambda state: filtering.predicted_probs(state, prior),
        num_impossible=lambda state: state.num_impossible,
    )
