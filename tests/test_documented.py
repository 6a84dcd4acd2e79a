"""The fields of public NamedTuples have docstrings of their own."""

import pydoc
from typing import NamedTuple

import pytest

from dps_jax import predictors, rl, selectors
from dps_jax._documented import documented
from tests.test_examples import OBJECTS


@documented
class Point(NamedTuple):
    """A point.

    Attributes:
      x: distance to the left border,
        in metres.
      y: height, [N]: of the middle.

    Example:
      x: is no entry here.
    """

    x: float
    y: float
    other: float = 0.0


def test_fields_have_the_text_of_their_entries():
    assert Point.x.__doc__ == "distance to the left border, in metres."
    assert Point.y.__doc__ == "height, [N]: of the middle."
    assert "distance to the left border" in pydoc.render_doc(Point, renderer=pydoc.plaintext)


def test_the_class_is_otherwise_unchanged():
    assert Point(1.0, 2.0)._replace(x=3.0) == (3.0, 2.0, 0.0)
    assert Point.other.__doc__ == "Alias for field number 2"


def test_classes_without_a_docstring_or_fields_are_left_alone():
    class Plain:
        pass

    class Bare(NamedTuple):
        x: int

    assert documented(Plain) is Plain
    assert documented(Bare).x.__doc__ == "Alias for field number 0"


# The packages whose NamedTuples have the decorator.
PACKAGES = ("hmm", "predictors", "selectors", "types", "advise", "prompt_selector")


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in OBJECTS.items()
        if name.split(".")[1] in PACKAGES and isinstance(value, type) and hasattr(value, "_fields")
    ],
)
def test_fields_of_public_named_tuples_are_documented(name):
    cls = OBJECTS[name]
    bare = [field for field in cls._fields if getattr(cls, field).__doc__.startswith("Alias for field number")]
    assert not bare, f"{name}: expected an entry in Attributes for every field, and the decorator `documented`"


def test_bundles_of_functions_are_shown_by_their_names():
    selector = selectors.mopps(3)
    assert repr(selector) == "Selector(init, select, observe, predict, to_portable, from_portable, layout)"
    assert repr(predictors.mopps()).startswith("Predictor(init, predict, observe, outcome_probs")
    assert repr(rl.learner(lambda *_: None, learning_rate=0.1)) == "Learner(init, update, gradient)"
