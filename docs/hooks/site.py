"""What MkDocs does not do by itself: formulas as MathML, and links of pages that GitHub shows from another folder."""

from __future__ import annotations

import html
import re
from typing import Any

import latex2mathml.converter

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# They stand in the root of the repository, and link from there.
_FROM_ROOT = ("contributing.md", "changelog.md")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns the text of a page with links from the folder of the documentation."""
    return markdown.replace("](docs/", "](") if page.file.src_uri in _FROM_ROOT else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Returns the page with its formulas as MathML, which browsers draw without a script."""
    return _FORMULA.sub(_to_mathml, content)


def _to_mathml(match: re.Match[str]) -> str:
    display = "inline" if match[2] == "(" else "block"
    return latex2mathml.converter.convert(html.unescape(match[3]).strip(), display=display)
