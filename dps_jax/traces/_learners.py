"""Simulated learners in closed loop: their success rates move continuously, and with what they are trained on.

No model of this library is true of them. Written apart from the filters, in NumPy and float64.
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
    """How the success rates of simulated learners start and move, in logits.

    Attributes:
      ability: at the start; the mean difficulty is 0.
      group_spread: standard deviation of the difficulty between groups.
      prompt_spread: standard deviation of the difficulty within a group.
      transfer: what every prompt gains in a round.
      practice: what a prompt gains by a visit that finds it partially solved.
      forgetting: part of what practice brought that a prompt loses in a round without a visit, in [0, 1].
      noise: standard deviation of the random walk, per round.
      feature_noise: standard deviation of the noise in a feature that shows the difficulty, in units of the
        difficulty's own.
    """

    ability: float = 0.0
    group_spread: float = 1.5
    prompt_spread: float = 2.5
    transfer: float = 0.01
    practice: float = 0.6
    forgetting: float = 0.0
    noise: float = 0.05
    feature_noise: float = 1.0


REGIMES: dict[str, Regime] = {
    "mixed": Regime(),
    "hard": Regime(ability=-5.0, practice=1.0),
    "fast_drift": Regime(ability=-1.5, transfer=0.04, practice=1.0, noise=0.2),
    "forgetting": Regime(ability=-1.0, practice=1.5, forgetting=0.05),
    "grouped": Regime(group_spread=2.8, prompt_spread=0.7),
    # Two thirds of the variance are between groups, and two features leave a ninth of it open.
    "cold": Regime(ability=-1.5, group_spread=2.4, prompt_spread=1.7, transfer=0.02, feature_noise=0.5),
}


class Learners:
    """The success rates of N prompts, which rise, jump, fall and walk as they are trained on.

    The logit of a prompt's success rate starts at ability - difficulty. It rises a little in every round, jumps when a
    visit found the prompt partially solved (0 < m < G), loses part of these jumps again in rounds without a visit where
    the regime forgets, and walks at random. A round in closed loop:

        ids = selector.select(batch_size)
        successes = learners.rollout(ids, group_size)
        selector.observe(ids, successes, group_size)
        learners.step(ids, successes, group_size)

    Attributes:
      num_prompts: N.
      groups: of every prompt, int32 [N], 0 the easiest.
      features: of every prompt, float32 [N, 4], each of mean 0 and variance 1 over prompts: the first rises with the
        difficulty, the second falls with it, both with noise of their own; the last two are noise alone.
    """

    def __init__(self, rng: np.random.Generator, regime: str = "mixed", *, num_prompts: int = 2000):
        """Draws the prompts.

        Args:
          rng: the source of randomness, of the prompts now, and of rollouts and steps later.
          regime: a name in `REGIMES`; see `simulate_learners`.
          num_prompts: N.

        Raises:
          ValueError: for an unknown regime, with the known ones, another rng, or N below 1.
        """
        if not isinstance(rng, np.random.Generator):
            raise ValueError(f"rng: expected a numpy.random.Generator, got {rng!r}")
        _checks.check_choice("regime", regime, REGIMES)
        self.num_prompts = _checks.check_int("num_prompts", num_prompts, at_least=1)
        self._rng, self._regime = rng, REGIMES[regime]
        self.groups = rng.integers(_NUM_GROUPS, size=num_prompts, dtype=np.int32)
        self._logits = _first_logits(rng, self._regime, self.groups)
        self._practised = np.zeros(num_prompts)
        self.features = _features(rng, self._regime, self._logits)

    def rates(self, ids: Any = None) -> np.ndarray:
        """Returns the probability of a correct completion now, float64, inside (0, 1).

        Args:
          ids: of prompts, int [P]; all by default.

        Returns:
          [P], or [N] without ids.

        Raises:
          ValueError: for an id outside [0, N).
        """
        if ids is None:
            logits = self._logits + self._practised
        else:
            ids = _checks.check_ids("ids", ids, self.num_prompts)
            logits = self._logits[ids] + self._practised[ids]
        # Within limits, so that no rate is rounded to 1.
        return 1 / (1 + np.exp(-np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)))

    def rollout(self, ids: Any, group_size: int = 8) -> np.ndarray:
        """Returns the correct ones of G completions of each prompt, int64 [P]; nothing is learned from them.

        Args:
          ids: of prompts, int [P]; repeats are rolled out again.
          group_size: G.

        Raises:
          ValueError: for an id outside [0, N), or G below 1.
        """
        _checks.check_int("group_size", group_size, at_least=1)
        return self._rng.binomial(group_size, self.rates(ids))

    def step(self, ids: Any, successes: Any, counts: Any) -> None:
        """Trains on a round, and moves on to the next.

        Args:
          ids: of the prompts trained on, distinct, int [P]; none at all is a round too.
          successes: their correct completions, int [P].
          counts: their completions, int [P] or one int.

        Raises:
          ValueError: for an id outside [0, N) or given twice, or successes outside [0, count]; nothing is changed.
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
    """Returns what is known about prompts before any visit, float32 [N, 4]."""
    # A stream of its own, seeded by a copy: what `rng` draws next is the same with and without features.
    own = np.random.default_rng(copy.deepcopy(rng).integers(2**63, size=4))
    features = own.standard_normal((logits.size, _NUM_FEATURES), dtype=np.float32)
    difficulty = (regime.ability - logits) / np.hypot(regime.group_spread, regime.prompt_spread)
    for column, sign in enumerate((1, -1)):
        shown = sign * difficulty + regime.feature_noise * features[:, column]
        features[:, column] = shown / np.hypot(1, regime.feature_noise)
    return features
