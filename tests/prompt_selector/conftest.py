import copy
import functools
import pickle

import pytest

from dps_jax import selectors
from dps_jax.prompt_selector import _selector as front_door


@pytest.fixture(scope="module")
def compiled_once():
    """Objects with the same method, size and options share what is compiled, which is most of the time of their tests.

    What they share are pure functions and their programs; all that changes is still each object's own.
    """
    build, make_programs = selectors.build, functools.lru_cache(maxsize=None)(front_door.Programs)
    # A copy, as a test may replace one of its functions.
    copy_programs = lambda selector: copy.copy(make_programs(selector))
    built = {}

    def build_once(method, num_prompts, **options):
        name = method, num_prompts, pickle.dumps(sorted(options.items()))
        if name not in built:
            built[name] = build(method, num_prompts, **options)
        return built[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selectors, "build", build_once)
        patch.setattr(front_door, "Programs", copy_programs)
        yield
