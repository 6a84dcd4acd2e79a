"""Chain sums: addition of numbers with several digits, column by column from the lowest, with written carries.

A prompt is `d d d + d d d >`. An answer has two tokens per column, the digit of the sum and the carry out of the
column, and the end token. The last carry is the leading digit of the sum, or 0.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax.tasks import _generation
from dps_jax.tasks._slips import Slips, check_slips, write
from dps_jax.tasks._task import Problems, Task, scorer, words

_PAD, _END, _GOAL, _ADD = range(4)
_SYMBOLS = ("<pad>", "<end>", ">", "+")
_FIRST_DIGIT = len(_SYMBOLS)
# A level that the initial policy in the repository has mastered, levels that it can learn, and harder ones.
_LEVELS = ((2, 1, 0.1), (2, 2, 0.15), (2, 3, 0.15), (2, 4, 0.15), (3, 3, 0.25), (3, 4, 0.2))
_TEST_LEVELS = ((2, 2, 1.0), (2, 3, 1.0), (2, 4, 1.0))
_VOCABULARY = _SYMBOLS + tuple(str(digit) for digit in range(10))


def _draw(
    stream: _generation.Stream, level: np.ndarray, levels: _generation.Levels
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the summands [N, D], their canonical form [N, columns], and is_problem [N]."""
    size = levels.column(0).max()
    num_summands = levels.column(0)[level]
    lowest = 10 ** (levels.column(1)[level] - 1)
    drawn = np.stack([lowest + stream.integers(draw, 9 * lowest) for draw in range(size)], axis=1)
    summands = np.where(np.arange(size) < num_summands[:, None], drawn, 0)
    canonical = np.sort(np.where(summands > 0, summands, _generation.ABSENT), axis=1)
    return summands, canonical, np.ones(level.size, bool)


