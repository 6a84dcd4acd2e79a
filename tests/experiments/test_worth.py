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


def policy(worth, arena):
    """Returns the parts of a small run, and the functions that give log-probs and completions of its policy."""
    config = arena.run_config(arena.Cell("rich", 64, "uniform"), 0)
    parts = worth._setup.build(config)
    graphdef, _ = nnx.split(worth._setup.load_policy(config, parts.task))
    log_probs_fn = lambda params, prompts, completions: models.completion_log_probs(
        nnx.merge(graphdef, params), prompts, completions, pad_id=parts.task.pad_id
    )
    sample_fn = worth._setup.make_sampler(graphdef, parts.task, group_size=8)
    return parts, log_probs_fn, sample_fn


def test_the_worth_of_groups_is_the_inner_product_with_the_gradient_of_their_batch(script):
    worth = script("worth")
    parts, log_probs_fn, sample_fn = policy(worth, script("_arena"))
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


def test_a_summary_is_over_uniform_picks(script):
    worth = script("worth")
    look = lambda rate, value: {"rates": [rate] * 4, "worth": [value] * 4}
    found = lambda value: [{"rounds": 10, "picked": look(0.3, value), "uniform": look(0.0, 2.0)}]
    runs = [{"method": method, "found": found(value)} for method, value in (("dps", 5.0), ("dps", 7.0), ("ema", 4.0))]
    results = worth.summarise([*runs, runs[2]])
    assert results["methods"]["dps"]["worth_over_uniform"] == 3
    # Of 5 / 2 and 7 / 2.
    assert results["methods"]["dps"]["worth_error"] == pytest.approx(0.5)
    assert results["methods"]["ema"]["worth_error"] == 0
    assert results["methods"]["dps"]["success_rate"] == pytest.approx(0.3)
    assert results["methods"]["dps"]["shares"][3] == 1
    unseen, seen = results["by_rate"]
    assert unseen == {"rate": 0.0, "worth": 1.0, "error": 0.0, "num_prompts": 16}
    assert seen["worth"] == pytest.approx((5 + 7 + 4 + 4) / 4 / 2)
    assert len(worth.draw({"lean": results}).axes) == 2
    config = {"rounds": [10], "num_prompts": 4, "num_seeds": 2, "first_seed": 0}
    assert "| lean | dps | 3.00 ± 0.50 | 0.30 |" in worth.to_markdown({"config": config, "found": {"lean": results}})


def test_the_direction_raises_held_out_accuracy(script):
    """A step along it, before it is scaled by Adam, is a step up the accuracy that is measured on the same problems."""
    worth = script("worth")
    parts, log_probs_fn, sample_fn = policy(worth, script("_arena"))
    state = parts.round.init(parts.params, jax.random.key(0))
    # As if all second moments were 1.
    state = state._replace(opt_state=optax.tree.set(state.opt_state, nu=jax.tree.map(jnp.ones_like, parts.params)))
    find = jax.jit(lambda state, key: worth.held_out_direction(parts, log_probs_fn, sample_fn, state, key))
    direction = find(state, jax.random.key(1))
    assert optax.tree.norm(direction) == pytest.approx(1, rel=1e-4)
    accuracy = lambda size: parts.evaluate(
        jax.tree.map(lambda leaf, along: leaf + size * along, parts.params, direction), 0
    )["test_accuracy"]
    assert accuracy(0.3) > accuracy(0.0) + 0.02


@pytest.mark.slow
def test_an_interrupted_study_goes_on(script, tmp_path, monkeypatch):
    worth = script("worth")
    config = worth.Config(
        mixes=("rich",), methods=("uniform",), num_prompts=64, rounds=(2,), num_seeds=2, num_batches=2, out_dir=tmp_path
    )
    first = worth.main(config)
    assert first["found"]["rich"]["methods"]["uniform"]["worth_over_uniform"] > 0
    monkeypatch.setattr(worth, "measure", None)
    assert worth.main(config) == first
    assert json.loads((tmp_path / "results.json").read_text()) == first
    assert (tmp_path / "worth.png").stat().st_size > 1000


def test_bad_requests_are_refused(script):
    worth = script("worth")
    with pytest.raises(ValueError, match=r"methods: expected batches of 32 prompts with 8 completions, got 'ds'"):
        worth.Config(methods=("ds",))
    with pytest.raises(ValueError, match=r"num_batches: expected an even number, got 3"):
        worth.Config(num_batches=3)
    with pytest.raises(ValueError, match=r"rounds: expected ascending numbers of rounds >= 1, got \(20, 10\)"):
        worth.Config(rounds=(20, 10))
    with pytest.raises(ValueError, match=r"methods: expected one of .* got 'true-greedy'"):
        worth.Config(methods=("uniform", "true-greedy"))
