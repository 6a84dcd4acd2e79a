"""Classes of prompts by their visits: mastered, informative, undecided, forgotten, stuck and unvisited."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dps_jax.traces.replay import Visits

# Solved visits in a row after which a prompt is mastered, and unsolved visits after which it may be stuck.
NUM_SOLVED, NUM_UNSOLVED = 2, 3
NAMES = ("mastered", "informative", "undecided", "forgotten", "stuck", "unvisited")
MASTERED, INFORMATIVE, UNDECIDED, FORGOTTEN, STUCK, UNVISITED = range(len(NAMES))
DEFINITIONS = {
    "mastered": f"All completions were correct in each of the last {NUM_SOLVED} visits.",
    "informative": "Some completions of the last visit were correct and some were not, and the prompt is not in the "
    'class "forgotten".',
    "undecided": f"Visited, and in no other class: the last visit was solved, but not the last {NUM_SOLVED}, or the "
    f"last visit was unsolved, but not the last {NUM_UNSOLVED}.",
    "forgotten": "All completions were correct in an earlier visit, and fewer than half of them in the last one.",
    "stuck": f"No completion was correct in any of the last {NUM_UNSOLVED} visits, and no visit was ever solved.",
    "unvisited": "Not visited so far.",
}


class Histories(NamedTuple):
    """Visits sorted by prompt, and within a prompt by round, with the class of the prompt after each visit.

    Attributes:
      order: position in the visits of each sorted visit, int [R].
      starts: position in `order` of the first visit of each visited prompt, and R at the end, int [P + 1].
      ids: ids of the visited prompts, int [P].
      classes: class of the prompt after each sorted visit, as an index into `NAMES`, int [R].
    """

    order: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    classes: np.ndarray

    def of_prompts(self, num_prompts: int) -> np.ndarray:
        """Returns the class of every prompt after its last visit, int [N]."""
        found = np.full(num_prompts, UNVISITED)
        found[self.ids] = self.classes[self.starts[1:] - 1]
        return found


def _before(values: np.ndarray, place: np.ndarray, steps: int) -> np.ndarray:
    """Returns the values `steps` visits of the same prompt earlier, bool [R]; False if it had fewer visits."""
    shifted = np.zeros_like(values)
    shifted[steps:] = values[: values.size - steps]
    return shifted & (place >= steps)


def histories(visits: Visits) -> Histories:
    """Returns the visits sorted by prompt, with the class of the prompt after each visit."""
    order = np.lexsort((visits.rounds, visits.ids))
    ids, successes, counts = visits.ids[order], visits.successes[order], visits.counts[order]
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    lengths = np.diff(np.append(starts, ids.size))
    place = np.arange(ids.size) - np.repeat(starts, lengths)
    is_solved, is_unsolved = successes == counts, successes == 0
    num_solved = np.cumsum(is_solved) - is_solved  # before each visit, over all earlier rows
    was_solved = num_solved > np.repeat(num_solved[starts], lengths)
    in_a_row = lambda values, size: np.all([_before(values, place, steps) for steps in range(size)], axis=0)
    is_mastered = in_a_row(is_solved, NUM_SOLVED)
    is_forgotten = was_solved & (2 * successes < counts)
    is_stuck = in_a_row(is_unsolved, NUM_UNSOLVED) & ~was_solved
    classes = np.select(
        [is_mastered, is_forgotten, is_stuck, ~is_solved & ~is_unsolved],
        [MASTERED, FORGOTTEN, STUCK, INFORMATIVE],
        UNDECIDED,
    )
    return Histories(order, np.append(starts, ids.size), ids[starts], classes)


def counts_over_rounds(visits: Visits, found: Histories) -> np.ndarray:
    """Returns the number of prompts in each class after each round, int [T, classes]."""
    num_rounds, num_classes = visits.num_rounds, len(NAMES)
    rounds = visits.rounds[found.order]
    previous = np.append(UNVISITED, found.classes[:-1])
    previous[found.starts[:-1]] = UNVISITED
    changes = np.zeros((num_rounds, num_classes), np.int64)
    np.add.at(changes, (rounds, found.classes), 1)
    np.add.at(changes, (rounds, previous), -1)
    changes[0, UNVISITED] += visits.num_prompts
    return np.cumsum(changes, axis=0)
