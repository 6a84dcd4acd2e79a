"""Dynamics-Predictive Sampling: the prompts with the highest predicted probability of being partially solved."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.hmm._transitions import check_group_ids, resolve_prior
from dps_jax.predictors._hmm import hmm
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import WithoutGroups
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def dps(
    num_prompts: int,
    *,
    groups: Any = None,
    decay: Any = None,
    prior: Any = "uniform",
    initial: Any = None,
    num_states: int | None = None,
    group_size: int = 8,
    is_compact: bool = False,
    mesh: Mesh | None = None,
    **acquisition: Unpack[WithoutGroups],
) -> Selector:
    r"""Returns the Dynamics-Predictive Sampling selector, which picks the B prompts with the largest P(0 < m < G).

    B is the batch size, and m of the G completions of a prompt are correct. Each prompt has a hidden solve state
    (unsolved, partially solved or solved) that follows a Markov chain. The selector filters the belief $b_t$ about the
    state of round $t$. It also learns a transition matrix for each prompt: its rows have Dirichlet posteriors whose
    parameters $C_t$ start at the prior $C_0$, grow by the expected transitions $\xi_t$ of each visit, and decay towards
    $C_0$ with every round. A prompt is scored by the predicted probability that it is partially solved next,

    $$C_t = \lambda C_{t-1} + (1 - \lambda) C_0 + \xi_t, \qquad
    \text{score} = (b_t\, A(C_t))_{\text{partially solved}}, \qquad A(C)_{ij} = C_{ij} / \textstyle\sum_k C_{ik}.$$

    A prior with another emission, such as a `TransitionPrior` that was fitted by `dps_jax.priors`, has other states,
    and the score is then the expectation of P(0 < m < G). All prompts advance in every round.

    The method is the published baseline. It is also a good choice where few prompts are informative (0 < m < G),
    neither groups nor features distinguish them, and prompts are visited more than once: with decay=1, which keeps all
    counts, the policy then learns as much as with `instructive`. The best decay depends on the prompts;
    docs/when-selection-pays.md compares several. Features are not used, and groups are used only through a prior with
    groups. Without such a prior, the method cannot choose well among prompts without visits; `instructive` can.

    Args:
      num_prompts: number of prompts, N.
      groups: group of each prompt, int [N]: an id of one of the L groups of the prior (0, ..., L - 1 unless the prior
        has `group_ids`), or -1 if it is not known. None means that no group is known. These groups affect predictions
        only if the prior has groups, too; the option `quotas` refers to the same groups, in the order of the prior.
      decay: share $\lambda$ of the learned transition counts that survives a round, in [0, 1]; may be a traced scalar.
        None keeps the decay of the prior, which is 0.7 for a prior given by name.
      prior: "uniform", "progress", "stability", "local" (see `dps_jax.hmm.named_concentration`), a [K, K] array of
        Dirichlet parameters with row i for transitions out of state i, a `TransitionPrior`, or the path of a saved
        prior.
      initial: belief before the first round: "uniform", the index of a state that has probability 1, or [K]
        probabilities. None keeps the belief of the prior, which is uniform for a prior given by name.
      num_states: number of states, K: 2, 3, 5 or 7 with the exact emission, under which m determines the state. None
        keeps the number of states of the prior, which is 3 for a prior given by name.
      group_size: number of completions per prompt, G. With the exact emission, P(0 < m < G) does not depend on it, but
        the expected variance of correctness and the scores under `hardness` may.
      is_compact: whether to store transition counts in 16 bits, so that with K = 3 a prompt takes 30 bytes instead of
        48.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **acquisition: options `value`, `hardness`, `thompson`, `expected_tokens`, `temperature`, `temperature_pool`,
        `explore`, `max_wait` and `quotas`; `AcquisitionOptions` describes them.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dps_jax import selectors
      >>> selector = selectors.dps(3, decay=0.9)
      >>> visits = np.array([0, 1, 2]), np.array([0, 3, 8]), np.array([8, 8, 8])  # ids, successes, counts
      >>> state = jax.jit(selector.observe)(selector.init(jax.random.key(0)), *visits)
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 1)
      >>> ids.tolist()
      [1]

    Source: DPS (arXiv 2603.10887). Departures: ties are broken at random, and all prompts advance in every round,
    whereas the published code advances only prompts that were candidates before.
    """
    _checks.check_group_size(group_size)
    _checks.check_bool("is_compact", is_compact)
    resolved = resolve_prior(prior, initial=initial, decay=decay, num_states=num_states)
    positions = None if groups is None else check_group_ids("groups", groups, resolved, num_prompts)
    predictor = hmm(resolved, group_ids=groups, group_size=group_size, is_compact=is_compact)
    return from_predictor(
        num_prompts, predictor, lambda state: state.predicted_value, groups=positions, mesh=mesh, **acquisition
    )
