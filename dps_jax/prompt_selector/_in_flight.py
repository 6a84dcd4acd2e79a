"""Prompts that were handed out and whose outcomes have not come yet."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A rollout can fail, and its outcome never come: a prompt is kept back for so many later batches.
MOST_BATCHES = 16


class InFlight(NamedTuple):
    """Prompts without an outcome, those handed out first at the beginning.

    Attributes:
      ids: distinct, int64 [F].
      batches: number of the batch in which each was handed out, int64 [F].
      is_turn: whether it was handed out because it had waited long enough, bool [F].
    """

    ids: np.ndarray
    batches: np.ndarray
    is_turn: np.ndarray

    def at(self, batch: int) -> InFlight:
        """Returns those that are still kept back from a batch of this number."""
        return self._where(batch - self.batches <= MOST_BATCHES)

    def without(self, ids: np.ndarray) -> InFlight:
        """Returns the others."""
        return self._where(~_are_among(self.ids, ids)) if self.ids.size else self

    def handed_out(self, ids: np.ndarray, is_turn: np.ndarray, batch: int) -> InFlight:
        """Returns these and the prompts of a batch; those that were in flight already are handed out anew."""
        waiting = self.without(ids)
        mine = InFlight(ids, np.full(ids.size, batch, np.int64), is_turn)
        return InFlight(*(np.concatenate(pair) for pair in zip(waiting, mine, strict=True)))

    def kept_back(self, candidates: np.ndarray | None, num_candidates: int, batch_size: int) -> InFlight:
        """Returns the prompts that are not to be picked.

        Where too few candidates are left for a batch, those handed out first may be picked again.

        Args:
          candidates: to choose from, int64 [M]; None is all prompts.
          num_candidates: M, or the number of all prompts.
          batch_size: B <= M.
        """
        mine = self if candidates is None or not self.ids.size else self._where(_are_among(self.ids, candidates))
        num_missing = max(batch_size - (num_candidates - mine.ids.size), 0)
        return InFlight(*(column[num_missing:] for column in mine))

    def _where(self, is_kept: np.ndarray) -> InFlight:
        return InFlight(*(column[is_kept] for column in self))


def _are_among(ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns np.isin(ids, others), several times faster for a few hundred."""
    if not others.size:
        return np.zeros(ids.size, bool)
    ordered = np.sort(others)
    return ordered[np.minimum(np.searchsorted(ordered, ids), ordered.size - 1)] == ids


def no_prompts() -> InFlight:
    """Returns no prompts in flight."""
    return InFlight(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
