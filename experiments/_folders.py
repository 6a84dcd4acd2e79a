"""Names for output folders, made from the paths of traces."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path


def trace_label(path: Path) -> str:
    """Returns a name for a trace: the name of its folder, followed by the file name unless that is trace.*."""
    folder, stem = path.resolve().parent.name, path.name.split(".")[0]
    return folder if stem == "trace" else "-".join(part for part in (folder, stem) if part)


def traces_label(paths: Sequence[Path]) -> str:
    """Returns a unique name for several traces: their labels, shortened, and a digest of their paths."""
    digest = hashlib.sha256("\n".join(str(path.resolve()) for path in paths).encode()).hexdigest()[:8]
    return f"{slug('-'.join(trace_label(path) for path in paths))}-{digest}"


def slug(text: str) -> str:
    """Returns a text with only characters that are safe in file names; different texts may give the same result."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:60]
