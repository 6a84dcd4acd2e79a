"""The command: options, progress on standard error, and a line about what was written."""

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
    """What to show, and where to write it."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of runs, or traces."""
    out: Path = Path("report.html")
    """The page; a file that is there is replaced."""
    columns: traces.ColumnNames = dataclasses.field(default_factory=traces.ColumnNames)
    """Names of the columns of traces, where they are not those that trainers use."""
    threshold: float | None = None
    """In traces, completions with a reward of at least this are correct; by default rewards are 0 or 1."""


def main(config: Config) -> str:
    """Writes the page, and returns a line that names it.

    Raises:
      ValueError: for an option that cannot be used, or as `report.page`.
      OSError: if a file cannot be read or written.
    """
    if config.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out: expected a file that ends in .html, got {config.out}; rename it")
    if not config.out.parent.is_dir():
        raise ValueError(f"out: expected a folder {config.out.parent}, got none; make it")
    progress = lambda message: print(message, file=sys.stderr, flush=True)
    options = {"columns": config.columns, "threshold": config.threshold, "progress": progress}
    path = _page.write(config.runs, config.out, **options)
    return f"wrote {path} ({path.stat().st_size / 1000:,.0f} kB)"
