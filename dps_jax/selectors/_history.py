"""History resampling (HR): uniform among the prompts that were not fully solved in this epoch."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.predictors import _history as history_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._ranking import MAX_NUM_PROMPTS
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def history(
    num_prompts: int,
    *,
    epoch_size: int | None = None,
    group_size: int = 8,
    mesh: Mesh | None = None,
    **acquisition: Unpack[AcquisitionOptions],
) -> Selector:
    r"""Returns the history-resampling selector, which picks at random among prompts not yet fully solved in this epoch.

    If all completions of a prompt were correct, the prompt is dropped until the epoch ends; all other prompts are
    picked at random. Dropped prompts are picked only if fewer than B others are left (B is the batch size), or if
    `max_wait` or `quotas` requires it. The score is $-\mathbb{1}[m = G \text{ at the last visit of this epoch}]$, where
    m of the G completions were correct. Only the order of these scores is meaningful, so the options `temperature` and
    `expected_tokens` require another score, set with the option `value` or `hardness`.

    The method is a published baseline that does not model success rates. It avoids rollouts of solved prompts, but not
    of unsolved ones.

    Args:
      num_prompts: number of prompts, N.
      epoch_size: number of observed completion groups in an epoch; None stands for N.
      group_size: number of completions per prompt, G. For prompts that are not dropped, `predict` uses the distribution
        of m over all prompts for groups of this size. The scores do not depend on this option.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **acquisition: options `value`, `hardness`, `expected_tokens`, `temperature`, `temperature_pool`, `explore`,
        `max_wait`, `quotas` and `groups`; `AcquisitionOptions` describes them.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.history(3, epoch_size=30)
      >>> visits = np.array([0, 1, 2]), np.array([0, 3, 8]), np.array([8, 8, 8])  # ids, successes, counts
      >>> state = jax.jit(selector.observe)(selector.init(jax.random.key(0)), *visits)
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 2)
      >>> sorted(ids.tolist())  # prompt 2 was solved
      [0, 1]

    Source: the baseline HR of DPS (arXiv 2603.10887), after SRPO (arXiv 2504.14286), which drops the prompts that were
    solved in the previous epoch.
    """
    num_prompts = _checks.check_int("num_prompts", num_prompts, at_least=1, at_most=MAX_NUM_PROMPTS)
    epoch_size = num_prompts if epoch_size is None else epoch_size
    predictor = history_predictor.history(epoch_size, group_size=group_size)
    return from_predictor(
        num_prompts,
        predictor,
        lambda state: -state.is_solved.astype(jnp.float32),
        is_ordinal=True,
        mesh=mesh,
        **acquisition,
    )
