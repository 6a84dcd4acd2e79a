"""Parts of the results of a script, cached in files whose names depend on their inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _folders

from dps_jax import _json


class Parts:
    """Parts of the results, which are kept in files so that an interrupted run can continue."""

    def __init__(self, folder: Path, options: dict[str, Any]):
        """Keeps parts in a folder; all parts depend on `options`, which must be JSON values."""
        self._folder, self._options = folder, options

    def path(self, name: str, content: str) -> Path:
        """Returns the file of a part; its name contains a digest of everything that the part depends on."""
        key = json.dumps([name, content, self._options], sort_keys=True)
        return self._folder / f"{_folders.slug(name)}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def kept(self, name: str, content: str, make: Callable[[], Any]) -> Any:
        """Returns a part from its file, or computes and saves it if the file is missing or damaged."""
        path = self.path(name, content)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["result"]
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            # Converted as if it were read from the file: None in place of NaN.
            result = json.loads(_json.dumps(make()))
        path.parent.mkdir(parents=True, exist_ok=True)
        _json.write(path, {"name": name, "options": self._options, "result": result})
        return result
