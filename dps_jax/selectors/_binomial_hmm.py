"""The prompts with the largest P(0 < m < G) under a hidden Markov model of success rates that is learned online."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.predictors import _binomial_hmm as binomial_hmm_predictor
from dps_jax.selectors._composition import from_predictor
from dps_jax.selectors._options import AcquisitionOptions, WithoutChance
from dps_jax.selectors._registry import register
from dps_jax.types import Selector

# Default of `explore` with a temperature: this share of a batch is drawn regardless of scores.
_EXPLORE = 0.05


@register
def binomial_hmm(
    num_prompts: int,
    *,
    groups: Any = None,
    features: Any = None,
    num_states: int = 16,
    group_size: int = 8,
    decays: tuple[float, ...] = binomial_hmm_predictor.DECAYS,
    is_compact: bool = True,
    optimism: float = 1.0,
    hardness: float = 0.0,
    temperature: float = 0.05,
    explore: float | None = None,
    mesh: Mesh | None = None,
    **acquisition: Unpack[WithoutChance],
) -> Selector:
    r"""Returns the selector that ranks prompts by P(0 < m < G) under a model of success rates that is learned online.

    The hidden state of a prompt is its success rate $\theta_k$ on a grid. In state k, the probability that m of the G
    completions of the prompt are correct is

    $$p(m \mid k) = \binom{G}{m}\, \theta_k^m\, (1 - \theta_k)^{G - m}.$$

    The model learns the distribution of rates over prompts, by group if groups are given, and three transition
    matrices: for idle prompts, for visited prompts whose completions were all correct or all wrong, and for partially
    solved prompts. All of these are learned from all prompts, with several decays. Small networks correct the
    predictions; features are among their inputs. A prompt is scored by the mean of P(0 < m < G) with and without
    corrections, plus a bonus where the networks disagree (`optimism`). A low temperature and a small explored share
    (`explore`) keep the selector from neglecting prompts on little evidence. With more than 8192 prompts, a round
    updates the scores of the visited prompts and of one part of the others, and the parts take turns.

    The method is a good choice where the predictions themselves are of interest: in the comparison of
    docs/predictors.md, its log loss is the lowest of all methods or on a par with the lowest. To train a policy, prefer
    `instructive`, which uses the same predictions: the prompts with the largest P(0 < m < G) are mostly nearly solved.
    Where about half of the prompts are informative (0 < m < G), no method has an advantage over uniform selection; see
    docs/when-selection-pays.md.

    Args:
      num_prompts: number of prompts, N.
      groups: group of each prompt, int [N] in [-1, L); -1 for prompts whose group is not known. Prompts without recent
        visits are predicted by the distribution of success rates of their group. The option `quotas` refers to the same
        groups.
      features: features of the prompts, finite, [N, D], or None. Predictions for prompts without visits use them too.
      num_states: number of success rates on the grid, K.
      group_size: number of completions per prompt, G.
      decays: shares of the learned counts that survive a round, each in (0, 1]; one model is learned with each, and
        their predictions are averaged.
      is_compact: whether to store beliefs in 16 bits. A prompt then takes 2 K + 8 bytes, 4 more for each feature, and 1
        more for its group (4 if there are 255 groups or more).
      optimism: number of standard deviations over the networks that are added to the score. This option has no effect
        if the option `value` or `thompson` is set.
      hardness: exponent a >= 0 in the score E[(1 - m / G) ** a; 0 < m < G]; 0 is P(0 < m < G), and larger values prefer
        prompts with few correct completions. Has to be 0 along with `thompson=True` or `value="variance"`.
      temperature: 0 picks the best prompts; above 0, prompts are drawn with weights score ** (1 / temperature).
      explore: approximate share of a batch, in [0, 1), that is drawn independently of the scores; None stands for 0.05
        with a temperature above 0, and for 0 without.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **acquisition: options `value`, `thompson`, `expected_tokens`, `temperature_pool`, `max_wait` and `quotas`;
        `AcquisitionOptions` describes them.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> selector = selectors.binomial_hmm(6, groups=[0, 0, 0, 1, 1, 1])
      >>> state = selector.init(jax.random.key(0))
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 2)
      >>> len(set(ids.tolist())), bool((info.inclusion_probs <= 1).all())
      (2, True)

    Source: recursive EM, Cappé and Moulines, arXiv 0712.4273; the combination is ours. docs/laboratory.md describes the
    variants that were tried.
    """
    if groups is not None:
        _checks.check_groups(groups, num_prompts)
    if features is not None:
        _checks.check_features(features, num_prompts)
    predictor = binomial_hmm_predictor.binomial_hmm(
        group_ids=groups,
        features=features,
        num_states=num_states,
        group_size=group_size,
        decays=decays,
        is_compact=is_compact,
        optimism=optimism,
        hardness=hardness,
    )
    _checks.check_number("temperature", temperature, at_least=0)
    if explore is None:
        explore = _EXPLORE if temperature else 0.0
    options: AcquisitionOptions = {**acquisition, "groups": groups, "temperature": temperature, "explore": explore}
    if acquisition.get("value") is not None or acquisition.get("thompson") is True:
        # Prompts are then not ranked by the predictor's own score, which contains the hardness.
        options["hardness"] = hardness
    return from_predictor(num_prompts, predictor, lambda state: state.score, mesh=mesh, **options)
