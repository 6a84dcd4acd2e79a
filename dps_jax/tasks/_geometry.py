"""Geometry: a figure as a small raster, and a question about a length, an angle or an area in it.

A prompt is a raster of 24 x 24 pixels, as patches of 4 x 4 pixels in row-major order, and a question such as `width >`
or `angle top >`. An answer is one or more numbers with commas between them and the end token, `6, 16, 10`; it is right
if the last number is. Solutions first write where the figure begins and ends; for a width, these are its first and last
column. A patch is one token: V (the size of the vocabulary) plus a number that has one bit for each pixel, a one-hot
code of the row of the patch, and a one-hot code of its column (`DecoderConfig.patch_bits`).

Figures are filled rectangles, discs, triangles and convex quadrilaterals, whose corners and centres are at centres of
pixels. Lengths and areas are in pixels between these points. Angles are in degrees; they are drawn close to a multiple
of ten, and rounded to it. A raster determines its figure (see `_rasters`), so a question has only one right answer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax.tasks import _generation, _rasters
from dps_jax.tasks import _geometry_figures as figures
from dps_jax.tasks._geometry_figures import ANGLE, PATCH_SIDE, QUESTIONS, RADIUS, SIDE
from dps_jax.tasks._slips import Slips, check_slips, write
from dps_jax.tasks._task import Problems, Task, scorer, words

_NUM_PATCHES = (SIDE // PATCH_SIDE) ** 2
_MAX_WORDS = 3  # of a question with its goal sign
_PAD, _END, _GOAL, _COMMA = range(4)
_SYMBOLS = ("<pad>", "<end>", ">", ",")
_FIRST_DIGIT = len(_SYMBOLS)
_FIRST_WORD = _FIRST_DIGIT + 10
_NUM_DIGITS = 3
# Four readings of two digits with a comma each, the answer, and the end.
_COMPLETION_LENGTH = 4 * 3 + _NUM_DIGITS + 1
# Bits of a patch: its pixels, then one-hot codes of its row and of its column.
_ACROSS = SIDE // PATCH_SIDE
_PATCH_BITS = PATCH_SIDE**2 + 2 * _ACROSS
_ROW, _COLUMN = 1 << PATCH_SIDE**2, 1 << (PATCH_SIDE**2 + _ACROSS)
_PLACES = np.array([(_ROW << row) + (_COLUMN << column) for row in range(_ACROSS) for column in range(_ACROSS)])
# Whether solutions write the left, right, top and bottom of a figure, for width, height, radius, area and angle.
_IS_READ = ((1, 1, 0, 0), (0, 0, 1, 1), (1, 1, 0, 0), (1, 1, 1, 1), (1, 1, 1, 1))
_WORDS = tuple(dict.fromkeys(word for question in QUESTIONS for word in question))
_VOCABULARY = _SYMBOLS + tuple(str(digit) for digit in range(10)) + _WORDS
_NUM_FACTS = 9
_LEVELS = (
    *((1, 3, 0.1), (1, 6, 0.15), (2, 6, 0.1), (3, 6, 0.15), (4, 3, 0.15)),
    *((5, 3, 0.15), (6, 3, 0.1), (5, 6, 0.1)),
)


def _box(facts: np.ndarray) -> np.ndarray:
    """Returns the first and the last column and the first and the last row of figures, int64 [N, 4]."""
    corners, is_disc = facts[:, 1:].reshape(-1, 4, 2), facts[:, :1] == RADIUS
    low = np.where(is_disc, facts[:, 1:3] - facts[:, 3:4], corners.min(axis=1))
    high = np.where(is_disc, facts[:, 1:3] + facts[:, 3:4], corners.max(axis=1))
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)


def _right_answers(facts: np.ndarray) -> np.ndarray:
    """Returns the right answers, int64 [N], from facts [N, F]."""
    question, corners = facts[:, 0], facts[:, 1:].reshape(-1, 4, 2)
    spans = corners.max(axis=1) - corners.min(axis=1)
    tens = np.round(figures.degrees(corners, question), -1).astype(np.int64)
    areas = np.abs(_rasters.twice_area(corners)) // 2
    return np.choose(np.minimum(question, ANGLE), (spans[:, 0], spans[:, 1], facts[:, 3], areas, tens))


def _judge(facts: jax.Array, completion: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns whether an answer is right, and whether it is well-formed; see `scorer`."""
    question, corners = facts[0], facts[1:].reshape(4, 2)
    x, y = corners[:, 0], corners[:, 1]
    area = jnp.abs(jnp.sum(x * jnp.roll(y, -1) - y * jnp.roll(x, -1))) // 2
    corner = jnp.argmax(jnp.stack([-y, x, y, -x])[jnp.maximum(question - ANGLE, 0), :3])
    (ax, ay), (bx, by) = (corners[(corner + step) % 3] - corners[corner] for step in (1, 2))
    degrees = jnp.degrees(jnp.arctan2(jnp.abs(ax * by - ay * bx), ax * bx + ay * by))
    # Angles are at most 2 degrees from a multiple of ten, so that float32 and float64 round alike.
    tens = 10 * jnp.round(degrees / 10).astype(area.dtype)
    right = jnp.stack([jnp.ptp(x), jnp.ptp(y), corners[1, 0], area, tens])[jnp.minimum(question, ANGLE)]

    places = jnp.arange(completion.size)
    end = jnp.argmax(completion == _END)
    is_written = places < end
    is_comma = (completion == _COMMA) & is_written
    start = jnp.max(jnp.where(is_comma, places + 1, 0))
    digits = completion - _FIRST_DIGIT
    is_digit = (digits >= 0) & (digits < 10)
    is_formed = (completion[end] == _END) & jnp.all(is_digit | is_comma | ~is_written)
    is_formed &= (end > start) & (end <= start + _NUM_DIGITS) & ((digits[start] > 0) | (end == start + 1))
    worth = 10 ** jnp.clip(end - 1 - places, 0, _NUM_DIGITS - 1)
    number = jnp.sum(jnp.where(is_written & (places >= start), digits * worth, 0))
    return is_formed & (number == right), is_formed


