"""HTML from functions: text is escaped unless it is markup already."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = ("br", "input", "meta")
_CLOSED = ("line", "circle", "path")
NONE = "\N{EN DASH}"


class Markup(str):
    """Text that is HTML; all other text is escaped where it goes into HTML."""

    __slots__ = ()


def to_markup(value: Any) -> Markup:
    """Returns markup as it is, the parts of a list one after the other, None as nothing, and other values escaped."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("")
    if isinstance(value, (list, tuple)):
        return Markup("".join(map(to_markup, value)))
    return Markup(html.escape(str(value), quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Returns an element. Underscores in names of attributes are hyphens, but for one at the end; None leaves one out.

    An attribute that is True has no value.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value), quote=True)}"')
    start = f"<{' '.join(words)}>"
    if name in _VOID:
        return Markup(start)
    if name in _CLOSED and not children:
        return Markup(f"{start[:-1]}/>")
    return Markup(f"{start}{to_markup(children)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: str, **attributes: Any) -> Markup:
    """Returns a table that scrolls in its own box where it is wider than the page; first cells are heads of rows."""
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    found = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head])),
        tag("tbody", body),
        **attributes,
    )
    return tag("div", found, class_="scroll", tabindex="0", role="region", aria_label=caption)


def number(value: Any, digits: int = 3) -> str:
    """Returns a number in few characters; a dash where there is none."""
    if value is None or value != value:
        return NONE
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: Any, digits: int = 1) -> str:
    """Returns a share as a percentage; a dash where there is none."""
    return NONE if value is None or value != value else f"{100 * value:.{digits}f} %"


def shortened(text: str, limit: int) -> str:
    """Returns a text cut to a number of characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
