"""Questions as tokens, ready to be sampled from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks
from dps_jax.text._questions import Question
from dps_jax.text._tokenizer import Tokenizer

# Encoded together, which uses all cores; what the library keeps for each is larger than its tokens.
_CHUNK = 2048


class Prompts(NamedTuple):
    """Encoded prompts, N of them.

    Attributes:
      tokens: of every prompt, int32 [P] each, without padding.
      questions: that they were made from.
      lengths: P of every prompt, int32 [N].
      num_dropped: number of questions that were left out, as they are too long.
    """

    tokens: tuple[np.ndarray, ...]
    questions: tuple[Question, ...]
    lengths: np.ndarray
    num_dropped: int


def encode_questions(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    too_long: str = "drop",
    **template_variables: Any,
) -> Prompts:
    """Returns the prompts of some questions, in their order, by the chat template of a tokenizer.

    Args:
      questions: from `read_questions`, at least one.
      tokenizer: of the model.
      max_length: of a prompt, in tokens.
      too_long: "drop" leaves longer prompts out and counts them; "error" refuses them.
      **template_variables: see `Tokenizer.render`.

    Raises:
      ValueError: for no questions, where none is short enough, or one is too long and may not be; for a prompt without
        tokens; and what `Tokenizer.render` raises.
    """
    max_length = _checks.check_int("max_length", max_length, at_least=1)
    _checks.check_choice("too_long", too_long, ("drop", "error"))
    if not questions:
        raise ValueError("questions: expected at least one, got none; read some first")
    kept: list[Question] = []
    tokens: list[np.ndarray] = []
    shortest = np.inf
    for position, ids in enumerate(_encoded(questions, tokenizer, template_variables)):
        shortest = min(shortest, len(ids))
        if len(ids) <= max_length:
            kept.append(questions[position])
            tokens.append(np.array(ids, np.int32))
        elif too_long == "error":
            raise ValueError(
                f"questions[{position}]: expected at most max_length = {max_length} tokens, got {len(ids)}; raise "
                "max_length, or drop long prompts (too_long='drop')"
            )
    if not kept:
        raise ValueError(
            f"max_length: expected room for some prompts, got {max_length} where the shortest of {len(questions)} has "
            f"{shortest} tokens; raise it"
        )
    lengths = np.array([row.size for row in tokens], np.int32)
    return Prompts(tuple(tokens), tuple(kept), lengths, num_dropped=len(questions) - len(kept))


def _encoded(
    questions: Sequence[Question], tokenizer: Tokenizer, template_variables: Mapping[str, Any]
) -> Iterator[list[int]]:
    """Yields the tokens of the prompt of each question."""
    for first in range(0, len(questions), _CHUNK):
        texts = []
        for position, question in enumerate(questions[first : first + _CHUNK], start=first):
            try:
                texts.append(tokenizer.render(question.messages, **template_variables))
            except ValueError as error:
                raise ValueError(f"questions[{position}]: {error}") from error
        for offset, ids in enumerate(tokenizer.encode_batch(texts)):
            if not ids:
                raise ValueError(
                    f"questions[{first + offset}]: expected a prompt with tokens, got {texts[offset]!r:.80}; leave it "
                    "out"
                )
            yield ids
