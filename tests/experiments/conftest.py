import os

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _compile_with_few_optimisations():
    """At sizes of tests, scripts compile for far longer than they run; so do the processes that they start."""
    option = "jax_disable_most_optimizations"
    jax.config.update(option, True)
    os.environ[option.upper()] = "1"
    yield
    jax.config.update(option, False)
    del os.environ[option.upper()]
