"""Reads prompt groups and features from the file prompts.npz beside a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dps_jax import _npz


def beside(trace: Path) -> Path:
    """Returns the path of prompts.npz for a trace, which is a file or a folder; prompts.npz may not exist."""
    return trace / "prompts.npz" if trace.is_dir() else trace.with_name("prompts.npz")


def read(path: Path) -> dict[str, Any]:
    """Returns the arrays `groups` [N], `features` [N, D] and `prompt_id` [N], as far as the file has them.

    Raises:
      ValueError: if the file is damaged or in another format.
    """
    with open(path, "rb") as file:
        return _npz.read(
            path,
            file,
            "a .npz file with `groups` or `features`",
            lambda names: [name for name in ("prompt_id", "groups", "features") if name in names],
        )


def by_prompt(path: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Returns groups and features in the form that `priors.prepare` accepts; by prompt id, if the file has ids.

    Raises:
      ValueError: if there is not one id per entry, or an id occurs twice.
    """
    found = {name: known.get(name) for name in ("groups", "features")}
    ids = known.get("prompt_id")
    if ids is None:
        return found
    for name, values in found.items():
        if values is not None and (ids.ndim != 1 or len(values) != ids.size or np.unique(ids).size != ids.size):
            raise ValueError(
                f"{path}: prompt_id: expected {len(values)} different ids, one per entry of {name}, got shape "
                f"{list(ids.shape)}"
            )
    return {
        name: None if values is None else dict(zip(ids.tolist(), values, strict=True)) for name, values in found.items()
    }


def of_prompts(path: Path, prompt_ids: np.ndarray) -> dict[str, np.ndarray | None]:
    """Returns the groups [P] and features [P, D] of some prompts; None for an array that the file does not have.

    Raises:
      ValueError: if the file is damaged, or has no entry for a prompt.
    """
    found: dict[str, np.ndarray | None] = {}
    for name, values in by_prompt(path, read(path)).items():
        if values is None:
            found[name] = None
            continue
        is_there = lambda prompt, values=values: prompt in values if isinstance(values, dict) else prompt < len(values)
        missing = [prompt for prompt in prompt_ids.tolist() if not is_there(prompt)]
        if missing:
            raise ValueError(
                f"{path}: {name}: expected an entry for each of the {prompt_ids.size} prompts of the trace, got none "
                f"for prompt {missing[0]}; add it, or move the file away"
            )
        found[name] = np.asarray([values[prompt] for prompt in prompt_ids.tolist()])
    return found
