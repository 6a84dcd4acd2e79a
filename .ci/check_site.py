"""Checks that each internal link of the built site leads to a page and an anchor, and that no resource is external.

python .ci/check_site.py runs/site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, the resources that it loads, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects links, sources and anchors."""
        is_style = tag == "link" and ("rel", "stylesheet") in attrs
        self.loaded += [value for name, value in attrs if value and (name == "src" or (is_style and name == "href"))]
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def read(path: Path) -> Page:
    """Returns the links and anchors of a page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken(site: Path) -> list[str]:
    """Returns a line for every link within the site that leads nowhere, and for every resource from elsewhere."""
    pages = {path: read(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are relative to the root of a server
            continue
        found += [
            f"{path.relative_to(site)}: {link} is loaded from elsewhere"
            for link in page.loaded
            if urlsplit(link).netloc
        ]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{path.relative_to(site)}: {link} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{path.relative_to(site)}: {link} has no such anchor")
    return found


def main(site: Path) -> None:
    """Ends with an error that lists all broken links."""
    lines = broken(site.resolve())
    if lines:
        sys.exit("\n".join(lines))
    print(f"{len(list(site.rglob('*.html')))} pages, no broken link")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
