"""Graders of text answers, and the pool of processes that they run in."""

from dps_jax.grading._pool import GraderPool, Grades, Pending
from dps_jax.grading._specs import GraderSpec, resolve
from dps_jax.grading.graders._grade import Grade

__all__ = ["Grade", "GraderPool", "GraderSpec", "Grades", "Pending", "resolve"]
