"""What importing the library costs: nothing heavy comes along before it is needed."""

import subprocess
import sys

import pytest

# scipy.stats alone takes longer to import than JAX; the others belong to priors, training and plots.
HEAVY = ("scipy", "optax", "numpyro", "matplotlib", "flax", "orbax", "rich", "tyro")


@pytest.mark.parametrize(
    "program",
    [
        "import dps_jax",
        "from dps_jax import PromptSelector, selectors\nfor method in selectors.SELECTORS: PromptSelector(20, method)",
    ],
    ids=["import", "build"],
)
def test_nothing_heavy_is_imported(program):
    report = f"import sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
