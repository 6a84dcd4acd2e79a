"""The random pools that `PromptSelector.select` chooses from where it is given no candidates."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Least share of all prompts in a pool, of methods that draw from more of them; measured in docs/when-selection-pays.md.
_SHARES = {"instructive": 0.25}


class Pools(NamedTuple):
    """How pools are drawn.

    Attributes:
      num_prompts: N.
      factor: prompts of a pool per pick; 0 is all prompts.
      share: least share of all prompts in a pool.
    """

    num_prompts: int
    factor: int
    share: float

    def size(self, batch_size: int) -> int | None:
        """Returns the number of prompts in a pool for B picks; None where it would be all of them."""
        size = max(self.factor * batch_size, math.ceil(self.share * self.num_prompts)) if self.factor else math.inf
        return int(size) if size < self.num_prompts else None

    def drawn(self, batch_size: int, words: list[int]) -> np.ndarray | None:
        """Returns the ids of a pool, int64 [M], which follow from the words; None for all prompts."""
        size = self.size(batch_size)
        if size is None:
            return None
        return np.random.default_rng(words).choice(self.num_prompts, size, replace=False, shuffle=False)


def pools(num_prompts: int, factor: int, method: str, *, has_turns: bool) -> Pools:
    """Returns how the pools of a method are drawn.

    Args:
      num_prompts: N.
      factor: prompts of a pool per pick; 0 is all prompts.
      method: a name of `dps_jax.selectors.SELECTORS`.
      has_turns: whether prompts get their turn by `max_wait`, for which all of them have to be ranked.
    """
    return Pools(num_prompts, 0 if has_turns else factor, _SHARES.get(method, 0.0))
