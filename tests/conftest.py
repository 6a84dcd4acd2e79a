import gc
import os
import subprocess
import sys

import jax
import pytest

# Compiling takes a quarter of the time with XLA's older code generator, and with one part for each program.
_QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def _compile_quickly():
    """Sets XLA's flags for this process and those that it starts, if XLA has them: it would stop at unknown ones."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK_FLAGS}".strip()
    trial = [sys.executable, "-c", "import jax; jax.jit(lambda: 0)()"]
    if subprocess.run(trial, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, check=False).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


def pytest_configure(config):
    """Lets all files, processes and runs share what they compile, which is most of the time of the suite."""
    # Workers of one run have the flags of the process that started them. XLA reads them when it first compiles.
    if jax.config.read("jax_disable_most_optimizations") and "PYTEST_XDIST_WORKER" not in os.environ:
        _compile_quickly()
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
