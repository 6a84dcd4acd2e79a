"""A dashboard of runs and traces: one HTML page that loads nothing; `python -m dps_jax.report` writes it."""

from __future__ import annotations

from dps_jax.report._page import page, write

__all__ = ["page", "write"]
