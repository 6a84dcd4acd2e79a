"""The random pools that `PromptSelector.select` chooses from without candidates."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Least share of all prompts in a pool, for methods that use larger pools; measured in docs/when-selection-pays.md.
_SHARES = {"instructive": 0.25}


class Pools(NamedTuple):
    """The sizes of random pools.

    Attributes:
      num_prompts: number of prompts, N.
      factor: number of candidates per pick; 0 stands for all prompts.
      share: minimum share of all prompts in a pool.
    """

    num_prompts: int
    factor: int
    share: float

    def size(self, batch_size: int) -> int | None:
        """Returns the number of prompts in a pool for B picks; None for all prompts."""
        size = max(self.factor * batch_size, math.ceil(self.share * self.num_prompts)) if self.factor else math.inf
        return int(size) if size < self.num_prompts else None

    def drawn(self, batch_size: int, words: list[int]) -> np.ndarray | None:
        """Returns the ids of a pool, int64 [M], a function of the random words; None for all prompts."""
        size = self.size(batch_size)
        if size is None:
            return None
        return np.random.default_rng(words).choice(self.num_prompts, size, replace=False, shuffle=False)


def pools(num_prompts: int, factor: int, method: str, *, has_turns: bool) -> Pools:
    """Returns the pools of a method.

    Args:
      num_prompts: number of prompts, N.
      factor: number of candidates per pick; 0 stands for all prompts.
      method: name of the method, a key of `dps_jax.selectors.SELECTORS`.
      has_turns: whether the option max_wait is set, which needs a ranking of all prompts.
    """
    return Pools(num_prompts, 0 if has_turns else factor, _SHARES.get(method, 0.0))
