"""Reads logs of rollouts as rounds with checksums, and finds the rows of their prompts in a data file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dps_jax import traces
from dps_jax.next_prompts._data_files import PromptFile
from dps_jax.traces.replay import visits_of

# Number of prompts of a log from which the text of the chat template is inferred.
_NUM_TRIALS = 8


class Round(NamedTuple):
    """The outcomes of a round of a log.

    Attributes:
      digest: checksum of the number and the outcomes of the round, which does not depend on the file of the log.
      names: names of the prompts, [P].
      successes: number of correct completions of each prompt, int [P].
      counts: number of completions of each prompt, int [P].
    """

    digest: str
    names: list[str]
    successes: np.ndarray
    counts: np.ndarray


def read_rounds(
    path: Path, columns: traces.ColumnNames, threshold: float | None, file: PromptFile
) -> tuple[list[Round], dict[str, int]]:
    """Returns the rounds of a log, and the number of the row of each of its prompts in the data file, by name.

    The number of a prompt that the data file does not have is -1.

    Args:
      path: path of the log; see `traces.read_trace`.
      columns: names of the columns of the log.
      threshold: smallest reward that counts as correct, or None.
      file: data file with the prompts.

    Raises:
      ValueError: for a damaged log, or, if no column of the data file has names, for a log whose prompts are not row
        numbers of the data file; the message names the log.
      OSError: if the log cannot be read.
    """
    trace, texts = traces.read_named_trace(path, columns, threshold=threshold)
    if trace.rounds.size == 0:
        return [], {}
    visits = visits_of(trace)
    numbers = np.unique(trace.rounds).tolist()
    names = [str(number) if texts is None else texts[number] for number in visits.prompt_ids.tolist()]
    if not file.has_key:
        _check_row_numbers(path, visits.prompt_ids, texts, file)
    starts = np.flatnonzero(np.diff(visits.rounds, prepend=-1))
    rounds = []
    for number, first, last in zip(numbers, starts, [*starts[1:], visits.rounds.size], strict=True):
        mine = [names[position] for position in visits.ids[first:last]]
        successes, counts = visits.successes[first:last], visits.counts[first:last]
        outcomes = sorted(zip(mine, successes.tolist(), counts.tolist(), strict=True))
        digest = hashlib.sha256(json.dumps([number, outcomes]).encode()).hexdigest()[:32]
        rounds.append(Round(digest, mine, successes, counts))
    return rounds, rows_of(names, file)


def _check_row_numbers(path: Path, prompt_ids: np.ndarray, texts: Sequence[str] | None, file: PromptFile) -> None:
    if texts is not None:
        raise ValueError(
            f"{path}: expected prompts as row numbers of {file.path}, got texts such as {texts[0][:60]!r}; name the "
            "column of the data that holds them, as --key"
        )
    if prompt_ids[-1] >= len(file):
        raise ValueError(
            f"{path}: expected row numbers of {file.path}, in [0, {len(file)}), got prompt {prompt_ids[-1]}; if they "
            "are no row numbers, name the column of the data that holds them, as --key"
        )


def rows_of(names: Sequence[str], file: PromptFile) -> dict[str, int]:
    """Returns the number of the row of each prompt in the data file, by name; -1 for unknown prompts.

    Some trainers log a prompt with its chat template around it. If some prompts are not found by their names, the text
    of the template before and after a prompt is therefore inferred from a few of them, and used if it fits more than
    half of them.
    """
    places = {name: row for row, name in enumerate(file.names)}
    rows = {name: places.get(name, -1) for name in names}
    others = [name for name, row in rows.items() if row < 0]
    if not others or not file.texts:
        return rows
    seen: dict[str, int] = {}
    for row, text in enumerate(file.texts):
        seen[text] = -1 if text in seen else row  # the same question to another system prompt
    best: dict[str, int] = {}
    for position in np.unique(np.linspace(0, len(others) - 1, _NUM_TRIALS).astype(int)).tolist():
        name = others[position]
        text = max((text for text in seen if text and text in name), key=len, default=None)
        if text is not None:
            before, _, after = name.partition(text)
            # A template does not end in the middle of a word or number.
            if not before[-1:].isalnum() and not after[:1].isalnum():
                found = _between(others, before, after, seen)
                best = found if len(found) > len(best) else best
    return rows | best if len(best) > 1 and 2 * len(best) > len(others) else rows


def _between(names: Sequence[str], before: str, after: str, places: dict[str, int]) -> dict[str, int]:
    """Returns the rows of the prompts whose text is found between `before` and `after`, by the name in the log."""
    found = {}
    for name in names:
        if name.startswith(before) and name.endswith(after) and len(name) >= len(before) + len(after):
            row = places.get(name[len(before) : len(name) - len(after)].strip(), -1)
            if row >= 0:
                found[name] = row
    return found
