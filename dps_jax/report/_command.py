"""The command: its options, its progress messages on standard error, and the line that names the written file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from dps_jax import traces
from dps_jax.report import _page


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs to report on, and the file to write."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of runs, or traces: files or folders in any format that docs/traces.md lists."""
    out: Path = Path("report.html")
    """HTML file to write; an earlier report there is replaced, and any other file is an error."""
    columns: traces.ColumnNames = dataclasses.field(default_factory=traces.ColumnNames)
    """Names of the columns of traces, where they differ from the names that trainers use."""
    threshold: float | None = None
    """Smallest reward in a trace that counts as correct; by default rewards must be 0 or 1."""


def main(config: Config) -> str:
    """Writes the page, and returns a line that names it.

    Raises:
      ValueError: for an option that cannot be used, and wherever `report.page` raises it.
      OSError: if a file cannot be read or written.
    """
    if config.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out: expected a file that ends in .html, got {config.out}; rename it")
    if not config.out.parent.is_dir():
        raise ValueError(f"out: expected an existing folder {config.out.parent}, got none; create it")
    if config.out.exists() and not _is_report(config.out):
        raise ValueError(
            f"out: expected a new file or an earlier report, got {config.out}, which is another file; "
            "choose another name"
        )
    progress = lambda message: print(message, file=sys.stderr, flush=True)
    options = {"columns": config.columns, "threshold": config.threshold, "progress": progress}
    path = _page.write(config.runs, config.out, **options)
    return f"wrote {path} ({path.stat().st_size / 1000:,.0f} kB)"


def _is_report(path: Path) -> bool:
    """Returns whether a file is a page that `report.write` wrote."""
    with open(path, "rb") as file:
        return f'name="generator" content="{_page.GENERATOR}"'.encode() in file.read(1000)
