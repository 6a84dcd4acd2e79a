"""Graders of text answers, and the pool of processes that they run in."""

from dps_jax.grading.graders.grade import Grade
from dps_jax.grading.pool import GraderPool, Grades, Pending
from dps_jax.grading.specs import GraderSpec, resolve

__all__ = ["Grade", "GraderPool", "GraderSpec", "Grades", "Pending", "resolve"]
