"""Weights of groups: in expectation over selections, the gradient of a batch is that of all prompts together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dps_jax
from dps_jax import rl, selectors
from dps_jax.rl._learner import minibatch_ids
from dps_jax.rl._losses import TOKEN_MEANS
from tests.reference import policy_gradient as reference
from tests.rl import tabular
from tests.rl.test_learner import build, run_update, update_by_hand

NUM_PROMPTS, BATCH_SIZE, POOL_SIZE, NUM_DRAWS = 12, 5, 8, 4000


def preferring_selector():
    """Returns a selector that prefers high ids, with its state."""
    scores = np.linspace(0.05, 0.9, NUM_PROMPTS)
    priors = tuple(dps_jax.TransitionPrior([(1 - p) / 2, p, (1 - p) / 2], np.ones((3, 3)), 0.9) for p in scores)
    prior = dps_jax.TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)), 0.9, groups=priors)
    selector = selectors.dps(NUM_PROMPTS, prior=prior, groups=np.arange(NUM_PROMPTS), temperature=0.8)
    return selector, selector.init(jax.random.key(0))


def everything(seed=0):
    """Returns params and the batch of all prompts, every one with an advantage; longer completions at high ids."""
    params, batch, _ = tabular.random_case(seed, num_groups=NUM_PROMPTS, num_prompts=NUM_PROMPTS, noise=0.1)
    order = jnp.argsort(batch.prompts[:, 0])
    batch = jax.tree.map(lambda leaf: leaf[order], batch)
    lengths = 1 + (np.arange(NUM_PROMPTS) >= NUM_PROMPTS // 2) + (np.arange(NUM_PROMPTS) >= NUM_PROMPTS - 2)
    mask = jnp.broadcast_to(jnp.arange(3) < lengths[:, None, None], batch.mask.shape)
    rewards = jnp.asarray(np.random.default_rng(seed).choice([0.0, 1.0], batch.rewards.shape), jnp.float32)
    rewards = rewards.at[:, 0].set(0.0).at[:, 1].set(1.0)
    return params, batch._replace(
        ids=jnp.arange(NUM_PROMPTS, dtype=jnp.int32),
        is_used=jnp.ones(NUM_PROMPTS, bool),
        rewards=rewards,
        mask=mask,
    )


def mean_gradients(params, batch, pool_size, learners):
    """Returns mean and standard error of every learner's gradient of what is selected, over many selections."""
    selector, state = preferring_selector()

    def gradients(key):
        key_pool, key_select = jax.random.split(key)
        pool = jax.random.choice(key_pool, NUM_PROMPTS, (pool_size,), replace=False)
        ids, info = selector.select(state, key_select, BATCH_SIZE, pool)
        picked = jax.tree.map(lambda leaf: leaf[ids], batch)
        picked = picked._replace(inclusion_probs=info.inclusion_probs * (pool_size / NUM_PROMPTS))
        return [learner.gradient(params, picked)[0]["logits"] for learner in learners]

    found = tabular.quick_jit(jax.vmap(gradients))(jax.random.split(jax.random.key(1), NUM_DRAWS))
    found = [np.asarray(values, np.float64) for values in found]
    return [(values.mean(axis=0), values.std(axis=0) / np.sqrt(NUM_DRAWS)) for values in found]


@pytest.mark.parametrize(
    ("loss", "advantage", "pool_size"),
    [
        ("sequence-mean", "grpo", POOL_SIZE),
        ("sequence-mean", "rloo", NUM_PROMPTS),
        ("fixed-length", "dr-grpo", POOL_SIZE),
    ],
)
def test_weighted_gradients_are_unbiased_and_others_are_not(loss, advantage, pool_size):
    params, batch = everything()
    learner = functools.partial(build, loss=loss, advantage=advantage, entropy_coef=0.05)
    expected = np.asarray(learner().gradient(params, batch)[0]["logits"], np.float64)
    assert np.abs(expected).max() > 0.005
    learners = [
        learner(inclusion_weights="unbiased", num_prompts=NUM_PROMPTS),
        learner(inclusion_weights="self-normalised"),
        learner(),
    ]
    (mean, error), (normalised, _), (unweighted, error_unweighted) = mean_gradients(params, batch, pool_size, learners)
    # 180 entries: a deviation above 4.5 standard errors happens to one of them once in 800 such tests.
    assert np.all(np.abs(mean - expected) <= 4.5 * error + 1e-7)
    assert np.max(np.abs(unweighted - expected) / (error_unweighted + 1e-7)) > 15
    # Consistent, not unbiased: with 5 picks some of the bias is left.
    assert np.linalg.norm(normalised - expected) < 0.75 * np.linalg.norm(unweighted - expected)