def _angle(corners: Sequence[tuple[int, int]], direction: str) -> float:
    """Returns the angle of a triangle at its corner in some direction, degrees, by the law of cosines."""
    x, y = {"top": (0, -1), "right": (1, 0), "bottom": (0, 1), "left": (-1, 0)}[direction]
    here, one, other = sorted(corners, key=lambda corner: -corner[0] * x - corner[1] * y)
    near, far, opposite = math.dist(here, one), math.dist(here, other), math.dist(one, other)
    return math.degrees(math.acos((near**2 + far**2 - opposite**2) / (2 * near * far)))


def _verify(facts: Sequence[int], completion: Sequence[int]) -> bool:
    """Returns whether an answer is right; see `Task.verify`."""
    question, *numbers = (int(fact) for fact in facts)
    quantity, *direction = QUESTIONS[question]
    columns, rows = numbers[::2], numbers[1::2]
    corners = list(zip(columns, rows, strict=True))
    if quantity == "area":
        # Trapezia between the sides and the upper border.
        sides = zip(corners, corners[1:] + corners[:1], strict=True)
        right = abs(sum((end[0] - start[0]) * (end[1] + start[1]) for start, end in sides)) // 2
    elif quantity == "angle":
        right = 10 * round(_angle(corners[:3], *direction) / 10)
    elif quantity == "radius":
        right = numbers[2]
    else:
        places = columns if quantity == "width" else rows
        right = max(places) - min(places)
    tokens = [int(token) for token in completion]
    if _END not in tokens or not all(_COMMA <= token < _FIRST_WORD for token in tokens[: tokens.index(_END)]):
        return False
    text = "".join(_VOCABULARY[token] for token in tokens[: tokens.index(_END)])
    return text.split(_SYMBOLS[_COMMA])[-1] == str(right)


def _decode(tokens: Sequence[int]) -> str:
    """Returns the text of a prompt, with its raster above the question, or of an answer, up to its end."""
    known = [int(token) for token in tokens if int(token) != _PAD]
    patches = [token - len(_VOCABULARY) for token in known[:_NUM_PATCHES]]
    has_raster = len(patches) == _NUM_PATCHES and min(patches) >= 0
    texts = words(known[_NUM_PATCHES * has_raster :], _VOCABULARY, pad_id=_PAD, end_id=_END)
    if not has_raster:
        return "".join(texts).replace(_SYMBOLS[_COMMA], ", ")
    return f"{_rasters.to_text(patches, PATCH_SIDE)}\n{' '.join(texts)}"


