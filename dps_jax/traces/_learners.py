"""Simulated learners in closed loop: success rates that change continuously and depend on the prompts trained on.

They are not samples from any model of this library, so that every model is misspecified for them. The code is
independent of the filters, in NumPy and float64.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from dps_jax import _checks

_NUM_GROUPS = 6
_NUM_FEATURES = 4
_LARGEST_LOGIT = 10.0


@dataclasses.dataclass(frozen=True)
class Regime:
    """How the success rates of simulated learners start and change; quantities without a unit are logits.

    Attributes:
      ability: ability at the start; the logit of a success rate is ability - difficulty, and the mean difficulty is 0.
      group_spread: standard deviation of the mean difficulty of prompt groups.
      prompt_spread: standard deviation of the difficulty of prompts within a prompt group.
      transfer: gain of every prompt in every round, visited or not.
      practice: gain of a prompt from a visit in which it is partially solved.
      forgetting: share of its gain from practice that a prompt loses in each round without a visit, in [0, 1].
      noise: standard deviation of the steps of a random walk, per round.
      feature_noise: standard deviation of the noise in the two features that depend on the difficulty, in units of the
        standard deviation of the difficulty.

    Example:
      >>> import numpy as np
      >>> from dps_jax import traces
      >>> traces.REGIMES["hard"].ability < traces.REGIMES["mixed"].ability
      True
      >>> sorted(name for name, regime in traces.REGIMES.items() if regime.forgetting > 0)
      ['forgetting']
      >>> regime = traces.Regime(ability=-3.0, practice=0.2)
      >>> learners = traces.Learners(np.random.default_rng(0), regime, num_prompts=50)
      >>> learners.rates().shape
      (50,)

    Raises:
      ValueError: for a negative spread, noise or forgetting, or a forgetting above 1.
    """

    ability: float = 0.0
    group_spread: float = 1.5
    prompt_spread: float = 2.5
    transfer: float = 0.01
    practice: float = 0.6
    forgetting: float = 0.0
    noise: float = 0.05
    feature_noise: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            at_least = None if field.name in ("ability", "transfer", "practice") else 0
            _checks.check_number(field.name, getattr(self, field.name), at_least=at_least)
        _checks.check_in_interval("forgetting", self.forgetting, 0.0, 1.0)


REGIMES: dict[str, Regime] = {
    "mixed": Regime(),
    "hard": Regime(ability=-5.0, practice=1.0),
    "fast_drift": Regime(ability=-1.5, transfer=0.04, practice=1.0, noise=0.2),
    "forgetting": Regime(ability=-1.0, practice=1.5, forgetting=0.05),
    "grouped": Regime(group_spread=2.8, prompt_spread=0.7),
    # Two thirds of the variance of the difficulty are between groups; the two features leave a ninth of it unexplained.
    "cold": Regime(ability=-1.5, group_spread=2.4, prompt_spread=1.7, transfer=0.02, feature_noise=0.5),
}


def resolved_regime(regime: str | Regime) -> Regime:
    """Returns a regime by its name, or as it is."""
    if isinstance(regime, Regime):
        return regime
    _checks.check_choice("regime", regime, REGIMES)
    return REGIMES[regime]


class Learners:
    """Success rates of N prompts that change as a simulated policy is trained on some of them.

    The logit of a prompt's success rate starts at ability - difficulty. The logit rises a little in every round, jumps
    after a visit in which the prompt is partially solved (0 < m < G, with m of G completions correct), and follows a
    random walk. If the regime has forgetting, a prompt loses part of the gain from its jumps in each round without a
    visit. See `Regime` for the parameters.

    Attributes:
      num_prompts: number of prompts, N.
      groups: prompt group of every prompt, int32 [N]; 0 is the easiest.
      features: features of every prompt, float32 [N, 4], each with expectation 0 and variance 1. The first rises with
        the difficulty and the second falls with it, with independent noise; the last two are noise alone.

    Example:
      >>> import dps_jax, numpy as np
      >>> from dps_jax import traces
      >>> learners = traces.Learners(np.random.default_rng(0), "mixed", num_prompts=100)
      >>> selector = dps_jax.PromptSelector(num_prompts=100, method="uniform", seed=0)
      >>> ids = selector.select(batch_size=8)
      >>> successes = learners.rollout(ids, group_size=8)
      >>> selector.observe(ids, successes, counts=8)
      >>> before = learners.rates(ids)
      >>> learners.step(ids, successes, counts=8)
      >>> bool(learners.rates(ids).mean() > before.mean())  # these prompts have become easier
      True
    """

    def __init__(self, rng: np.random.Generator, regime: str | Regime = "mixed", *, num_prompts: int = 2000):
        """Draws the prompts.

        Args:
          rng: source of randomness of the prompts, and of later rollouts and steps.
          regime: name of a regime in `REGIMES`, which `simulate_learners` describes, or a `Regime`.
          num_prompts: number of prompts, N.

        Raises:
          ValueError: for an unknown regime (the message lists the known ones), an rng that is not a NumPy generator, or
            N below 1.
        """
        if not isinstance(rng, np.random.Generator):
            raise ValueError(f"rng: expected a numpy.random.Generator, got {rng!r}")
        self._regime = resolved_regime(regime)
        self.num_prompts = _checks.check_int("num_prompts", num_prompts, at_least=1)
        self._rng = rng
        self.groups = rng.integers(_NUM_GROUPS, size=num_prompts, dtype=np.int32)
        self._logits = _first_logits(rng, self._regime, self.groups)
        self._practised = np.zeros(num_prompts)
        self.features = _features(rng, self._regime, self._logits)

    def rates(self, ids: Any = None) -> np.ndarray:
        """Returns the current success rates of prompts.

        Args:
          ids: ids of the prompts, int [P]; None stands for all prompts.

        Returns:
          Probabilities of a correct completion, inside (0, 1), float64 [P], or [N] without ids.

        Raises:
          ValueError: for an id outside [0, N).
        """
        if ids is None:
            logits = self._logits + self._practised
        else:
            ids = _checks.check_ids("ids", ids, self.num_prompts)
            logits = self._logits[ids] + self._practised[ids]
        # Clipped, so that no rate is rounded to 1.
        return 1 / (1 + np.exp(-np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)))

    def rollout(self, ids: Any, group_size: int = 8) -> np.ndarray:
        """Returns how many of G sampled completions of each prompt are correct, int64 [P]; success rates stay the same.

        Args:
          ids: ids of the prompts, int [P]; a repeated id is rolled out again.
          group_size: number of completions per prompt, G.

        Raises:
          ValueError: for an id outside [0, N), or G below 1.
        """
        _checks.check_int("group_size", group_size, at_least=1)
        return self._rng.binomial(group_size, self.rates(ids))

    def step(self, ids: Any, successes: Any, counts: Any) -> None:
        """Changes the success rates by training on the outcomes of one round.

        Args:
          ids: ids of the prompts trained on, distinct, int [P]; P may be 0.
          successes: number of correct completions of each prompt, int [P].
          counts: number of completions of each prompt, int [P], or one int for all prompts.

        Raises:
          ValueError: for an id outside [0, N) or given twice, or successes outside [0, count]; nothing is changed then.
        """
        ids = _checks.check_ids("ids", ids, self.num_prompts, is_distinct=True)
        successes, counts = _checks.check_outcomes(successes, counts, ids.size)
        regime = self._regime
        is_partial = (successes > 0) & (successes < counts)
        practised_of_visited = self._practised[ids] + regime.practice * is_partial
        self._practised *= 1 - regime.forgetting
        self._practised[ids] = practised_of_visited
        self._logits += regime.transfer + regime.noise * self._rng.standard_normal(self.num_prompts)


def _first_logits(rng: np.random.Generator, regime: Regime, groups: np.ndarray) -> np.ndarray:
    """Returns ability - difficulty, [N]; the mean difficulties of the groups are evenly spaced."""
    levels = np.arange(_NUM_GROUPS) - (_NUM_GROUPS - 1) / 2
    difficulty = regime.group_spread * (levels / levels.std())[groups]
    return regime.ability - difficulty - regime.prompt_spread * rng.standard_normal(groups.size)


def _features(rng: np.random.Generator, regime: Regime, logits: np.ndarray) -> np.ndarray:
    """Returns the features of prompts, float32 [N, 4]."""
    # A separate stream, seeded by a copy of `rng`: later draws of `rng` are the same with and without features.
    own = np.random.default_rng(copy.deepcopy(rng).integers(2**63, size=4))
    features = own.standard_normal((logits.size, _NUM_FEATURES), dtype=np.float32)
    difficulty = (regime.ability - logits) / np.hypot(regime.group_spread, regime.prompt_spread)
    for column, sign in enumerate((1, -1)):
        shown = sign * difficulty + regime.feature_noise * features[:, column]
        features[:, column] = shown / np.hypot(1, regime.feature_noise)
    return features
