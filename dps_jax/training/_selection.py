"""Builds the selector and the round of a run, from its config and the features of its prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dps_jax import selectors
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.models._placing import Placing, split_weights
from dps_jax.rl._rollout import SampleFn, ScoreFn
from dps_jax.training._mesh import of_prompts
from dps_jax.training._round import Round, make_round
from dps_jax.training._run_config import RunConfig
from dps_jax.types import Selector

_NUM_BINS = 10


class Prompts(NamedTuple):
    """The information about prompts that a selector may use.

    Attributes:
      groups: level or source of each prompt, index into `group_names`, int32 [N].
      features: features of each prompt, [N, D].
      group_names: names of the groups.
    """

    groups: np.ndarray
    features: np.ndarray
    group_names: Sequence[str]


def _check_quotas(quotas: Any, prompts: Prompts, known: str) -> None:
    """Raises ValueError unless there is a quota for each prompt group, and the method may use the groups."""
    if known == "none":
        raise ValueError(
            "selector.side_information: expected 'groups' or 'all' along with quotas, which are for prompt groups, "
            f"got {known!r}"
        )
    names = prompts.group_names
    if np.size(quotas) != len(names):
        raise ValueError(
            f"selector.options: expected quotas for the {len(names)} prompt groups ({', '.join(names)}), got {quotas!r}"
        )


def selector_options(
    config: RunConfig, prompts: Prompts, mesh: Mesh | None = None
) -> tuple[TransitionPrior | None, dict[str, Any]]:
    """Returns the prior of the method, or None, and all its options.

    The options are those that were set, and the information about prompts that the method may use.

    Raises:
      ValueError: if the prior has groups, but fewer than the prompts have.
    """
    names = selectors.option_names(config.selector.method)
    options = config.selector.method_options()
    prior = None
    if "prior" in names:
        prior = options["prior"] = config.selector.resolved_prior()
        if 0 < len(prior.groups) < len(prompts.group_names):
            raise ValueError(
                f"selector.prior: expected a prior with a group for each of the {len(prompts.group_names)} prompt "
                f"groups, got {len(prior.groups)} groups"
            )
    if "group_size" in names:
        options["group_size"] = config.rollout.group_size
    known = config.selector.side_information
    if options.get("quotas") is not None:
        _check_quotas(options["quotas"], prompts, known)
        options["groups"] = prompts.groups
    if "groups" in names and (prior is None or prior.groups) and known != "none":
        options["groups"] = prompts.groups
    if "features" in names and known == "all":
        options["features"] = prompts.features
    if mesh is not None:
        options["mesh"] = of_prompts(mesh)
    return prior, options


def build_round(
    config: RunConfig,
    selector: Selector,
    num_prompts: int,
    sample_fn: SampleFn,
    score_fn: ScoreFn | None,
    log_probs_fn: Callable[..., tuple[jax.Array, jax.Array]],
    placing: Placing | None = None,
) -> Round:
    """Returns the round of a run with N prompts; see `make_round`."""
    rollout = config.rollout
    return make_round(
        sample_fn,
        score_fn,
        log_probs_fn,
        selector,
        config.learner.build(log_probs_fn, num_prompts, num_devices=config.mesh.size),
        num_prompts=num_prompts,
        batch_size=rollout.batch_size,
        pool_size=config.selector.pool_size(rollout.batch_size, num_prompts),
        has_reference=config.learner.kl_coef != 0,
        max_batches=rollout.max_batches if rollout.collection == "dynamic" else None,
        place=functools.partial(split_weights, placing),
    )


def rate_shares(selector: Any, state: Any) -> jax.Array:
    """Returns the shares of all prompts by predicted success rate, in ten bins, [10]."""
    rates = selector.predict(state.selector).success_rate
    bins = jnp.clip((rates * _NUM_BINS).astype(jnp.int32), 0, _NUM_BINS - 1)
    return jnp.zeros(_NUM_BINS).at[bins].add(1 / rates.shape[0])
