"""Random draws of informative prompts, with a preference for hard ones, by the predictions of `binomial_hmm`."""

from __future__ import annotations

from typing import Any, Unpack

from jax.sharding import Mesh

from dps_jax import _checks
from dps_jax.selectors._binomial_hmm import binomial_hmm
from dps_jax.selectors._options import WithoutPool
from dps_jax.selectors._registry import register
from dps_jax.types import Selector


@register
def instructive(
    num_prompts: int,
    *,
    groups: Any = None,
    features: Any = None,
    group_size: int = 8,
    hardness: float = 1.0,
    temperature: float = 0.3,
    temperature_pool: float | None = 32.0,
    optimism: float = 1.0,
    explore: float | None = None,
    mesh: Mesh | None = None,
    **acquisition: Unpack[WithoutPool],
) -> Selector:
    r"""Returns the selector that draws informative prompts with a preference for hard ones.

    A prompt is informative if 0 < m < G, where m of its G completions are correct. The selector uses the predictions of
    `binomial_hmm`, but does not pick the prompts with the largest P(0 < m < G), because such batches consist of
    similar, mostly nearly solved prompts. Instead, the value of an informative prompt is its share of wrong
    completions: of two prompts that are informative with the same probability, the harder one is preferred. Prompts are
    drawn at random by this value, which spreads a batch over all success rates. The draws are without replacement, with
    weights

    $$w = \mathrm{E}\left[(1 - m / G)^{a};\; 0 < m < G\right]^{1 / T},$$

    with the hardness $a$ and the temperature $T$, which is lower for larger pools of candidates. `SelectInfo` reports
    the inclusion probabilities of the picks.

    The method is recommended where few prompts are informative. The gain is largest where groups (levels) or features
    indicate which prompts are informative, because then even the first visits are well chosen. Where about half of the
    prompts are informative, uniform selection is as good and simpler. The time that the predictor adds to a round does
    not depend on the size of the policy, so it matters only for very small policies. The measurements are in
    docs/when-selection-pays.md.

    Args:
      num_prompts: number of prompts, N.
      groups: group of each prompt (level, source, topic), int [N] in [-1, L); -1 for prompts whose group is not known.
        The option `quotas` refers to the same groups.
      features: features of the prompts, finite, [N, D], or None.
      group_size: number of completions per prompt, G.
      hardness: exponent $a$ >= 0; above 0, prompts with few correct completions are preferred. Has to be 0 along with
        `thompson=True` or `value="variance"`.
      temperature: temperature $T$ >= 0; 0 picks the prompts with the highest expectation, and 1 draws in proportion to
        the expectation.
      temperature_pool: number of candidates per pick that the temperature is meant for; with more candidates, most of
        which have small weights, the temperature is lower. None uses the same temperature for all pools.
      optimism: number of standard deviations over the networks of `binomial_hmm` that are added to the expectation, to
        favour prompts about which the networks disagree.
      explore: approximate share of a batch that is drawn independently of the expectation; None uses the default of
        `binomial_hmm`.
      mesh: `jax.sharding.Mesh` with one axis of any type, along which the prompts are sharded; None for one device.
      **acquisition: options `value`, `thompson`, `expected_tokens`, `max_wait` and `quotas`; `AcquisitionOptions`
        describes them.

    Raises:
      ValueError: if an option is out of range; the message names the option.

    Example:
      >>> import jax
      >>> from dps_jax import selectors
      >>> levels = [0, 0, 0, 1, 1, 1]  # prompts of two difficulty levels
      >>> selector = selectors.instructive(6, groups=levels, group_size=8)
      >>> state = selector.init(jax.random.key(0))
      >>> ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), 2)
      >>> ids.shape, info.inclusion_probs.shape
      ((2,), (2,))
    """
    _checks.check_number("temperature", temperature, at_least=0)
    return binomial_hmm(
        num_prompts,
        groups=groups,
        features=features,
        group_size=group_size,
        hardness=hardness,
        temperature=temperature,
        temperature_pool=temperature_pool if temperature else None,
        optimism=optimism,
        explore=explore,
        mesh=mesh,
        **acquisition,
    )
