"""Executes the notebooks and writes their outputs into them; `--small` runs them at small sizes and writes nothing.

A notebook has one cell tagged "parameters". With `--small`, its source is replaced by the text in the metadata of the
notebook under "dps_jax", "small". A notebook that fails is not changed.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from rich.console import Console
from rich.progress import Progress

from dps_jax import _checks, _cli, _files

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


class NotebookError(RuntimeError):
    """A cell of a notebook failed."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The notebooks to execute."""

    small: bool = False
    """Run at small sizes, and write nothing."""
    only: tuple[str, ...] = ()
    """Notebooks to execute, by the start of their names, as in --only 01 03; by default all."""
    folder: Path = FOLDER
    """Folder of the notebooks, which is also their working directory."""
    timeout_s: int = 1200
    """Time limit for a cell, in seconds."""

    def __post_init__(self):
        _checks.check_int("timeout_s", self.timeout_s, at_least=1)


def use_small_sizes(notebook: nbformat.NotebookNode) -> None:
    """Replaces the parameters of a notebook by the small ones in its metadata.

    Raises:
      ValueError: if the notebook does not have exactly one cell of parameters, or has no small parameters.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"expected one cell tagged 'parameters', got {len(cells)}")
    small = notebook.metadata.get("dps_jax", {}).get("small")
    if not isinstance(small, str):
        raise ValueError(f"expected small parameters in the metadata dps_jax.small, got {small!r}")
    cells[0].source = small


def execute(
    path: Path, *, is_small: bool = False, timeout_s: int = 1200, progress: Callable[[int, int], None] | None = None
) -> nbformat.NotebookNode:
    """Returns a notebook with the outputs of one run of all cells in order, in a fresh kernel; writes nothing.

    Args:
      path: path of the notebook, which runs in its own folder.
      is_small: whether to use the small parameters of the notebook.
      timeout_s: time limit for a cell, in seconds.
      progress: function that is called with the number of executed cells and the number of all cells.

    Raises:
      ValueError: for a file that is not a notebook, or a notebook without small parameters if `is_small`.
      NotebookError: if a cell fails; the message names the notebook and the cell.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        if is_small:
            use_small_sizes(notebook)
    except (ValueError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    # Timings are not recorded, so that a run with the same outputs gives the same file.
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        record_timing=False,
        # Errors only: the kernel warns that it listens on loopback without encryption.
        extra_arguments=["--Application.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    index, num_run = 0, 0
    try:
        with client.setup_kernel():
            for index, cell in enumerate(notebook.cells):
                if cell.cell_type == "code":
                    num_run += 1
                    client.execute_cell(cell, index, execution_count=num_run)
                if progress is not None:
                    progress(index + 1, len(notebook.cells))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        first_line = next(iter(notebook.cells[index].source.splitlines()), "")
        raise NotebookError(f"{path.name}, cell {index} ({first_line!r}), In [{num_run}]: {error}") from error
    return notebook


def main(config: Config) -> dict[str, float]:
    """Executes the notebooks, and returns the seconds of each.

    Raises:
      ValueError: for a start of a name that no notebook has.
      NotebookError: if a notebook fails; the notebooks before it have been written.
    """
    paths = sorted(config.folder.glob("*.ipynb"))
    names = [path.name for path in paths]
    for start in config.only:
        if not any(name.startswith(start) for name in names):
            raise ValueError(f"only: expected the start of one of {', '.join(names)}, got {start!r}")
    if config.only:
        paths = [path for path in paths if path.name.startswith(config.only)]
    console = Console() if sys.stdout.isatty() else Console(width=150)
    seconds = {}
    with Progress(console=console, transient=True) as bar:
        for path in paths:
            task = bar.add_task(path.stem, total=None)
            start = time.perf_counter()
            notebook = execute(
                path,
                is_small=config.small,
                timeout_s=config.timeout_s,
                progress=lambda done, total, task=task: bar.update(task, completed=done, total=total),
            )
            seconds[path.stem] = time.perf_counter() - start
            if not config.small:
                _files.write_atomically(path, nbformat.writes(notebook) + "\n")
            bar.remove_task(task)
            verb = "ran at small sizes" if config.small else "written"
            bar.console.print(f"{path.name}: {verb}, {seconds[path.stem]:.0f} s", highlight=False)
    return seconds


if __name__ == "__main__":
    try:
        main(_cli.cli(Config, description=__doc__))
    except (ValueError, OSError, NotebookError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
