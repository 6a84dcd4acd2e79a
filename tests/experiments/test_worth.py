"""What a visit is worth: forward derivatives beside the gradients of the learner, and what is made of them."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dps_jax import models, rl


@pytest.fixture
def script(monkeypatch, request):
    """Returns a function that imports a script as Python would run it."""
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    return importlib.import_module


def test_the_worth_of_groups_is_the_inner_product_with_the_gradient_of_their_batch(script):
    worth, arena = script("worth"), script("_arena")
    config = arena.run_config(arena.Cell("rich", 64, "uniform"), 0)
    parts = worth.setup.build(config)
    graphdef, _ = nnx.split(worth.setup.load_policy(config, parts.task))
    log_probs_fn = lambda params, prompts, completions: models.completion_log_probs(
        nnx.merge(graphdef, params), prompts, completions, pad_id=parts.task.pad_id
    )
    sample_fn = worth.setup.make_sampler(graphdef, parts.task, group_size=8)
    batch = rl.rollout(sample_fn, parts.score_fn, parts.params, parts.graded, jnp.arange(16), jax.random.key(0))
    leaves, tree = jax.tree.flatten(parts.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    direction = tree.unflatten(
        [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    )
    slopes = jax.jit(worth.slopes, static_argnums=0)(log_probs_fn, parts.params, direction, batch)
    found = worth.group_worth(batch.is_correct, slopes, 8)
    assert found.shape == (16,)
    is_informative = np.asarray(batch.is_correct.any(axis=1) & ~batch.is_correct.all(axis=1))
    assert 2 < is_informative.sum() < 16
    np.testing.assert_array_equal(np.asarray(found) != 0, is_informative)
    # The learner's loss has the weight 1 / (rows T) of every token.
    learner = rl.learner(log_probs_fn, learning_rate=0.0, loss="fixed-length")
    gradient, _ = jax.jit(learner.gradient)(parts.params, batch)
    ascent = -optax.tree.vdot(gradient, direction) * batch.mask.size
    np.testing.assert_allclose(found.sum(), ascent, rtol=1e-3)


def test_rates_of_0_and_1_have_bins_of_their_own(script):
    rates = np.array([0.0, 0.01, 0.124, 0.126, 0.99, 1.0])
    assert script("worth").bins(rates).tolist() == [0, 1, 1, 2, 8, 9]


def test_a_summary_is_relative_to_uniform_picks(script):
    worth = script("worth")
    look = lambda rate, value: {"rates": [rate] * 4, "worth": [value] * 4}
    found = [{"rounds": 10, "picked": look(0.3, 6.0), "uniform": look(0.0, 2.0)}]
    runs = [{"method": "dps", "found": found}, {"method": "uniform", "found": found}]
    results = worth.summarise(runs)
    assert results["methods"]["dps"]["worth_over_uniform"] == 3
    assert results["methods"]["dps"]["success_rate"] == pytest.approx(0.3)
    assert results["methods"]["dps"]["shares"][3] == 1
    assert results["by_rate"][0] == {"rate": 0.0, "worth": 1.0, "error": 0.0, "num_prompts": 8}
    assert results["by_rate"][3]["worth"] == 3
    assert len(worth.draw({"lean": results}).axes) == 2


@pytest.mark.slow
def test_an_interrupted_study_goes_on(script, tmp_path, monkeypatch):
    worth = script("worth")
    config = worth.Config(
        mixes=("rich",), methods=("uniform",), num_prompts=64, rounds=(2,), num_seeds=1, num_batches=2, out_dir=tmp_path
    )
    first = worth.main(config)
    assert first["found"]["rich"]["methods"]["uniform"]["worth_over_uniform"] > 0
    monkeypatch.setattr(worth, "measure", None)
    assert worth.main(config) == first
    assert json.loads((tmp_path / "results.json").read_text()) == first
    assert (tmp_path / "worth.png").stat().st_size > 1000


def test_bad_requests_are_refused(script):
    worth = script("worth")
    with pytest.raises(ValueError, match=r"methods: expected 'uniform' among them, got \('dps',\)"):
        worth.Config(methods=("dps",))
    with pytest.raises(ValueError, match=r"rounds: expected ascending numbers of rounds >= 1, got \(20, 10\)"):
        worth.Config(rounds=(20, 10))
    with pytest.raises(ValueError, match=r"methods: expected one of .* got 'true-greedy'"):
        worth.Config(methods=("uniform", "true-greedy"))