def geometry(
    *,
    levels: Sequence[_generation.Level] = _LEVELS,
    test_levels: Sequence[_generation.Level] | None = None,
    format_reward: float = 0.0,
) -> Task:
    """Returns the task of measuring a figure in a small raster.

    A prompt is a raster of 24 x 24 pixels and a question such as `width >`; the last number of an answer has to be
    right.

    Args:
      levels: (question, size, weight) of each level. The level of a problem is its prompt group. Questions are 1 width
        or height of a rectangle, 2 radius of a disc, 3 angle of a triangle, 4 area of a rectangle, 5 area of a
        triangle, 6 area of a convex quadrilateral. A figure of size s fits into a square of 4s x 4s pixels.
      test_levels: levels of the test set; None is `levels`.
      format_reward: reward of an answer that consists of digits and commas and ends in a wrong number of at most 3
        digits, in [0, 1].

    Raises:
      ValueError: for an option out of range. `make_problems` and `make_solutions` raise it for an unknown split, a
        negative seed or index, or `Slips` out of range.

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task = tasks.geometry()
      >>> (prompt,), (facts,), _ = task.make_problems(0, "train", np.array([0]))
      >>> (solution,) = task.make_solutions(0, "train", np.array([0]))
      >>> task.decode(prompt).splitlines()[-1], task.decode(solution)  # first and last column, and the radius
      ('radius >', '6, 16, 5')
    """
    bounds = (("question", 1, len(figures.KINDS)), ("size", 2, SIDE // PATCH_SIDE))
    checked = _generation.check_levels(levels, test_levels, bounds)
    return Task(
        name="geometry",
        vocabulary=_VOCABULARY,
        pad_id=_PAD,
        end_id=_END,
        prompt_length=_NUM_PATCHES + _MAX_WORDS,
        completion_length=_COMPLETION_LENGTH,
        group_names=tuple(
            f"{figures.KINDS[kind - 1][0]}, up to {PATCH_SIDE * size} pixels across" for kind, size in checked.kinds
        ),
        make_problems=functools.partial(_make_problems, checked),
        make_solutions=functools.partial(_make_solutions, checked),
        score=scorer(_judge, num_facts=_NUM_FACTS, completion_length=_COMPLETION_LENGTH, format_reward=format_reward),
        verify=_verify,
        decode=_decode,
        patch_bits=_PATCH_BITS,
    )


def _draw_problems(
    levels: _generation.Levels, seed: int, split: str, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns questions and figures of some problems, int64 [N, F], and their levels, int64 [N]."""
    return _generation.draw_problems(seed, split, indices, levels, functools.partial(figures.draw, levels=levels))


def _make_problems(levels: _generation.Levels, seed: int, split: str, indices: np.ndarray) -> Problems:
    facts, level = _draw_problems(levels, seed, split, indices)
    is_disc = facts[:, 0] == RADIUS
    pixels = np.zeros((level.size, SIDE, SIDE), bool)
    pixels[is_disc] = _rasters.fill_discs(facts[is_disc, 1:3], facts[is_disc, 3], SIDE)
    pixels[~is_disc] = _rasters.fill_polygons(facts[~is_disc, 1:].reshape(-1, 4, 2), SIDE)
    patches = len(_VOCABULARY) + _rasters.to_patches(pixels, PATCH_SIDE) + _PLACES
    prompts = np.full((level.size, _NUM_PATCHES + _MAX_WORDS), _PAD, np.int64)
    for number, question in enumerate(QUESTIONS):
        rows = facts[:, 0] == number
        asked = [_VOCABULARY.index(word) for word in (*question, _SYMBOLS[_GOAL])]
        prompts[rows, -len(asked) :] = asked
        prompts[rows, -len(asked) - _NUM_PATCHES : -len(asked)] = patches[rows]
    return Problems(prompts.astype(np.int32), facts.astype(np.int32), level.astype(np.int32))


def _make_solutions(
    levels: _generation.Levels, seed: int, split: str, indices: np.ndarray, slips: Slips | None = None
) -> np.ndarray:
    facts, level = _draw_problems(levels, seed, split, indices)
    question = np.minimum(facts[:, 0], ANGLE)
    chances = _generation.solution_streams(seed, split, indices)
    slips = None if slips is None else check_slips(slips)
    family = levels.column(0)[level] - 1
    readings = [
        write(slips, chances, side, 10**_NUM_DIGITS * side + column, family, column, SIDE)
        for side, column in enumerate(_box(facts).T)
    ]
    left, right, top, bottom = readings
    zeros = np.zeros_like(left)
    spans = np.choose(question, [right - left, bottom - top, (right - left) // 2, zeros, zeros])
    # Lengths follow from the numbers that were written before, right or wrong.
    answers = np.where(question <= RADIUS, np.maximum(spans, 0), _right_answers(facts))
    scale = np.where(question == ANGLE, 10, 1)
    fact = 10**_NUM_DIGITS * (len(readings) + question) + answers
    limit = np.array([SIDE, SIDE, SIDE // 2, SIDE**2, 18])[question]
    answers = scale * write(slips, chances, len(readings), fact, family, answers // scale, limit)
    is_read = np.array(_IS_READ)[question]
    return _write_numbers(np.where(is_read == 1, np.stack(readings, axis=1), _generation.ABSENT), answers)


def _write_numbers(readings: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns the tokens of readings [N, R], where they are not `ABSENT`, and answers [N], int32 [N, T]."""
    numbers = np.concatenate([readings, answers[:, None]], axis=1)[..., None]
    worth = 10 ** np.arange(_NUM_DIGITS - 1, -1, -1)
    is_digit = (numbers >= 0) & ((numbers >= worth) | (worth == 1))
    digits = np.where(is_digit, numbers // worth % 10 + _FIRST_DIGIT, _generation.ABSENT)
    after = np.where(numbers >= 0, _COMMA, _generation.ABSENT)
    after[:, -1] = _END
    tokens = np.concatenate([digits, after], axis=2).reshape(answers.size, -1)
    order = np.argsort(tokens == _generation.ABSENT, axis=1, kind="stable")[:, :_COMPLETION_LENGTH]
    tokens = np.take_along_axis(tokens, order, axis=1)
    return np.where(tokens == _generation.ABSENT, _PAD, tokens).astype(np.int32)
