"""Names of output folders that follow from the traces that were read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path


def trace_label(path: Path) -> str:
    """Returns a name for a trace: that of its run's folder, and that of the file if it is not trace.*."""
    folder, stem = path.resolve().parent.name, path.name.split(".")[0]
    return folder if stem == "trace" else "-".join(part for part in (folder, stem) if part)


def traces_label(paths: Sequence[Path]) -> str:
    """Returns a name for traces that no others share: their labels, cut, and a digest of where they are."""
    digest = hashlib.sha256("\n".join(str(path.resolve()) for path in paths).encode()).hexdigest()[:8]
    return f"{slug('-'.join(trace_label(path) for path in paths))}-{digest}"


def slug(text: str) -> str:
    """Returns what a file name can hold of a text, which others may share."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:60]