def test_self_normalised_means_are_consistent():
    """The bias of a weighted mean goes as 1 / B; that of the plain mean stays."""
    num_prompts, num_draws = 600, 2000
    scores = jnp.linspace(0.1, 0.9, num_prompts)
    values = np.linspace(-1, 1, num_prompts)

    def estimates(key, batch_size):
        perturbed = jnp.log(scores) + jax.random.gumbel(key, (num_prompts,))
        order = jnp.argsort(-perturbed)
        threshold = perturbed[order[batch_size]]
        ids = order[:batch_size]
        probs = -jnp.expm1(-jnp.exp(jnp.log(scores[ids]) - threshold))
        weights = rl.INCLUSION_WEIGHTS["self-normalised"](probs, jnp.ones(batch_size), None)
        return jnp.mean(weights * jnp.asarray(values)[ids]), jnp.mean(jnp.asarray(values)[ids])

    keys = jax.random.split(jax.random.key(5), num_draws)
    run = jax.jit(jax.vmap(estimates, in_axes=(0, None)), static_argnums=1)
    bias, plain = {}, {}
    for batch_size in (4, 64):
        weighted, unweighted = (np.asarray(column, np.float64) for column in run(keys, batch_size))
        bias[batch_size], plain[batch_size] = weighted.mean(), unweighted.mean()
        error = weighted.std() / np.sqrt(num_draws)
    assert plain[64] > 0.2
    assert bias[4] > 0.04
    assert abs(bias[64]) < bias[4] / 16 + 4 * error


def test_token_mean_is_a_ratio_of_weighted_sums():
    """Tokens of long completions are over-represented where a selector prefers them; the weights undo that."""
    params, batch = everything()
    expected = np.asarray(build().gradient(params, batch)[0]["logits"], np.float64)
    learners = [build(inclusion_weights="self-normalised"), build()]
    (normalised, _), (unweighted, _) = mean_gradients(params, batch, NUM_PROMPTS, learners)
    assert np.linalg.norm(normalised - expected) < 0.75 * np.linalg.norm(unweighted - expected)
    # One batch, by hand: sum of w l over sum of w n.
    probs = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, NUM_PROMPTS), jnp.float32)
    run = lambda batch, **options: tabular.quick_jit(build(**options).gradient)(params, batch)[0]["logits"]
    found = run(batch._replace(inclusion_probs=probs), inclusion_weights="self-normalised")
    alone = tabular.quick_jit(build().gradient)
    single = lambda index: jax.tree.map(lambda leaf: leaf[index : index + 1], batch)
    num_tokens = np.asarray(batch.mask.sum(axis=(1, 2)), np.float64)
    sums = np.stack(
        [num_tokens[index] * np.asarray(alone(params, single(index))[0]["logits"]) for index in range(NUM_PROMPTS)]
    )
    inverse = 1 / np.asarray(probs, np.float64)
    np.testing.assert_allclose(found, np.tensordot(inverse, sums, 1) / (inverse @ num_tokens), atol=1e-6)


