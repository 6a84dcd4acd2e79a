"""Prompts in flight: selected prompts whose outcomes are not known yet."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A prompt in flight is not selected again in so many later batches; after that, its rollout is taken to have failed.
MOST_BATCHES = 16


class InFlight(NamedTuple):
    """Selected prompts without an outcome, in the order in which they were selected.

    Attributes:
      ids: ids of the prompts, distinct, int64 [F].
      batches: number of the batch in which each prompt was selected, int64 [F].
      is_turn: whether the prompt was selected because of `max_wait`, bool [F].
    """

    ids: np.ndarray
    batches: np.ndarray
    is_turn: np.ndarray

    def at(self, batch: int) -> InFlight:
        """Returns the prompts that are still in flight when the batch with this number is selected."""
        return self._where(batch - self.batches <= MOST_BATCHES)

    def without(self, ids: np.ndarray) -> InFlight:
        """Returns the prompts in flight except those with some ids."""
        return self._where(~_are_among(self.ids, ids)) if self.ids.size else self

    def handed_out(self, ids: np.ndarray, is_turn: np.ndarray, batch: int) -> InFlight:
        """Returns these prompts and the prompts of a batch, which count as selected in this batch."""
        waiting = self.without(ids)
        mine = InFlight(ids, np.full(ids.size, batch, np.int64), is_turn)
        return InFlight(*(np.concatenate(pair) for pair in zip(waiting, mine, strict=True)))

    def kept_back(self, candidates: np.ndarray | None, num_candidates: int, batch_size: int) -> InFlight:
        """Returns the prompts that must not be selected again.

        If too few other candidates are left for a batch, the prompts that were selected earliest may be selected again.

        Args:
          candidates: ids of the prompts to choose from, int64 [M]; None stands for all prompts.
          num_candidates: number of candidates, M, or the number of all prompts.
          batch_size: number of prompts to select, B <= M.
        """
        mine = self if candidates is None or not self.ids.size else self._where(_are_among(self.ids, candidates))
        num_missing = max(batch_size - (num_candidates - mine.ids.size), 0)
        return InFlight(*(column[num_missing:] for column in mine))

    def _where(self, is_kept: np.ndarray) -> InFlight:
        return InFlight(*(column[is_kept] for column in self))


def _are_among(ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns np.isin(ids, others), several times faster for a few hundred ids."""
    if not others.size:
        return np.zeros(ids.size, bool)
    ordered = np.sort(others)
    return ordered[np.minimum(np.searchsorted(ordered, ids), ordered.size - 1)] == ids


def no_prompts() -> InFlight:
    """Returns an `InFlight` without prompts."""
    return InFlight(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
