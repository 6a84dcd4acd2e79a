"""Steps: arithmetic modulo ten, one operation after the other, with every result written.

A prompt is a digit, the operations and a goal sign, `3 +4 *7 9- >`. An answer is the result of each operation and the
end token, `7 9 0`. Every operation maps a digit to a digit, so that an operation on a digit is a fact to memorise, and
problems share these facts. Prompts are filled up to one length with `.` before the goal sign.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.tasks import _generation
from dps_jax.tasks._slips import Slips, check_slips, write
from dps_jax.tasks._task import Problems, Task, scorer, words

_PAD, _END, _GOAL, _FILLER = range(4)
_SYMBOLS = ("<pad>", "<end>", ">", ".")
_FIRST_DIGIT = len(_SYMBOLS)
_FIRST_OPERATION = _FIRST_DIGIT + 10
# Families of operations, in the order in which levels add them: name, numbers n, text, and description.
_FAMILIES: tuple[tuple[str, Sequence[int], str, str], ...] = (
    ("add", range(1, 10), "+{n}", "add a number"),
    ("multiply", range(2, 10), "*{n}", "multiply by a number"),
    ("subtract", range(10), "{n}-", "subtract from a number"),
    ("square", range(10), "^2+{n}", "square and add a number"),
)
_FUNCTIONS = {
    "add": lambda digit, n: digit + n,
    "multiply": lambda digit, n: digit * n,
    "subtract": lambda digit, n: n - digit,
    "square": lambda digit, n: digit * digit + n,
}


def _operations() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns texts of operations, their results for each digit, int64 [operations, 10], and starts of families."""
    texts: list[str] = []
    tables, starts = [], [0]
    for name, numbers, text, _ in _FAMILIES:
        texts += [text.format(n=n) for n in numbers]
        tables += [[_FUNCTIONS[name](digit, n) % 10 for digit in range(10)] for n in numbers]
        starts.append(len(texts))
    return tuple(texts), np.array(tables, np.int64), np.array(starts, np.int64)


_TEXTS, _TABLES, _STARTS = _operations()
_VOCABULARY = _SYMBOLS + tuple(str(digit) for digit in range(10)) + _TEXTS


