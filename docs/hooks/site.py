"""What MkDocs does not do by itself: formulas as MathML, and links between pages that are named as files."""

from __future__ import annotations

import html
import re
from typing import Any

import latex2mathml.converter
from mkdocs.utils import get_relative_url

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# They stand in the root of the repository, and link from there.
_FROM_ROOT = ("contributing.md", "changelog.md")
_NOTEBOOK = re.compile(r'href="(\w+)\.ipynb"')
# Docstrings name pages as files of the repository: docs/terms.md.
_PAGE = re.compile(r"(?<![\w/\">.])(?:<code>)?docs/([\w/-]+\.md)(?:</code>)?(?![\w#])")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns the text of a page with links from the folder of the documentation, and sets its weight in searches."""
    # The reference has every word many times; a reader who searches wants the page that explains it.
    page.meta.setdefault("search", {"boost": 0.3 if page.file.src_uri.startswith("api/") else 2})
    return markdown.replace("](docs/", "](") if page.file.src_uri in _FROM_ROOT else markdown


def on_page_content(content: str, page: Any, files: Any, **_: Any) -> str:
    """Returns the page with formulas as MathML, which browsers draw without a script, and names of pages as links."""

    def to_link(match: re.Match[str]) -> str:
        file = files.get_file_from_path(match[1])
        if file is None or file.page is None:
            return match[0]
        title = file.page.title or match[1]
        return f'<a href="{get_relative_url(file.url, page.url)}">{html.escape(title)}</a>'

    content = _PAGE.sub(to_link, _FORMULA.sub(_to_mathml, content))
    # Notebooks link to one another as files.
    return _NOTEBOOK.sub(r'href="../\1/"', content) if page.file.src_uri.endswith(".ipynb") else content


def _to_mathml(match: re.Match[str]) -> str:
    display = "inline" if match[2] == "(" else "block"
    return latex2mathml.converter.convert(html.unescape(match[3]).strip(), display=display)
