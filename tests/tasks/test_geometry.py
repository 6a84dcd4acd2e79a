"""Geometry: rasters against point-in-polygon loops, and answers read back from the pixels alone."""

import math
import re

import numpy as np
import pytest

from dps_jax import tasks
from dps_jax.tasks import _generation, _geometry_figures, _rasters
from dps_jax.tasks._slips import Slips

SIDE = 24
# Answers to the area of a triangle with an area of 24; the last number counts.
ANSWERS = {
    "24": True,
    "3, 11, 2, 8, 24": True,
    "3, 11, 2, 9, 24": True,
    "24, 25": False,
    "24, ": False,
    ", 24": True,
    "024": False,
    "2, 4": False,
    "240": False,
    "1024": False,
    "area24": False,
    "24>": False,
    "": False,
}
EVERY = tuple((kind, size, 1.0) for kind in range(1, 7) for size in (2, 4, 6))


@pytest.fixture(scope="module")
def task():
    return tasks.build("geometry")


@pytest.fixture(scope="module")
def drawn():
    """Returns the task with every kind of question at three sizes, and 1500 of its problems."""
    task = tasks.build("geometry", levels=EVERY)
    return task, task.make_problems(0, "train", np.arange(1500))


def pixels_of(task, prompt):
    """Returns the raster of a prompt, read from its tokens pixel by pixel, bool [24, 24]."""
    patches = [int(token) - len(task.vocabulary) for token in prompt if token >= len(task.vocabulary)]
    # Behind the pixels, one bit of six says in which row the patch is, and one of six in which column.
    assert [patch >> 16 for patch in patches] == [2**row + 2 ** (6 + column) for row in range(6) for column in range(6)]
    found = np.zeros((SIDE, SIDE), bool)
    for row in range(SIDE):
        for column in range(SIDE):
            bit = 4 * (row % 4) + column % 4
            found[row, column] = patches[6 * (row // 4) + column // 4] // 2**bit % 2
    return found


def question_of(task, prompt):
    return [task.vocabulary[token] for token in prompt if 0 < token < len(task.vocabulary)][:-1]


def is_in_polygon(x, y, corners):
    """Returns whether a point is in a polygon or on its border, by a ray to the right and distances to the sides."""
    is_inside = False
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.hypot(bx - ax, by - ay)
        share = 0.0 if length == 0 else max(0.0, min(1.0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length**2))
        if math.hypot(ax + share * (bx - ax) - x, ay + share * (by - ay) - y) < 1e-9:
            return True
        if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
            is_inside = not is_inside
    return is_inside


def hull(points):
    """Returns the corners of the convex hull of points in order, by Andrew's monotone chains."""

    def chain(points):
        found = []
        for point in points:
            while len(found) > 1 and turn(found[-2], found[-1], point) <= 0:
                found.pop()
            found.append(point)
        return found[:-1]

    points = sorted(points)
    return chain(points) + chain(points[::-1])


def turn(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def read_answer(question, pixels):
    """Returns the answer to a question about a raster, from its set pixels and nothing else."""
    rows, columns = np.nonzero(pixels)
    if question == ["width"]:
        return int(np.ptp(columns))
    if question == ["height"]:
        return int(np.ptp(rows))
    if question == ["radius"]:
        return int(np.ptp(columns)) // 2
    corners = hull(list(zip(columns.tolist(), rows.tolist(), strict=True)))
    sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
    if question == ["area"]:
        # Pick's theorem: points inside, and half of those on the border, less one.
        on_border = sum(math.gcd(b[0] - a[0], b[1] - a[1]) for a, b in sides)
        twice_area = 2 * rows.size - on_border - 2
        assert twice_area % 2 == 0
        return twice_area // 2
    assert len(corners) == 3
    sign = {"top": (0, -1), "right": (1, 0), "bottom": (0, 1), "left": (-1, 0)}[question[1]]
    reach = [x * sign[0] + y * sign[1] for x, y in corners]
    assert reach.count(max(reach)) == 1
    place = reach.index(max(reach))
    here, ways = corners[place], [corners[place - 1], corners[place - 2]]
    first, second = (math.atan2(y - here[1], x - here[0]) for x, y in ways)
    degrees = abs(math.degrees(first - second))
    degrees = min(degrees, 360 - degrees)
    assert abs(degrees - 10 * round(degrees / 10)) < 2.001
    return 10 * round(degrees / 10)


def test_polygons_equal_point_in_polygon_loops(drawn):
    _, problems = drawn
    facts = problems.facts[problems.facts[:, 0] != _geometry_figures.RADIUS][:60]
    corners = facts[:, 1:].reshape(-1, 4, 2)
    found = _rasters.fill_polygons(corners, SIDE)
    # In the other sense of rotation, too.
    np.testing.assert_array_equal(_rasters.fill_polygons(corners[:, ::-1], SIDE), found)
    for polygon, raster in zip(corners.tolist(), found, strict=True):
        expected = [
            [is_in_polygon(float(x), float(y), [tuple(map(float, corner)) for corner in polygon]) for x in range(SIDE)]
            for y in range(SIDE)
        ]
        np.testing.assert_array_equal(raster, expected)


def test_discs_equal_distances():
    centres, radii = np.array([[5, 9], [12, 11], [2, 21]]), np.array([3, 11, 2])
    found = _rasters.fill_discs(centres, radii, SIDE)
    for (column, row), radius, raster in zip(centres.tolist(), radii.tolist(), found, strict=True):
        expected = [[math.hypot(x - column, y - row) <= radius for x in range(SIDE)] for y in range(SIDE)]
        np.testing.assert_array_equal(raster, expected)


def test_a_raster_determines_the_answer(drawn):
    task, problems = drawn
    solutions = task.make_solutions(0, "train", np.arange(1500))
    asked = set()
    for prompt, solution in zip(problems.prompts, solutions, strict=True):
        question = question_of(task, prompt)
        asked.add(" ".join(question))
        pixels = pixels_of(task, prompt)
        *readings, answer = map(int, task.decode(solution).split(", "))
        assert answer == read_answer(question, pixels)
        rows, columns = np.nonzero(pixels)
        box = {"x": [columns.min(), columns.max()], "y": [rows.min(), rows.max()]}
        sides = {"width": "x", "height": "y", "radius": "x"}.get(question[0], "xy")
        assert readings == [place for side in sides for place in box[side]]
    assert asked == {
        "width",
        "height",
        "radius",
        "area",
        *(f"angle {way}" for way in ("top", "right", "bottom", "left")),
    }


def test_a_picture_by_hand(task):
    # Corners at (3, 2), (11, 4) and (3, 8): a base of 6 and a height of 8.
    corners = np.array([[[3, 2], [11, 4], [3, 8], [3, 8]]])
    pixels = _rasters.fill_polygons(corners, SIDE)
    text = _rasters.to_text(_rasters.to_patches(pixels, 4)[0], 4)
    empty = "." * SIDE
    picture = ["...#,,,,", "...#######''", "...###''", "...'"]
    assert text.split("\n") == [empty, *(line.ljust(SIDE, ".") for line in picture), *[empty] * 7]
    facts = np.array([3, *corners.ravel()])
    for answer, is_right in ANSWERS.items():
        tokens = [task.vocabulary.index(text) for text in re.findall("[a-z]+|[^ ]", answer)]
        tokens += [task.end_id] + [task.pad_id] * (task.completion_length - len(tokens) - 1)
        assert task.verify(facts, tokens) is is_right
        score = task.score(facts, np.array(tokens))
        assert bool(score.is_correct) is is_right
        assert task.decode(tokens) == answer
        # Without an end there is no answer.
        open_end = [token if token != task.end_id else task.pad_id for token in tokens]
        assert not task.verify(facts, open_end)
        assert not task.score(facts, np.array(open_end)).is_correct


def test_prompts_are_shown_as_their_raster_and_question(drawn):
    task, problems = drawn
    for prompt in problems.prompts[:40]:
        *lines, question = task.decode(prompt).split("\n")
        assert question == " ".join([*question_of(task, prompt), ">"])
        pixels = pixels_of(task, prompt)
        assert [len(line) for line in lines] == [24] * 12
        shown = [[character in pair for line in lines for character in line] for pair in ("'#", ",#")]
        np.testing.assert_array_equal(np.reshape(shown[0], (12, 24)), pixels[::2])
        np.testing.assert_array_equal(np.reshape(shown[1], (12, 24)), pixels[1::2])


@pytest.mark.parametrize(
    ("answer", "is_formed"), [("7", True), ("0", True), ("1,123", True), ("07", False), ("7,", False), ("", False)]
)
def test_any_number_is_well_formed(answer, is_formed):
    task = tasks.build("geometry", format_reward=0.5)
    tokens = [task.vocabulary.index(digit) for digit in answer] + [task.end_id] * (task.completion_length - len(answer))
    assert task.score(np.array([2, 9, 9, 5, 0, 0, 0, 0, 0]), np.array(tokens)).rewards == 0.5 * is_formed


def test_levels_set_questions_and_sizes(drawn):
    task, problems = drawn
    quantities = (("width", "height"), ("radius",), ("angle",), ("area",), ("area",), ("area",))
    for prompt, facts, group in zip(problems.prompts, problems.facts, problems.groups, strict=True):
        kind, size, _ = EVERY[group]
        assert question_of(task, prompt)[0] in quantities[kind - 1]
        rows, columns = np.nonzero(pixels_of(task, prompt))
        assert 4 <= max(np.ptp(rows), np.ptp(columns)) < 4 * size
        num_corners = len(hull(list(zip(columns.tolist(), rows.tolist(), strict=True))))
        assert num_corners > 4 if kind == 2 else num_corners == (3 if kind in (3, 5) else 4)
        assert (facts[0] == _geometry_figures.RADIUS) == (kind == 2)
    names = task.group_names
    assert names[3] == "radius of a disc, up to 8 pixels across"


def test_splits_share_no_figure_whatever_is_asked():
    seen = {}
    for split in ("train", "test", "warmup"):
        prompts = [
            tasks.build("geometry", levels=levels).make_problems(seed, split, np.arange(3000)).prompts
            for seed, levels in enumerate((((3, 2, 1.0),), ((5, 2, 0.9), (2, 4, 0.1))))
        ]
        seen[split] = {tuple(row[row >= 2**16].tolist()) for row in np.concatenate(prompts)}
        assert len(seen[split]) > 100
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["warmup"]
    assert not seen["test"] & seen["warmup"]


def test_the_canonical_form_is_of_the_figure():
    levels = _generation.check_levels(EVERY, None, (("question", 1, 6), ("size", 2, 6)))
    streams = _generation.streams(0, "train", np.arange(6000))
    facts, canonical, is_problem = _geometry_figures.draw(streams, np.arange(6000) % len(EVERY), levels)
    facts, canonical = facts[is_problem], canonical[is_problem]
    is_disc = facts[:, 0] == _geometry_figures.RADIUS
    drawn = _rasters.fill_polygons(facts[:, 1:].reshape(-1, 4, 2), SIDE)
    drawn[is_disc] = _rasters.fill_discs(facts[is_disc, 1:3], facts[is_disc, 3], SIDE)
    forms = {}
    for raster, form in zip(drawn, canonical.tolist(), strict=True):
        assert forms.setdefault(raster.tobytes(), form) == form
    assert len({tuple(form) for form in forms.values()}) == len(forms) > 1000


def test_slips_are_numbers_of_the_kind_and_spare_the_easiest_questions():
    task, indices = tasks.build("geometry", levels=EVERY), np.arange(3000)
    problems = task.make_problems(0, "warmup", indices)
    right = task.make_solutions(0, "warmup", indices)
    np.testing.assert_array_equal(right, task.make_solutions(0, "warmup", indices, Slips(0.0, 0.0)))
    sloppy = task.make_solutions(0, "warmup", indices, Slips(0.5, 0.5, num_spared=1))
    is_slip = np.any(sloppy != right, axis=1)
    assert not np.any(is_slip[problems.groups < 3])
    # Two readings and an answer may slip, or four and an answer.
    np.testing.assert_allclose(is_slip[(problems.groups >= 3) & (problems.groups < 6)].mean(), 1 - 0.5**3, atol=0.05)
    np.testing.assert_allclose(is_slip[problems.groups >= 6].mean(), 1 - 0.5**5, atol=0.02)
    numbers = [[int(number) for number in task.decode(row).split(", ")] for row in sloppy]
    angles = {row[-1] for row, fact in zip(numbers, problems.facts, strict=True) if fact[0] >= _geometry_figures.ANGLE}
    assert angles == set(range(0, 180, 10))
    assert all(reading < SIDE for row in numbers for reading in row[:-1])
    # Lengths go on from what was read: half of the answers that follow a wrong reading are right for it.
    radii = np.array([row for row, fact in zip(numbers, problems.facts, strict=True) if fact[0] == 2])
    wrong = radii[(radii[:, 1] - radii[:, 0]) % 2 == 1]
    follows = wrong[:, 2] == np.maximum(wrong[:, 1] - wrong[:, 0], 0) // 2
    np.testing.assert_allclose(follows.mean(), 0.5, atol=0.1)
    with pytest.raises(ValueError, match=r"slips\.lowest: expected .*-0\.1"):
        task.make_solutions(0, "warmup", indices, Slips(lowest=-0.1))
