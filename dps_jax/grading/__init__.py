"""Graders of text answers, and the pool of processes that they run in; see docs/grading.md."""

from dps_jax._documented import documented
from dps_jax.grading._pool import GraderPool, Grades, Pending
from dps_jax.grading._specs import GraderSpec, resolve
from dps_jax.grading.graders import BuiltIn
from dps_jax.grading.graders._grade import Grade

__all__ = ["Grade", "GraderPool", "GraderSpec", "Grades", "Pending", "resolve"]

# Decorated here and not in their modules, because worker processes load those without this library.
documented(Grade)
documented(BuiltIn)
