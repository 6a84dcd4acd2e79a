import jax
import pytest


@pytest.fixture
def strict():
    """Mixed dtypes and implicit broadcasting are errors."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