def _draw(
    stream: _generation.Stream, level: np.ndarray, levels: _generation.Levels
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the first digit and the operations [N, 1 + k], the same as canonical form, and is_problem [N]."""
    size = levels.column(0).max()
    num_operations, num_families = levels.column(0)[level], levels.column(1)[level]
    drawn = np.full((level.size, 1 + size), _generation.ABSENT, np.int64)
    drawn[:, 0] = stream.integers(0, 10)
    for place in range(size):
        # Families are equally frequent, although their sizes differ.
        family = stream.integers(1 + 2 * place, num_families)
        operation = _STARTS[family] + stream.integers(2 + 2 * place, _STARTS[family + 1] - _STARTS[family])
        drawn[:, 1 + place] = np.where(place < num_operations, operation, _generation.ABSENT)
    return drawn, drawn, np.ones(level.size, bool)


def _judge(facts: jax.Array, completion: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns whether an answer is right, and whether it is well-formed; see `scorer`."""
    digit, operations = facts[0], facts[1:]
    tables = jnp.asarray(_TABLES, jnp.int32)
    written = completion[: operations.size] - _FIRST_DIGIT
    is_right = is_formed = jnp.array(True)
    for place in range(operations.size):
        is_step = operations[place] >= 0
        digit = jnp.where(is_step, tables[jnp.maximum(operations[place], 0), digit], digit)
        is_right &= (written[place] == digit) | ~is_step
        is_formed &= ((written[place] >= 0) & (written[place] < 10)) | ~is_step
    ends = completion[jnp.sum(operations >= 0)] == _END
    return is_right & ends, is_formed & ends


def _verify(facts: Sequence[int], completion: Sequence[int]) -> bool:
    """Returns whether an answer is right; see `Task.verify`."""
    digit, *operations = (int(fact) for fact in facts)
    texts = [_TEXTS[operation] for operation in operations if operation >= 0]
    tokens = [int(token) for token in completion]
    if _END not in tokens:
        return False
    written = tokens[: tokens.index(_END)]
    if len(written) != len(texts):
        return False
    for text, token in zip(texts, written, strict=True):
        if text.startswith("+"):
            digit = digit + int(text[1:])
        elif text.startswith("*"):
            digit = digit * int(text[1:])
        elif text.endswith("-"):
            digit = int(text[:-1]) - digit
        else:
            digit = digit**2 + int(text.removeprefix("^2+"))
        digit %= 10
        if token != _FIRST_DIGIT + digit:
            return False
    return True


def _decode(tokens: Sequence[int]) -> str:
    """Returns the text of a prompt or an answer, up to its end, without fillers."""
    texts = words(tokens, _VOCABULARY, pad_id=_PAD, end_id=_END)
    return " ".join(text for text in texts if text != _SYMBOLS[_FILLER])


def steps(
    *,
    levels: Sequence[_generation.Level] = ((2, 4, 0.25), (3, 4, 0.25), (4, 4, 0.25), (5, 4, 0.25)),
    test_levels: Sequence[_generation.Level] | None = None,
    max_operations: int = 8,
    format_reward: float = 0.0,
) -> Task:
    """Returns the task of arithmetic modulo ten, in which the result of every operation is written down.

    A prompt such as `3 +4 *7 9- >` is solved by the digits `7 9 0` and the end token.

    Args:
      levels: (number of operations, number of families, weight) of each level. The level of a problem is its prompt
        group. A family is a kind of operation; the operations of a level are from the first families of this list: add
        a number, multiply by a number, subtract from a number, square and add a number.
      test_levels: levels of the test set; None is `levels`.
      max_operations: number of operations that prompts are padded to. This number determines the prompt length, which
        has to be the same in training as in the supervised warm-up of the policy on worked solutions.
      format_reward: reward of an answer that is well-formed and of the right length, but wrong, in [0, 1].

    Raises:
      ValueError: for an option out of range. `make_problems` and `make_solutions` raise it for an unknown split, a
        negative seed or index, or `Slips` out of range.

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task = tasks.steps()
      >>> (prompt,), (facts,), _ = task.make_problems(0, "train", np.array([1]))
      >>> (solution,) = task.make_solutions(0, "train", np.array([1]))
      >>> task.decode(prompt), task.decode(solution), task.verify(facts, solution)
      ('2 +4 +7 >', '6 3', True)
    """
    _checks.check_int("max_operations", max_operations, at_least=1, at_most=64)
    bounds = (("operations", 1, max_operations), ("families", 1, len(_FAMILIES)))
    checked = _generation.check_levels(levels, test_levels, bounds)
    size = int(checked.column(0).max())
    return Task(
        name="steps",
        vocabulary=_VOCABULARY,
        pad_id=_PAD,
        end_id=_END,
        prompt_length=max_operations + 2,
        completion_length=size + 1,
        group_names=tuple(
            f"{operations} operations from {families} families" for operations, families in checked.kinds
        ),
        make_problems=functools.partial(_make_problems, checked, max_operations),
        make_solutions=functools.partial(_make_solutions, checked),
        score=scorer(_judge, num_facts=size + 1, completion_length=size + 1, format_reward=format_reward),
        verify=_verify,
        decode=_decode,
    )


def _draw_problems(
    levels: _generation.Levels, seed: int, split: str, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns first digits and operations of problems, [N, D], encoded as in `_draw`, and their levels, int64 [N]."""
    return _generation.draw_problems(seed, split, indices, levels, functools.partial(_draw, levels=levels))


def _make_problems(
    levels: _generation.Levels, max_operations: int, seed: int, split: str, indices: np.ndarray
) -> Problems:
    drawn, level = _draw_problems(levels, seed, split, indices)
    prompts = np.full((level.size, max_operations + 2), _FILLER, np.int64)
    prompts[:, 0], prompts[:, -1] = drawn[:, 0] + _FIRST_DIGIT, _GOAL
    is_step = drawn[:, 1:] >= 0
    prompts[:, 1 : drawn.shape[1]] = np.where(is_step, drawn[:, 1:] + _FIRST_OPERATION, _FILLER)
    return Problems(prompts.astype(np.int32), drawn.astype(np.int32), level.astype(np.int32))


def _make_solutions(
    levels: _generation.Levels, seed: int, split: str, indices: np.ndarray, slips: Slips | None = None
) -> np.ndarray:
    drawn, level = _draw_problems(levels, seed, split, indices)
    chances = _generation.solution_streams(seed, split, indices)
    slips = None if slips is None else check_slips(slips)
    tokens = np.full((level.size, drawn.shape[1]), _PAD, np.int64)
    digit = drawn[:, 0]
    for place, operation in enumerate(drawn[:, 1:].T):
        is_step = operation >= 0
        known = np.maximum(operation, 0)
        family = np.searchsorted(_STARTS, known, side="right") - 1
        digit = write(slips, chances, place, 10 * known + digit, family, _TABLES[known, digit], 10)
        tokens[:, place] = np.where(is_step, digit + _FIRST_DIGIT, _PAD)
    tokens[np.arange(level.size), levels.column(0)[level]] = _END
    return tokens.astype(np.int32)
