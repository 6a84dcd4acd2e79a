"""Countdown with written steps: reach a target from given numbers, each of which is used once.

A prompt is `n1 .. nk > target`. An answer consists of k - 1 steps `a op b = c` and the end token. A step has four
tokens, as `=` is not written.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.tasks import _generation
from dps_jax.tasks._slips import Slips
from dps_jax.tasks._task import Problems, Task, scorer, words

_PAD, _END, _GOAL, _ADD, _SUBTRACT, _MULTIPLY, _DIVIDE = range(7)
_SYMBOLS = ("<pad>", "<end>", ">", "+", "-", "*", "/")
_FIRST_NUMBER = len(_SYMBOLS)


def _results(first: np.ndarray, second: np.ndarray, max_value: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a + b, a - b, a * b, a / b, and which of them may be a step of a generated problem, each [4, N]."""
    quotient, rest = np.divmod(first, np.maximum(second, 1))
    results = np.stack([first + second, first - second, first * second, quotient])
    is_good = (results >= 1) & (results <= max_value)
    # Steps that change nothing would make problems trivial.
    is_good[2] &= (first > 1) & (second > 1)
    is_good[3] &= (rest == 0) & (second > 1)
    return results, is_good


def _draw(
    stream: _generation.Stream, level: np.ndarray, levels: _generation.Levels, max_value: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns numbers, target and steps of a solution, [N, D]; canonical form, [N, columns]; is_problem, [N]."""
    rows = np.arange(level.size)
    size = levels.column(0).max()
    num_numbers, largest = levels.column(0)[level], levels.column(1)[level]
    is_given = np.arange(size) < num_numbers[:, None]
    numbers = np.stack([1 + stream.integers(draw, largest) for draw in range(size)], axis=1) * is_given
    # Available numbers come first; a step takes two of them, and its result replaces one of the two.
    available, target = numbers.copy(), np.zeros(level.size, np.int64)
    steps = np.zeros((level.size, 4 * (size - 1)), np.int64)
    is_problem = np.ones(level.size, bool)
    for index in range(size - 1):
        num_left = num_numbers - index
        is_step = num_left >= 2
        num_left = np.maximum(num_left, 2)
        one = stream.integers(100 + 3 * index, num_left)
        other = (one + 1 + stream.integers(101 + 3 * index, num_left - 1)) % num_left
        a, b = available[rows, one], available[rows, other]
        results, is_good = _results(a, b, max_value)
        num_good = is_good.sum(axis=0)
        pick = stream.integers(102 + 3 * index, np.maximum(num_good, 1))
        operator = np.argmax(np.cumsum(is_good, axis=0) == pick + 1, axis=0)
        is_problem &= ~is_step | (num_good > 0)
        result = results[operator, rows]
        steps[:, 4 * index : 4 * index + 4] = np.where(is_step[:, None], np.stack([a, operator, b, result], axis=1), 0)
        target = np.where(is_step, result, target)
        after = available.copy()
        after[rows, one] = result
        after[rows, other] = after[rows, num_left - 1]
        # If the result itself was the last number, it has moved to the free place.
        after[rows, np.where(one == num_left - 1, other, one)] = result
        available = np.where(is_step[:, None], after, available)
    given = np.sort(np.where(is_given, numbers, _generation.ABSENT), axis=1)
    canonical = np.concatenate([given, target[:, None]], axis=1)
    return np.concatenate([numbers, target[:, None], steps], axis=1), canonical, is_problem


def _judge(facts: jax.Array, completion: jax.Array, *, max_value: int) -> tuple[jax.Array, jax.Array]:
    """Returns whether an answer is right, and whether it is well-formed; see `scorer`."""
    num_steps, target, numbers = facts[0] - 1, facts[1], facts[2:]
    values = completion - _FIRST_NUMBER
    is_number = (values >= 0) & (values <= max_value)
    # Slots of available numbers: the given ones, then the results in their order. -1 is an empty slot.
    slots = jnp.where(jnp.arange(numbers.size) < facts[0], numbers, -1)

    def use(slots: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the slots with one occurrence of a value removed, and whether there was one."""
        is_same = slots == value
        is_first = is_same & (jnp.cumsum(is_same) == 1)
        return jnp.where(is_first, -1, slots), jnp.any(is_same)

    is_right = is_formed = jnp.array(True)
    last = jnp.array(-1)
    for index in range(numbers.size - 1):
        start = 4 * index
        a, b, c = (values[start + place] for place in (0, 2, 3))
        operator = completion[start + 1]
        is_shaped = is_number[start] & is_number[start + 2] & is_number[start + 3]
        is_shaped &= (operator >= _ADD) & (operator <= _DIVIDE)
        is_exact = jnp.select(
            [operator == _ADD, operator == _SUBTRACT, operator == _MULTIPLY],
            [a + b == c, a - b == c, a * b == c],
            (b > 0) & (b * c == a),
        )
        slots, has_a = use(slots, a)
        slots, has_b = use(slots, b)
        slots = jnp.concatenate([slots, c[None]])
        is_step = index < num_steps
        is_formed &= is_shaped | ~is_step
        is_right &= (is_shaped & is_exact & has_a & has_b) | ~is_step
        last = jnp.where(is_step, c, last)
    ends = completion[4 * num_steps] == _END
    return is_right & ends & (last == target), is_formed & ends


def _verify(facts: Sequence[int], completion: Sequence[int], *, max_value: int) -> bool:
    """Returns whether an answer is right; see `Task.verify`."""
    num_numbers, target, *numbers = (int(fact) for fact in facts)
    available = numbers[:num_numbers]
    tokens = [int(token) for token in completion]
    if _END not in tokens:
        return False
    tokens = tokens[: tokens.index(_END)]
    if not tokens or len(tokens) % 4:
        return False
    result = None
    for start in range(0, len(tokens), 4):
        first, operator, second, result = tokens[start : start + 4]
        if not all(_FIRST_NUMBER <= token <= _FIRST_NUMBER + max_value for token in (first, second, result)):
            return False
        first, second, result = (token - _FIRST_NUMBER for token in (first, second, result))
        for operand in (first, second):
            if operand not in available:
                return False
            available.remove(operand)
        if operator == _DIVIDE:
            if second == 0 or first % second or first // second != result:
                return False
        elif {_ADD: first + second, _SUBTRACT: first - second, _MULTIPLY: first * second}.get(operator) != result:
            return False
        available.append(result)
    return available == [target] and result == target


def _decode(tokens: Sequence[int], vocabulary: Sequence[str]) -> str:
    """Returns the text of a prompt or an answer, up to its end."""
    texts = words(tokens, vocabulary, pad_id=_PAD, end_id=_END)
    if _SYMBOLS[_GOAL] in texts:
        return " ".join(texts)
    steps = [texts[start : start + 4] for start in range(0, len(texts), 4)]
    return ", ".join(" ".join([*step[:3], "=", *step[3:]]) if len(step) == 4 else " ".join(step) for step in steps)


def countdown(
    *,
    levels: Sequence[_generation.Level] = ((2, 20, 0.2), (3, 20, 0.1), (4, 20, 0.2), (4, 99, 0.1), (5, 99, 0.4)),
    test_levels: Sequence[_generation.Level] | None = None,
    max_value: int = 99,
    format_reward: float = 0.0,
) -> Task:
    """Returns the task of reaching a target from given numbers with +, -, * and /.

    A prompt such as `11 4 > 15` is solved by steps such as `11 + 4 = 15`, and the end token.

    Args:
      levels: (number of given numbers, largest possible given number, weight) of each level. The level of a problem is
        its prompt group.
      test_levels: levels of the test set; None is `levels`.
      max_value: largest value of given numbers, results and targets; there is a token for each of 0, ..., max_value.
      format_reward: reward of an answer that is well-formed and of the right length, but wrong, in [0, 1].

    Raises:
      ValueError: for an option out of range. `make_problems` and `make_solutions` raise it for an unknown split, a
        negative seed or index, or a level with (almost) no problems in the split; `make_solutions` also for slips.

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task = tasks.countdown()
      >>> (prompt,), (facts,), _ = task.make_problems(0, "train", np.array([1]))
      >>> (solution,) = task.make_solutions(0, "train", np.array([1]))
      >>> task.decode(prompt), task.decode(solution), task.verify(facts, solution)
      ('11 4 > 15', '11 + 4 = 15', True)

    Source: the task of TinyZero and of DPS (arXiv 2603.10887), section 5, with verified steps.
    """
    _checks.check_int("max_value", max_value, at_least=2, at_most=10_000)
    checked = _generation.check_levels(levels, test_levels, (("numbers", 2, 6), ("largest number", 2, max_value)))
    size = int(checked.column(0).max())
    vocabulary = _SYMBOLS + tuple(str(value) for value in range(max_value + 1))
    return Task(
        name="countdown",
        vocabulary=vocabulary,
        pad_id=_PAD,
        end_id=_END,
        prompt_length=size + 2,
        completion_length=4 * (size - 1) + 1,
        group_names=tuple(f"{numbers} numbers up to {largest}" for numbers, largest in checked.kinds),
        make_problems=functools.partial(_make_problems, checked, max_value),
        make_solutions=functools.partial(_make_solutions, checked, max_value),
        score=scorer(
            functools.partial(_judge, max_value=max_value),
            num_facts=size + 2,
            completion_length=4 * (size - 1) + 1,
            format_reward=format_reward,
        ),
        verify=functools.partial(_verify, max_value=max_value),
        decode=functools.partial(_decode, vocabulary=vocabulary),
    )


def _draw_problems(
    levels: _generation.Levels, max_value: int, seed: int, split: str, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns numbers, targets and steps of some problems as `_draw` has them, [N, D], and their levels, int64 [N]."""
    draw = functools.partial(_draw, levels=levels, max_value=max_value)
    return _generation.draw_problems(seed, split, indices, levels, draw)


def _make_problems(levels: _generation.Levels, max_value: int, seed: int, split: str, indices: np.ndarray) -> Problems:
    drawn, level = _draw_problems(levels, max_value, seed, split, indices)
    size = int(levels.column(0).max())
    numbers, target = drawn[:, :size], drawn[:, size]
    num_numbers = levels.column(0)[level]
    prompts = np.full((level.size, size + 2), _PAD, np.int64)
    prompts[:, -1], prompts[:, -2] = target + _FIRST_NUMBER, _GOAL
    for place in range(size):
        # Numbers end where the goal sign begins.
        source = place - (size - num_numbers)
        token = numbers[np.arange(level.size), np.maximum(source, 0)] + _FIRST_NUMBER
        prompts[:, place] = np.where(source >= 0, token, _PAD)
    facts = np.concatenate([num_numbers[:, None], target[:, None], numbers], axis=1)
    return Problems(prompts.astype(np.int32), facts.astype(np.int32), level.astype(np.int32))


def _make_solutions(
    levels: _generation.Levels,
    max_value: int,
    seed: int,
    split: str,
    indices: np.ndarray,
    slips: Slips | None = None,
) -> np.ndarray:
    if slips is not None:
        raise ValueError(f"slips: expected None for task 'countdown', whose steps have no slips, got {slips}")
    drawn, level = _draw_problems(levels, max_value, seed, split, indices)
    size = int(levels.column(0).max())
    steps = drawn[:, size + 1 :].reshape(level.size, size - 1, 4)
    is_operator = np.arange(4) == 1
    tokens = np.where(is_operator, steps + _ADD, steps + _FIRST_NUMBER).reshape(level.size, -1)
    length = 4 * (levels.column(0)[level] - 1)[:, None]
    places = np.arange(tokens.shape[1] + 1)
    tokens = np.concatenate([tokens, np.full((level.size, 1), _PAD)], axis=1)
    return np.where(places < length, tokens, np.where(places == length, _END, _PAD)).astype(np.int32)