@pytest.mark.parametrize("loss", rl.LOSSES)
def test_equal_probabilities_change_nothing_at_all(loss):
    params, batch, _ = tabular.random_case(3)
    # Five of six groups are used: of 20 prompts, five picked uniformly have probability 1/4.
    batch = batch._replace(inclusion_probs=jnp.where(batch.is_used, 0.25, jnp.nan))
    names = [None, "self-normalised", *([] if loss in TOKEN_MEANS else ["unbiased"])]

    @tabular.quick_jit
    def run(batch):
        learners = [build(loss=loss, num_minibatches=2, inclusion_weights=name, num_prompts=20) for name in names]
        return [learner.update(params, learner.init(params), batch, jax.random.key(0)) for learner in learners]

    expected, *others = run(batch)
    assert np.abs(expected[0]["logits"] - params["logits"]).max() > 1e-3
    for found in others:
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (loss, name)
        for loss in rl.LOSSES
        for name in rl.INCLUSION_WEIGHTS
        if loss not in TOKEN_MEANS or name != "unbiased"
    ],
)
def test_minibatches_share_the_weights_of_the_batch(loss, name):
    """Against a loop in float64; penalties are weighted too, and padding with garbage stays out."""
    params, batch, ref = tabular.random_case(11, noise=0.2)
    probs = np.random.default_rng(4).uniform(0.05, 1, 6)
    used = np.asarray(batch.is_used)
    inverse = np.where(used, 1 / probs, 0)
    sizes = used * (np.asarray(batch.mask).sum(axis=(1, 2)) if loss in TOKEN_MEANS else 1)
    if loss == "token-mean-signal":
        table = reference.advantages("grpo", np.asarray(batch.rewards), used)
        sizes = sizes * np.any(table != 0, axis=1)
        assert 0 < np.count_nonzero(sizes) < used.sum()
    weights = inverse * 5 / 40 if name == "unbiased" else inverse * sizes.sum() / (sizes @ inverse)
    options = {"learning_rate": 0.05, "weight_decay": 0.1}
    penalty = {"kl_coef": 0.2, "kl": "k3", "entropy_coef": 0.05}
    learner = build(
        **options, **penalty, loss=loss, num_minibatches=3, max_grad_norm=0.5, inclusion_weights=name, num_prompts=40
    )
    garbage = jnp.where(batch.is_used, jnp.asarray(probs, jnp.float32), jnp.nan)
    moved, _, info = run_update(learner, params, batch._replace(inclusion_probs=garbage), key=7, ref=ref)
    minibatches = minibatch_ids(jax.random.split(jax.random.key(7), 1)[0], batch.is_used, 3)
    expected, mean_loss = update_by_hand(
        params,
        batch,
        minibatches,
        np.asarray(ref),
        loss=loss,
        max_norm=0.5,
        group_weights=weights,
        **options,
        **penalty,
    )
    np.testing.assert_allclose(moved["logits"], expected, atol=5e-5)
    np.testing.assert_allclose(info.loss, mean_loss, rtol=1e-4, atol=1e-5)
    unweighted, _, _ = run_update(build(**options, **penalty, loss=loss), params, batch, key=7, ref=ref)
    assert np.abs(unweighted["logits"] - moved["logits"]).max() > 1e-3


def test_skipping_rows_leaves_weighted_gradients_as_they_are():
    params, batch, _ = tabular.random_case(3)
    batch = batch._replace(inclusion_probs=jnp.linspace(0.1, 1.0, 6))
    run = lambda skips: build(
        inclusion_weights="self-normalised", skips_zero_advantage=skips, rows_per_step=8
    ).gradient(params, batch)
    (skipping, info), (whole, info_whole) = run(True), run(False)
    np.testing.assert_allclose(skipping["logits"], whole["logits"], atol=1e-7)
    np.testing.assert_allclose(info.loss, info_whole.loss, rtol=1e-5)
    assert int(info.num_rows) < int(info_whole.num_rows)


def test_weights_are_finite_whatever_the_probabilities():
    smallest = np.float32(2e-38)
    probs = jnp.array([1.0, smallest, 0.5, jnp.nan])
    sizes = jnp.array([1.0, 1.0, 1.0, 0.0])
    weights = rl.INCLUSION_WEIGHTS["self-normalised"](probs, sizes, None)
    np.testing.assert_allclose(weights, [0, 3, 0, 0], atol=1e-6)
    none = rl.INCLUSION_WEIGHTS["self-normalised"](probs, jnp.zeros(4), None)
    np.testing.assert_array_equal(none, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inclusion_weights": "yes"}, "inclusion_weights: expected one of 'self-normalised', 'unbiased', got 'yes'"),
        ({"inclusion_weights": "unbiased"}, "expected 'self-normalised' with loss 'token-mean', got 'unbiased'"),
        (
            {"inclusion_weights": "unbiased", "loss": "fixed-length", "advantage": "reinforce++"},
            r"expected 'self-normalised' with advantage 'reinforce\+\+', got 'unbiased'",
        ),
        ({"inclusion_weights": "unbiased", "loss": "fixed-length"}, "num_prompts: expected N, .*got None"),
        (
            {"inclusion_weights": "unbiased", "loss": "fixed-length", "num_prompts": 0},
            "num_prompts: expected an integer >= 1, got 0",
        ),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_batch_without_probabilities_is_refused():
    params, batch, _ = tabular.random_case(18)
    message = (
        r"inclusion_probs: expected an array \[B\] in the batch as inclusion_weights is 'self-normalised', got None"
    )
    for run in (run_update, lambda learner, *rest: learner.gradient(*rest)):
        with pytest.raises(ValueError, match=message):
            run(build(inclusion_weights="self-normalised"), params, batch)
