"""A queue of three tiers: partially solved at the last visit, never visited, solved or unsolved at the last visit."""

from __future__ import annotations

from typing import Unpack

from jax.sharding import Mesh

from dps_jax.predictors import _queue as queue_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def queue(
    num_prompts: int, *, group_size: int = 8, mesh: Mesh | None = None, **acquisition: Unpack[AcquisitionOptions]
) -> Selector:
    r"""Returns the selector that picks the first B prompts of a queue, where B is the batch size.

    The queue has three tiers. First come prompts that were partially solved at their last visit, the most recent visits
    first. Then come prompts without visits, in random order. Last come prompts that were solved or unsolved at their
    last visit, the earliest visits first. With the age of the last visit in rounds, this is the order of the score

    $$\text{score} = L - \text{age}, \qquad 0, \qquad \text{age} - L$$

    for the three tiers and a large $L$. Only the order of these scores is meaningful, so the options `temperature` and
    `expected_tokens` require another score, set with the option `value` or `hardness`.

    The method is a baseline that has no parameters and does not model success rates. It shows how well selection works
    with nothing but the last outcome and its age, and uses neither groups nor features to predict. docs/predictors.md
    compares the predictions of all methods.

    Args:
      num_prompts: number of prompts, N.
      group_size: number of completions per prompt, G.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **acquisition: options `value`, `hardness`, `expected_tokens`, `temperature`, `temperature_pool`, `explore`,
        `max_wait`, `quotas` and `groups`; `AcquisitionOptions` describes them.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.queue(3)
      >>> visits = np.array([0, 1, 2]), np.array([0, 3, 8]), np.array([8, 8, 8])  # ids, successes, counts
      >>> state = jax.jit(selector.observe)(selector.init(jax.random.key(0)), *visits)
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 1)
      >>> ids.tolist()
      [1]
    """
    return from_predictor(
        num_prompts,
        queue_predictor.queue(group_size=group_size),
        queue_predictor.rank_score,
        is_ordinal=True,
        mesh=mesh,
        **acquisition,
    )
