"""Encodes questions as prompts, the tokens from which a model continues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.text._questions import Question
from dps_jax.text._tokenizer import Tokenizer

# Number of prompts that are encoded together, on all cores. The limit bounds the memory that `tokenizers` takes.
_CHUNK = 2048


@documented
class Prompts(NamedTuple):
    """N encoded prompts, as returned by `encode_questions`.

    Attributes:
      tokens: tokens of each prompt without padding, N arrays int32 [P], where P differs from prompt to prompt.
      questions: question of each prompt.
      lengths: length of each prompt in tokens, int32 [N].
      num_dropped: number of questions that were left out because their prompts are too long.

    Example:
      >>> import numpy as np
      >>> from dps_jax import text
      >>> question = text.Question(({"role": "user", "content": "2+2="},), answer=4, source="", group=None, info={})
      >>> tokens = np.array([1, 2, 1, 3], np.int32)
      >>> prompts = text.Prompts((tokens,), (question,), lengths=np.array([4], np.int32), num_dropped=0)
      >>> buckets = text.bucket_lengths(prompts.lengths)
      >>> text.pad_left(prompts.tokens, buckets[-1], pad_id=0)[0].tolist()
      [[0, 0, 0, 0, 1, 2, 1, 3]]
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
    """Returns the prompts of questions, rendered by the chat template of a tokenizer and encoded, in their order.

    Args:
      questions: questions as returned by `read_questions`, at least one.
      tokenizer: tokenizer of the model.
      max_length: largest length of a prompt in tokens.
      too_long: what to do with longer prompts: "drop" leaves them out and counts them, "error" raises a ValueError.
      **template_variables: variables of the chat template, see `Tokenizer.render`.

    Raises:
      ValueError: for an empty list of questions, a prompt without tokens, a prompt that is too long with
        `too_long="error"`, or if all prompts are too long; and in the cases of `Tokenizer.render`.

    Example:
      >>> import pathlib, tokenizers
      >>> from dps_jax import text
      >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "2": 1, "+": 2, "=": 3, "4": 4}, []))
      >>> backend.save("tokenizer.json")
      >>> _ = pathlib.Path("tokenizer_config.json").write_text('{"eos_token": "<end>"}')
      >>> tokenizer = text.load_tokenizer(".")
      >>> _ = pathlib.Path("train.jsonl").write_text('{"prompt": "2+2=", "answer": 4}')
      >>> prompts = text.encode_questions(text.read_questions("train.jsonl"), tokenizer, max_length=8)
      >>> [tokens.tolist() for tokens in prompts.tokens], prompts.num_dropped
      ([[1, 2, 1, 3]], 0)
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
