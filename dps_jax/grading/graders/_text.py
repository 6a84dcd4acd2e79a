"""Finds the answer in a completion."""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")


def last_tagged(text: str, tag: str) -> str | None:
    """Returns the text between the last closing tag and the opening tag before it; None without such a pair."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return None if start < 0 else text[start + len(tag) + 2 : end]


def last_boxed(text: str) -> tuple[int, str] | None:
    r"""Returns the end and the content of the last \boxed{...} with balanced braces; None without one."""
    found = None
    opened: list[int | None] = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.startswith("\\boxed"):
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened and (start := opened.pop()) is not None:
            found = match.end(), text[start : match.start()]
    return found
