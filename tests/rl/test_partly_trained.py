"""Parameters of which a part is frozen: the learner does with the other part what it does with ordinary parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import rl
from dps_jax.rl._partly_trained import trained_part, with_trained_part
from tests.rl import tabular


def log_probs_of_sum(params, prompts, completions):
    """Returns what a table does that is the sum of the two parts."""
    return tabular.log_probs_fn({"logits": params.trained + params.frozen}, prompts, completions)


def log_probs_beside(frozen, trained, prompts, completions):
    return tabular.log_probs_fn({"logits": trained + frozen}, prompts, completions)


@pytest.mark.parametrize(
    "options", [{}, {"num_minibatches": 2, "num_epochs": 2, "kl_coef": 0.2, "rows_per_step": 2, "weight_decay": 0.1}]
)
def test_the_trained_part_moves_as_if_it_was_all_there_is(options):
    start, batch, ref = tabular.random_case(3, noise=0.2)
    frozen = jnp.asarray(np.random.default_rng(0).normal(size=start["logits"].shape), jnp.float32)
    trained = start["logits"] - frozen
    build = functools.partial(rl.learner, learning_rate=0.1, **options)
    ref = ref if options else None

    def run(learner, params):
        update = tabular.quick_jit(learner.update)
        params, opt_state, info = update(params, learner.init(params), batch, jax.random.key(0), ref)
        return params, opt_state, info, tabular.quick_jit(learner.gradient)(params, batch, ref)[0]

    found, *rest = run(build(log_probs_of_sum), rl.PartlyTrained(trained=trained, frozen=frozen))
    expected, *expected_rest = run(build(functools.partial(log_probs_beside, frozen)), trained)
    np.testing.assert_array_equal(found.frozen, frozen)
    np.testing.assert_allclose(found.trained, expected, atol=1e-6)
    assert np.abs(found.trained - trained).max() > 0.01
    assert jax.tree.structure(rest) == jax.tree.structure(expected_rest)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), rest, expected_rest)


def test_parts_are_taken_apart_and_put_together():
    params = rl.PartlyTrained(trained={"a": 1}, frozen={"b": 2})
    assert trained_part(params) == {"a": 1}
    assert with_trained_part(params, {"a": 3}) == rl.PartlyTrained(trained={"a": 3}, frozen={"b": 2})
    assert trained_part({"c": 1}) == {"c": 1}
    assert with_trained_part({"c": 1}, {"c": 2}) == {"c": 2}
