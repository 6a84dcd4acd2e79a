"""Grades completions given as tokens: they are cut at stop texts, decoded, and graded by a pool of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dps_jax import grading, text
from dps_jax.training._host_rollout import Score, Trimmed


class _Pending(NamedTuple):
    """Completions of C prompts that are being graded, `shape` = [C, G]."""

    grades: grading.Pending
    shape: tuple[int, int]

    def result(self) -> Score:
        """Returns the score when it is known."""
        found = self.grades.result()
        failures = {
            "grader_timed_out": found.num_timed_out,
            "grader_raised": found.num_raised,
            "grader_invalid": found.num_invalid,
            "grader_died": found.num_died,
        }
        return Score(found.is_correct.reshape(self.shape), found.rewards.reshape(self.shape), failures)


class TextGrader(NamedTuple):
    """Grades completions of some prompts.

    Attributes:
      tokenizer: tokenizer of the model.
      pool: processes that grade.
      questions: questions of the N prompts.
      stops: texts that end a completion.
    """

    tokenizer: text.Tokenizer
    pool: grading.GraderPool
    questions: Sequence[text.Question]
    stops: tuple[str, ...]

    def grade(self, ids: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> tuple[Trimmed, _Pending]:
        """Returns completions [C, G, T] of some prompts [C], cut at stop texts, and their pending score."""
        shape = mask.shape[:2]
        rows = [row[kept] for row, kept in zip(_flat(tokens), _flat(mask), strict=True)]
        ends = [text.end_of(self.tokenizer, row, self.stops) for row in rows]
        counts = np.array([count for count, _ in ends]).reshape(*shape, 1)
        kept = mask & (np.arange(mask.shape[2]) < counts)
        asked = [self.questions[index] for index in np.repeat(ids, shape[1])]
        infos = [
            {
                **question.info,
                "data_source": question.source,
                "group": question.group,
                "messages": [dict(message) for message in question.messages],
            }
            for question in asked
        ]
        pending = self.pool.submit([words for _, words in ends], [question.answer for question in asked], infos)
        return Trimmed(np.where(kept, tokens, self.tokenizer.pad_id), kept), _Pending(pending, (shape[0], shape[1]))


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1])
