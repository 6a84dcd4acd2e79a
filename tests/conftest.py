import gc
import os

import jax
import pytest


def pytest_configure(config):
    """Lets all files, processes and runs share what they compile, which is most of the time of the suite."""
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    options = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.02,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        # For programs that tests start.
        os.environ[name.upper()] = str(value)


def pytest_collection_modifyitems(items):
    """Puts what takes longest first, so that at the end no worker is left alone with it; a file stays together."""
    longest = {"experiments", "training", "test_sharding.py", "test_jax_modes.py"}
    items.sort(key=lambda item: longest.isdisjoint((item.path.name, item.path.parent.name)))


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
