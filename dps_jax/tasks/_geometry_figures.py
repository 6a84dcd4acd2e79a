"""Figures of the task `geometry` and the questions about them, drawn as whole numbers; see `_geometry`."""

from __future__ import annotations

import numpy as np

from dps_jax.tasks import _generation, _rasters

SIDE, PATCH_SIDE = 24, 4
# All questions; facts have the index of a question in this list.
QUESTIONS = (
    *(("width",), ("height",), ("radius",), ("area",)),
    *(("angle", "top"), ("angle", "right"), ("angle", "bottom"), ("angle", "left")),
)
WIDTH, _, RADIUS, AREA, ANGLE = range(5)
# Kinds of questions, in the order of the first number of levels: description, first question, number of questions.
KINDS = (
    ("width or height of a rectangle", WIDTH, 2),
    ("radius of a disc", RADIUS, 1),
    ("angle of a triangle", ANGLE, 4),
    ("area of a rectangle", AREA, 1),
    ("area of a triangle", AREA, 1),
    ("area of a quadrilateral", AREA, 1),
)
_DISC, _TRIANGLES, _QUADRILATERAL = 1, (2, 4), 5
# Least length and width of rectangles and of bounding boxes of other polygons, and least radius of discs. The raster of
# a disc of radius 2 is also that of a square.
_MIN_LENGTH, _MIN_WIDTH, _MIN_RADIUS = 4, 2, 3
# Largest difference between an angle and the multiple of ten that is its answer, degrees.
_MAX_ROUNDING = 2.0


def draw(
    stream: _generation.Stream, level: np.ndarray, levels: _generation.Levels
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns questions and figures [N, 9], the canonical form of the figures [N, 5], and is_problem [N].

    A polygon is the (column, row) of four corners; a triangle has its last corner twice. A disc is its centre and its
    radius, followed by zeros. The canonical form omits the question, so that all questions about a figure are in one
    split.
    """
    kind, size = levels.column(0)[level] - 1, levels.column(1)[level]
    first, num = np.array([numbers for _, *numbers in KINDS])[kind].T
    question = first + stream.integers(0, num)
    is_disc, is_triangle = kind == _DISC, np.isin(kind, _TRIANGLES)
    corners = _corners(stream, is_triangle, kind == _QUADRILATERAL, size)
    disc = _disc(stream, size)
    figure = np.where(is_disc[:, None], disc, corners.reshape(-1, 8))

    area = np.abs(_rasters.twice_area(corners))
    spans = corners.max(axis=1) - corners.min(axis=1)
    is_thick = area >= 2 * spans.max(axis=1)
    is_polygon = is_thick & ((kind != _QUADRILATERAL) | _is_convex(corners))
    is_whole = np.where(question >= ANGLE, _is_near_ten(corners, question), (question != AREA) | (area % 2 == 0))

    places = corners[..., 0] * SIDE + corners[..., 1]
    places[is_triangle, 3] = _generation.ABSENT
    places = np.where(is_disc[:, None], disc[:, :4], np.sort(places, axis=1))
    canonical = np.concatenate([is_disc[:, None], places], axis=1)
    return np.concatenate([question[:, None], figure], axis=1), canonical, is_disc | (is_polygon & is_whole)


def _corners(
    stream: _generation.Stream, is_triangle: np.ndarray, is_quadrilateral: np.ndarray, size: np.ndarray
) -> np.ndarray:
    """Returns the corners of triangles, quadrilaterals and, else, rectangles, int64 [N, 4, 2].

    The bounding box of a polygon is drawn first, then the points where the polygon touches its sides. A triangle always
    has one corner in a corner of its box; its other corners are on the two sides that do not meet there.
    """
    long = _MIN_LENGTH + stream.integers(1, PATCH_SIDE * size - _MIN_LENGTH)
    short = _MIN_WIDTH + stream.integers(2, long - _MIN_WIDTH + 1)
    is_wide = stream.integers(3, 2) == 1
    width, height = np.where(is_wide, long, short), np.where(is_wide, short, long)
    top, bottom = stream.integers(4, width + 1), stream.integers(5, width + 1)
    right, left = stream.integers(6, height + 1), stream.integers(7, height + 1)
    zero = np.zeros(size.size, np.int64)
    rectangle = (zero, zero, width, zero, width, height, zero, height)
    triangle = (zero, zero, width, right, bottom, height, bottom, height)
    quadrilateral = (top, zero, width, right, bottom, height, zero, left)
    columns = [
        np.select([is_triangle, is_quadrilateral], choices, default)
        for *choices, default in zip(triangle, quadrilateral, rectangle, strict=True)
    ]
    found = np.stack(columns, axis=1).reshape(-1, 4, 2)
    box = np.stack([width, height], axis=1)[:, None]
    # Mirrored at random, so that the corner of a triangle may be in any corner of the box.
    is_mirrored = np.stack([stream.integers(8, 2), stream.integers(9, 2)], axis=1)[:, None] == 1
    start = np.stack([stream.integers(10, SIDE - width), stream.integers(11, SIDE - height)], axis=1)[:, None]
    return np.where(is_mirrored, box - found, found) + start


def _disc(stream: _generation.Stream, size: np.ndarray) -> np.ndarray:
    """Returns column and row of the centre and the radius of discs, then zeros, int64 [N, 8]."""
    radius = _MIN_RADIUS + stream.integers(12, PATCH_SIDE * size // 2 - _MIN_RADIUS)
    centre = [radius + stream.integers(draw, SIDE - 2 * radius) for draw in (13, 14)]
    return np.stack([*centre, radius, *[np.zeros_like(radius)] * 5], axis=1)


def _is_convex(corners: np.ndarray) -> np.ndarray:
    """Returns whether each quadrilateral, given by its corners [N, 4, 2], is convex, bool [N]."""
    edges = np.roll(corners, -1, axis=1) - corners
    after = np.roll(edges, -1, axis=1)
    turns = edges[..., 0] * after[..., 1] - edges[..., 1] * after[..., 0]
    return np.all(turns > 0, axis=1) | np.all(turns < 0, axis=1)


def _towards(corners: np.ndarray, question: np.ndarray) -> np.ndarray:
    """Returns how far corners of triangles are in the direction of the question, such as "top", int64 [N, 3]."""
    x, y = corners[:, :3, 0], corners[:, :3, 1]
    return np.choose(np.maximum(question - ANGLE, 0)[:, None], [-y, x, y, -x])


def degrees(corners: np.ndarray, question: np.ndarray) -> np.ndarray:
    """Returns the angles of triangles, [N, 4, 2], that questions [N] ask for, float64 [N]; undefined for others."""
    corner = np.argmax(_towards(corners, question), axis=1)
    rows = np.arange(corner.size)
    first, second = (corners[rows, (corner + step) % 3] - corners[rows, corner] for step in (1, 2))
    cross = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    return np.degrees(np.arctan2(np.abs(cross), np.sum(first * second, axis=1)))


def _is_near_ten(corners: np.ndarray, question: np.ndarray) -> np.ndarray:
    """Returns whether each question has a unique corner, with an angle close to a multiple of ten, bool [N]."""
    towards, found = _towards(corners, question), degrees(corners, question)
    is_single = np.sum(towards == towards.max(axis=1, keepdims=True), axis=1) == 1
    tens = np.round(found, -1)
    return is_single & (tens > 0) & (np.abs(found - tens) <= _MAX_ROUNDING)
