"""Values of options that are given as text behind the name of a method."""

from __future__ import annotations

import ast
from typing import Any


def literal(text: str) -> Any:
    """Returns the Python literal that a text is, and else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
