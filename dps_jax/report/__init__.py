"""A report on runs and traces as one self-contained HTML page; `python -m dps_jax.report` writes it."""

from __future__ import annotations

from dps_jax.report._page import page, write

__all__ = ["page", "write"]
