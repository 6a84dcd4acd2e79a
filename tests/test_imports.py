"""What importing the library costs: nothing heavy comes along before it is needed."""

import subprocess
import sys

import pytest

import dps_jax

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


def test_checks_and_integrations_start_without_jax():
    program = """
import sys
import dps_jax
from dps_jax import _checks, _files, _json, integrations
from dps_jax.integrations import _building, _fingerprints, _outcomes, _states, _versions, trl, verl
_checks.check_number("x", 0.5, at_least=0)
_checks.as_float32(0.5)
assert "jax" not in sys.modules
assert dps_jax.PromptSelector.__name__ == "PromptSelector"
assert "jax" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_names_of_the_package_are_found_when_they_are_used():
    for name in dps_jax.__all__:
        assert getattr(dps_jax, name) is not None
        assert name in dir(dps_jax)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dps_jax.nothing


@pytest.mark.parametrize(("platforms", "expected"), [("", "cpu"), ("cpu,nothing", "cpu,nothing")])
def test_jax_stays_on_the_cpu_unless_it_is_said_where(platforms, expected):
    program = f"""
import jax
from dps_jax.integrations import _building
jax.config.update("jax_platforms", {platforms!r} or None)
_building.keep_jax_on_cpu()
assert jax.config.jax_platforms == {expected!r}
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("name", "module"),
    [("PromptSelector", "prompt_selector"), ("TransitionPrior", "hmm"), ("Emission", "hmm.emissions")],
)
def test_pickles_name_public_modules(name, module):
    assert getattr(dps_jax, name).__module__ == f"dps_jax.{module}"
    assert dps_jax.text.Tokenizer.__module__ == "dps_jax.text"
