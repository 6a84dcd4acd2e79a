"""Files with the state of a selector, beside the checkpoints of a trainer."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dps_jax import _files, _json

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector

_SELECTOR, _FACTS = "dps_jax_selector.npz", "dps_jax_selector.json"


def save(folder: os.PathLike[str] | str, selector: PromptSelector, fingerprint: str, **facts: Any) -> None:
    """Writes a selector, and facts of JSON types, into the folder of a checkpoint.

    Raises:
      OSError: if a file cannot be written.
    """
    folder = Path(folder)
    selector.save(folder / _SELECTOR)
    checksum = _files.checksum(folder / _SELECTOR)
    _json.write(folder / _FACTS, {"fingerprint": fingerprint, "checksum": checksum, "facts": facts}, indent=2)


def forget(folder: os.PathLike[str] | str) -> None:
    """Deletes the files that `save` wrote, and the folder if it is then empty."""
    for name in (_FACTS, _SELECTOR):
        (Path(folder) / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        Path(folder).rmdir()


def restore(folder: os.PathLike[str] | str, selector: PromptSelector, fingerprint: str) -> dict[str, Any]:
    """Restores a selector from the files that `save` wrote, and returns the facts.

    Raises:
      ValueError: for files that are missing, damaged or of another selector, or a data set with another fingerprint;
        the message names the file, and the selector is not changed.
    """
    folder = Path(folder)
    if not (folder / _FACTS).is_file() or not (folder / _SELECTOR).is_file():
        raise ValueError(
            f"{folder}: expected {_SELECTOR} and {_FACTS} beside the checkpoint, got none; it was saved without a "
            "selector. Start anew from its weights, or copy both files from where they are"
        )
    remedy = "copy it from where the run saved it, or start anew from the weights"
    saved = _json.read_object(folder / _FACTS, "what dps_jax saved beside a checkpoint", remedy)
    names = ("fingerprint", "checksum", "facts")
    if set(saved) != set(names) or not isinstance(saved["facts"], dict):
        raise ValueError(
            f"{folder / _FACTS}: expected the entries {', '.join(names)}, got {', '.join(saved)}; {remedy}"
        )
    if saved["checksum"] != _files.checksum(folder / _SELECTOR):
        raise ValueError(f"{folder / _SELECTOR}: expected the file that {_FACTS} belongs to, got another; {remedy}")
    if saved["fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder / _FACTS}: expected the data set that the run was started with, got one with other rows or in "
            "another order; the selector identifies prompts by row number. Give the same data set, or start anew"
        )
    selector.restore(folder / _SELECTOR)
    return saved["facts"]