def _columns(
    summands: np.ndarray, num_summands: np.ndarray, num_digits: int, slips: Slips | None, chances: _generation.Stream
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns digit and carry of every column of the sums, int64 [N] each, the lowest first, with slips.

    The digit and the carry of a column are one fact each. A fact depends on the digits of the column in their order,
    and on the carry into the column as it was written. The families of facts are the columns, the lowest first.
    """
    columns, carry = [], np.zeros(summands.shape[0], np.int64)
    places = 10 ** np.arange(summands.shape[1])
    for column in range(num_digits):
        digits = summands // 10**column % 10
        fact = 2 * (places[-1] * 10 * carry + digits @ places)
        right_carry, right_digit = np.divmod(digits.sum(axis=1) + carry, 10)
        digit = write(slips, chances, 2 * column, fact, column, right_digit, 10)
        carry = write(slips, chances, 2 * column + 1, fact + 1, column, right_carry, num_summands)
        columns.append((digit, carry))
    return columns


def _judge(facts: jax.Array, completion: jax.Array, *, num_columns: int) -> tuple[jax.Array, jax.Array]:
    """Returns whether an answer is right, and whether it is well-formed; see `scorer`."""
    num_digits, summands = facts[1], facts[2:]
    digits = completion - _FIRST_DIGIT
    is_digit = (digits >= 0) & (digits < 10)
    is_right = is_formed = jnp.array(True)
    carry = jnp.array(0)
    for column in range(num_columns):
        total = jnp.sum(summands // 10**column % 10) + carry
        carry = total // 10
        is_column = column < num_digits
        written, written_carry = digits[2 * column], digits[2 * column + 1]
        is_right &= ((written == total % 10) & (written_carry == carry)) | ~is_column
        is_formed &= (is_digit[2 * column] & is_digit[2 * column + 1]) | ~is_column
    ends = completion[2 * num_digits] == _END
    return is_right & ends, is_formed & ends


def _verify(facts: Sequence[int], completion: Sequence[int]) -> bool:
    """Returns whether an answer is right; see `Task.verify`."""
    num_summands, num_digits, *summands = (int(fact) for fact in facts)
    tokens = [int(token) for token in completion]
    if _END not in tokens:
        return False
    digits = [token - _FIRST_DIGIT for token in tokens[: tokens.index(_END)]]
    if len(digits) != 2 * num_digits or not all(0 <= digit < 10 for digit in digits):
        return False
    numbers = [str(summand).zfill(num_digits) for summand in summands[:num_summands]]
    carry = 0
    for column in range(num_digits):
        total = carry + sum(int(number[-1 - column]) for number in numbers)
        if digits[2 * column] != total % 10 or digits[2 * column + 1] != total // 10:
            return False
        carry = total // 10
    return True


def _decode(tokens: Sequence[int]) -> str:
    """Returns the text of a prompt or an answer, up to its end."""
    texts = words(tokens, _VOCABULARY, pad_id=_PAD, end_id=_END)
    if _SYMBOLS[_GOAL] in texts:
        return "".join(f" {text} " if text in _SYMBOLS else text for text in texts).strip()
    return ", ".join(" carry ".join(texts[start : start + 2]) for start in range(0, len(texts), 2))


def chain_sum(
    *,
    levels: Sequence[_generation.Level] = _LEVELS,
    test_levels: Sequence[_generation.Level] | None = _TEST_LEVELS,
    format_reward: float = 0.0,
) -> Task:
    """Returns the task of adding numbers column by column, with written carries.

    A prompt such as `32 + 84 >` is solved by the digit and the carry of each column, the lowest first, and the end
    token.

    Args:
      levels: (number of summands, number of digits of each, weight) of each level. The level of a problem is its prompt
        group.
      test_levels: levels of the test set; None stands for `levels`. The default is the levels of two summands that the
        initial policy in the repository can learn.
      format_reward: reward of an answer that is well-formed and of the right length, but wrong, in [0, 1].

    Raises:
      ValueError: for an option out of range. `make_problems` and `make_solutions` raise it for an unknown split, a
        negative seed or index, or `Slips` out of range.

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task = tasks.chain_sum(levels=[(2, 2, 0.5), (3, 2, 0.5)])
      >>> (prompt,), (facts,), _ = task.make_problems(0, "train", np.array([1]))
      >>> (solution,) = task.make_solutions(0, "train", np.array([1]))
      >>> task.decode(prompt), task.decode(solution), task.verify(facts, solution)
      ('32 + 34 >', '6 carry 0, 6 carry 0', True)
    """
    checked = _generation.check_levels(levels, test_levels, (("summands", 2, 4), ("digits", 1, 4)))
    max_digits, size = int(checked.column(1).max()), int(checked.column(0).max())
    return Task(
        name="chain_sum",
        vocabulary=_VOCABULARY,
        pad_id=_PAD,
        end_id=_END,
        prompt_length=_prompt_length(checked),
        completion_length=2 * max_digits + 1,
        group_names=tuple(f"{summands} summands of {digits} digits" for summands, digits in checked.kinds),
        make_problems=functools.partial(_make_problems, checked),
        make_solutions=functools.partial(_make_solutions, checked),
        score=scorer(
            functools.partial(_judge, num_columns=max_digits),
            num_facts=size + 2,
            completion_length=2 * max_digits + 1,
            format_reward=format_reward,
        ),
        verify=_verify,
        decode=_decode,
    )


def _prompt_length(levels: _generation.Levels) -> int:
    return int(np.max(levels.column(0) * (levels.column(1) + 1)))


def _draw_problems(
    levels: _generation.Levels, seed: int, split: str, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the summands of some problems, int64 [N, number of summands], and their levels, int64 [N]."""
    return _generation.draw_problems(seed, split, indices, levels, functools.partial(_draw, levels=levels))


def _make_problems(levels: _generation.Levels, seed: int, split: str, indices: np.ndarray) -> Problems:
    summands, level = _draw_problems(levels, seed, split, indices)
    prompt_length = _prompt_length(levels)
    prompts = np.full((level.size, prompt_length), _PAD, np.int64)
    for number, (num_summands, num_digits) in enumerate(levels.kinds):
        rows = np.flatnonzero(level == number)
        places = 10 ** np.arange(num_digits - 1, -1, -1)
        digits = summands[rows, :num_summands, None] // places % 10 + _FIRST_DIGIT
        tokens = np.concatenate([digits, np.full((*digits.shape[:2], 1), _ADD)], axis=2)
        tokens = tokens.reshape(rows.size, num_summands * (num_digits + 1))
        tokens[:, -1] = _GOAL
        prompts[rows, prompt_length - tokens.shape[1] :] = tokens
    shape = np.array(levels.kinds)[level]
    facts = np.concatenate([shape, summands], axis=1)
    return Problems(prompts.astype(np.int32), facts.astype(np.int32), level.astype(np.int32))


def _make_solutions(
    levels: _generation.Levels, seed: int, split: str, indices: np.ndarray, slips: Slips | None = None
) -> np.ndarray:
    summands, level = _draw_problems(levels, seed, split, indices)
    chances = _generation.solution_streams(seed, split, indices)
    slips = None if slips is None else check_slips(slips)
    columns = _columns(summands, levels.column(0)[level], int(levels.column(1).max()), slips, chances)
    pairs = [np.stack(column, axis=1) for column in columns]
    tokens = np.concatenate([*pairs, np.zeros((level.size, 1), np.int64)], axis=1) + _FIRST_DIGIT
    length = 2 * levels.column(1)[level][:, None]
    places = np.arange(tokens.shape[1])
    return np.where(places < length, tokens, np.where(places == length, _END, _PAD)).astype(np.int32)
