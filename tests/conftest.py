import gc

import jax
import pytest


@pytest.fixture
def strict():
    """Mixed dtypes and implicit broadcasting are errors."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """A compiled program holds mappings of memory; Linux allows a process 65,530, and XLA crashes at the limit."""
    yield
    jax.clear_caches()
    gc.collect()
