"""Functions that build HTML; text is escaped unless it is already markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = ("br", "input", "meta")
_CLOSED = ("line", "circle", "path")
NONE = "\N{EN DASH}"


class Markup(str):
    """Text that is already HTML; the functions of this module escape all other text."""

    __slots__ = ()


def to_markup(value: Any) -> Markup:
    """Returns markup unchanged, lists as concatenated items, None as nothing, and other values as escaped text."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("")
    if isinstance(value, (list, tuple)):
        return Markup("".join(map(to_markup, value)))
    return Markup(html.escape(str(value), quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Returns an HTML element.

    In names of attributes, underscores at the end are dropped and other underscores become hyphens. An attribute that
    is None or False is left out, and an attribute that is True has no value.
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
    """Returns a table, in a box that scrolls if the table is too wide; the first cell of each row is its head."""
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
    """Returns a number in few characters; a dash for None and NaN."""
    if value is None or value != value:
        return NONE
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: Any, digits: int = 1) -> str:
    """Returns a share as a percentage; a dash for None and NaN."""
    return NONE if value is None or value != value else f"{100 * value:.{digits}f} %"


def shortened(text: str, limit: int) -> str:
    """Returns a text, shortened to at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
