import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dps_jax import rl, selectors
from dps_jax.rl._learner import minibatch_ids
from tests.reference import policy_gradient as reference
from tests.rl import tabular


def build(**options):
    return rl.learner(tabular.log_probs_fn, **{"learning_rate": 0.1, **options})


def run_update(learner, params, batch, key=0, ref=None):
    return jax.jit(learner.update)(params, learner.init(params), batch, jax.random.key(key), ref)


def without(batch, places):
    """Returns the batch without some of its groups."""
    kept = np.setdiff1d(np.arange(batch.is_used.shape[0]), places)
    return jax.tree.map(lambda leaf: leaf[kept], batch)


def update_by_hand(
    params, batch, minibatches, ref, *, loss, learning_rate, max_norm, weight_decay, group_weights=1.0, **penalty
):
    """Every step of an update in float64: minibatch, gradient against the first log-probs, clip, AdamW."""
    batch = jax.tree.map(np.asarray, batch)
    logits = np.asarray(params["logits"], np.float64)
    optimizer = reference.AdamW(logits.shape, learning_rate, max_norm, weight_decay)
    table = reference.advantages("grpo", batch.rewards, batch.is_used)
    values = []
    for ids in np.asarray(minibatches):
        part = jax.tree.map(lambda leaf: leaf[ids], batch)  # noqa: B023
        is_counted = reference.counted_groups(loss, part.is_used, table[ids])
        weights = (
            reference.token_weights(loss, part.mask, is_counted)
            * np.broadcast_to(group_weights, len(batch.ids))[ids][:, None, None]
        )
        value, gradient = reference.loss_and_gradient(
            logits, part, table[ids], weights, ref=ref[ids], clip_low=0.2, clip_high=0.28, **penalty
        )
        logits = optimizer.step(logits, gradient)
        values.append(value)
    return logits, np.mean(values)


@pytest.mark.parametrize("loss", rl.LOSSES)
def test_minibatches_and_epochs_equal_a_loop_by_hand(loss):
    params, batch, ref = tabular.random_case(11, noise=0.2)
    penalty = {"kl_coef": 0.2, "kl": "k3", "entropy_coef": 0.05}
    options = {"learning_rate": 0.05, "weight_decay": 0.1}

    @jax.jit
    def update(max_norm):
        learner = build(**options, **penalty, loss=loss, num_minibatches=3, num_epochs=4, max_grad_norm=max_norm)
        return learner.update(params, learner.init(params), batch, jax.random.key(7), ref)

    keys = jax.random.split(jax.random.key(7), 4)
    minibatches = np.concatenate([minibatch_ids(key, batch.is_used, 3) for key in keys])
    for max_norm in (0.02, 1e3):
        moved, _, info = update(max_norm)
        expected, mean_loss = update_by_hand(
            params, batch, minibatches, np.asarray(ref), loss=loss, max_norm=max_norm, **options, **penalty
        )
        np.testing.assert_allclose(moved["logits"], expected, atol=5e-5)
        np.testing.assert_allclose(info.loss, mean_loss, atol=1e-5)
        assert np.abs(expected - params["logits"]).max() > 0.1
        # Of the five groups that are used three have an advantage; without one, a group has weight 0 in this loss.
        assert int(info.num_rows) == (3 if loss == "token-mean-signal" else 5) * 4


def test_minibatches_with_and_without_skipping_are_the_same_update():
    params, batch, _ = tabular.random_case(12)
    options = {"num_minibatches": 2, "num_epochs": 3, "rows_per_step": 4}
    skipping, _, info = run_update(build(**options), params, batch)
    everything, _, _ = run_update(build(**options, skips_zero_advantage=False), params, batch)
    np.testing.assert_allclose(skipping["logits"], everything["logits"], atol=1e-5)
    assert int(info.num_rows) == 3 * 4


@pytest.mark.parametrize("num_minibatches", [1, 2, 3, 6])
def test_groups_are_dealt_once_and_used_ones_evenly(num_minibatches):
    is_used = jnp.array([True, False, True, True, False, True])
    dealt = [np.asarray(minibatch_ids(jax.random.key(seed), is_used, num_minibatches)) for seed in range(20)]
    for ids in dealt:
        assert ids.shape == (num_minibatches, 6 // num_minibatches)
        np.testing.assert_array_equal(np.sort(ids.ravel()), np.arange(6))
        used = np.asarray(is_used)[ids].sum(axis=1)
        assert used.max() - used.min() <= 1
    assert num_minibatches == 1 or len({ids.tobytes() for ids in dealt}) > 1


def test_a_step_without_a_used_group_changes_nothing():
    params, batch, _ = tabular.random_case(13)
    learner = build(weight_decay=0.1, num_minibatches=3)
    update = jax.jit(learner.update)
    params, opt_state, _ = update(params, learner.init(params), batch, jax.random.key(0))
    unused = batch._replace(is_used=jnp.zeros(6, bool))
    after = update(params, opt_state, unused, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, after[:2], (params, opt_state))
    assert int(after[2].num_rows) == 0
    assert bool(after[2].is_finite)


def test_padding_groups_do_not_change_the_update():
    params, batch, _ = tabular.random_case(14)
    garbage = batch._replace(
        rewards=batch.rewards.at[2].set(jnp.nan), old_log_probs=batch.old_log_probs.at[2].set(jnp.nan)
    )
    moved, _, info = run_update(build(), params, garbage)
    expected, _, _ = run_update(build(), params, without(batch, [2]))
    np.testing.assert_allclose(moved["logits"], expected["logits"], atol=1e-6)
    assert bool(info.is_finite)


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    params, batch, _ = tabular.random_case(15)
    bad = batch._replace(old_log_probs=batch.old_log_probs.at[0].set(jnp.nan))
    learner = build(num_minibatches=1)
    moved, opt_state, info = run_update(learner, params, bad)
    assert not bool(info.is_finite)
    assert int(info.num_skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, (moved, opt_state), (params, learner.init(params)))
    # Of three steps one has the group in it; the others are taken.
    moved, _, info = run_update(build(num_minibatches=3), params, bad)
    assert int(info.num_skipped) == 1
    assert np.all(np.isfinite(moved["logits"]))
    assert np.abs(moved["logits"] - params["logits"]).max() > 0
    # A step whose length overflows is none either.
    moved, _, info = run_update(build(learning_rate=jnp.float32(3e38), weight_decay=1e3), params, batch)
    assert int(info.num_skipped) == 1
    np.testing.assert_array_equal(moved["logits"], params["logits"])


@pytest.mark.parametrize("loss", rl.LOSSES)
def test_an_update_without_some_scores_is_that_without_these_completions(loss):
    params, batch, _ = tabular.random_case(19, group_size=5)
    rewards = jnp.tile(jnp.array([0.0, 1.0, 0.25, 1.0, 0.5]), (6, 1))
    batch = batch._replace(rewards=rewards, is_used=jnp.ones(6, bool))
    gap = batch._replace(rewards=rewards.at[:, 4].set(jnp.nan), old_log_probs=batch.old_log_probs.at[:, 4].set(jnp.nan))
    fewer = jax.tree.map(lambda leaf: leaf[:, :4] if leaf.ndim > 1 and leaf.shape[1] == 5 else leaf, batch)
    moved, _, info = run_update(build(loss=loss), params, gap)
    expected, _, expected_info = run_update(build(loss=loss), params, fewer)
    np.testing.assert_allclose(moved["logits"], expected["logits"], atol=1e-6)
    np.testing.assert_allclose(info.loss, expected_info.loss, atol=1e-6)
    assert np.abs(moved["logits"] - params["logits"]).max() > 0.01


def test_a_mean_over_signals_does_not_depend_on_groups_without_advantage():
    params, batch, _ = tabular.random_case(20)
    rewards = jnp.tile(jnp.array([0.0, 1.0, 0.0, 1.0]), (6, 1)).at[jnp.array([0, 3])].set(1.0)
    batch = batch._replace(rewards=rewards, is_used=jnp.ones(6, bool))
    gradient = lambda batch, loss: jax.jit(build(loss=loss).gradient)(params, batch)[0]["logits"]
    without_them = gradient(without(batch, [0, 3]), "token-mean")
    np.testing.assert_allclose(gradient(batch, "token-mean-signal"), without_them, atol=1e-6)
    assert np.abs(gradient(batch, "token-mean") - without_them).max() > 1e-3


def test_learning_rates_may_be_schedules_or_traced():
    params, batch, _ = tabular.random_case(16)
    # Zero from the second step on: an update of one step is that of the rate 0.1, the next stands still.
    learner = build(learning_rate=optax.piecewise_constant_schedule(0.1, {1: 0.0}))
    update = jax.jit(learner.update)
    first, opt_state, _ = update(params, learner.init(params), batch, jax.random.key(0))
    second, _, _ = update(first, opt_state, batch, jax.random.key(0))
    np.testing.assert_array_equal(second["logits"], first["logits"])

    def sweep(learning_rate, clip_high, max_grad_norm):
        learner = build(learning_rate=learning_rate, clip_high=clip_high, max_grad_norm=max_grad_norm)
        return learner.update(params, learner.init(params), batch, jax.random.key(0))[0]["logits"]

    together = jax.jit(jax.vmap(sweep))(jnp.array([0.1, 0.01]), jnp.array([0.28, 0.0]), jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(together[0], first["logits"], atol=1e-6)
    np.testing.assert_allclose(together[1], jax.jit(sweep)(0.01, 0.0, 0.5), atol=1e-6)
    assert np.abs(together[1] - together[0]).max() > 0.05


def test_steps_may_follow_the_share_of_informative_groups():
    params, batch, _ = tabular.random_case(18)
    # Two of six groups have no advantage, and one is padding.
    rewards = jnp.tile(jnp.array([0.0, 1.0, 0.0, 1.0]), (6, 1)).at[jnp.array([0, 3])].set(1.0)
    batch = batch._replace(rewards=rewards, is_correct=rewards == 1, is_used=jnp.ones(6, bool).at[5].set(False))
    step = lambda **options: run_update(build(**options), params, batch)[0]["logits"] - params["logits"]
    np.testing.assert_allclose(step(rate_by_share=0.5), step() * np.sqrt(3 / 6), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(step(rate_by_share=2.0), step() / 4, rtol=1e-4, atol=1e-7)
    # Also where groups without contrast have advantages.
    plain, scaled = (step(advantage="reinforce++", rate_by_share=power) for power in (0.0, 1.0))
    np.testing.assert_allclose(scaled, plain / 2, rtol=1e-4, atol=1e-7)


def test_a_traced_penalty_is_never_skipped():
    """A traced coefficient cannot be seen to be 0: groups without advantage keep their gradient."""
    params, batch, _ = tabular.random_case(17)
    flat = batch._replace(rewards=jnp.ones_like(batch.rewards))
    strength = lambda coefficient: build(entropy_coef=coefficient).gradient(params, flat)[0]["logits"]
    traced = jax.jit(jax.vmap(strength))(jnp.array([0.0, 0.5]))
    assert np.all(np.asarray(traced[0]) == 0)
    assert np.abs(traced[1]).max() > 1e-3
    np.testing.assert_allclose(traced[1], strength(0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage": "gae"}, r"advantage: expected one of 'grpo', 'dr-grpo', 'rloo', 'reinforce\+\+', got 'gae'"),
        (
            {"loss": "mean"},
            "loss: expected one of 'token-mean', 'token-mean-signal', 'sequence-mean', 'fixed-length', got 'mean'",
        ),
        ({"kl": "k4"}, "kl: expected one of 'k1', 'k2', 'k3', got 'k4'"),
        ({"clip_low": 1.2}, r"clip_low: expected a number in \[0.0, 1.0\], got 1.2"),
        ({"clip_low": -0.1}, "clip_low: expected a number in"),
        ({"clip_high": -0.1}, r"clip_high: expected a number in \[0.0, inf\], got -0.1"),
        ({"kl_coef": -1.0}, "kl_coef: expected a number in"),
        ({"entropy_coef": float("nan")}, "entropy_coef: expected a number in"),
        ({"learning_rate": -1e-3}, "learning_rate: expected a number in"),
        ({"learning_rate": "fast"}, "learning_rate: expected a number in"),
        ({"weight_decay": -0.1}, "weight_decay: expected a number in"),
        ({"rate_by_share": -0.5}, r"rate_by_share: expected a number in \[0.0, inf\], got -0.5"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: expected a number > 0, got 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm: expected a number in"),
        ({"num_epochs": 0}, "num_epochs: expected an integer >= 1, got 0"),
        ({"num_minibatches": 1.5}, "num_minibatches: expected an integer >= 1, got 1.5"),
        ({"rows_per_step": 0}, "rows_per_step: expected an integer >= 1, got 0"),
        ({"skips_zero_advantage": True, "kl_coef": 0.1}, r"skips_zero_advantage: .* where kl_coef \(0.1\) .*got True"),
        ({"skips_zero_advantage": True, "entropy_coef": 0.1}, "skips_zero_advantage: expected None or False"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_bad_batches_are_refused():
    params, batch, _ = tabular.random_case(18)
    with pytest.raises(ValueError, match="num_minibatches: expected a divisor of the batch of 6, got 4"):
        run_update(build(num_minibatches=4), params, batch)
    with pytest.raises(ValueError, match=r"ref_log_probs: expected an array \[B, G, T\] as kl_coef is not 0, got None"):
        run_update(build(kl_coef=0.1), params, batch)
    lonely = batch._replace(**{name: getattr(batch, name)[:, :1] for name in ("completions", "mask", "rewards")})
    with pytest.raises(ValueError, match=r"expected shape \[B, G\] with G >= 2 .* got \[6, 1\]; sample more"):
        run_update(build(), params, lonely)


NUM_CONTEXTS, NUM_TOKENS = 6, 5


def answers(contexts):
    """Two tokens per context."""
    return jnp.stack([(3 * contexts + 1) % NUM_TOKENS, (contexts + 2) % NUM_TOKENS], axis=-1)


def train_on_probe(key, *, sign=1.0, num_rounds=60, group_size=8, **options):
    """Returns the chance of the right answer to every context after training, [N], and before; one traced function.

    A contextual bandit: one answer of 25 is right, and every right token is rewarded.
    """
    contexts = np.arange(NUM_CONTEXTS, dtype=np.int32)[:, None]
    problems = tabular.Problems(prompts=contexts, facts=contexts)
    selector = selectors.uniform(NUM_CONTEXTS)
    learner = build(**options)

    def score_fn(facts, tokens):
        is_right = tokens == answers(facts[..., 0])
        return tabular.Score(jnp.all(is_right, axis=-1), sign * jnp.mean(is_right, axis=-1, dtype=jnp.float32))

    def chances(params):
        completions = answers(jnp.arange(NUM_CONTEXTS))[:, None]
        return jnp.exp(tabular.log_probs_fn(params, jnp.asarray(contexts), completions)[0].sum(axis=-1))[:, 0]

    def step(carry, key):
        params, opt_state = carry
        key_select, key_collect, key_update = jax.random.split(key, 3)
        roll_out = functools.partial(rl.rollout, tabular.sampler(group_size), score_fn, params, problems)
        ids, picked = selector.select(selector.init(key), key_select, 4)
        collection = rl.collect_plain(roll_out, rl.Selection(ids=ids, scores=picked.scores), key_collect)
        params, opt_state, info = learner.update(params, opt_state, collection.batch, key_update)
        return (params, opt_state), (collection.effective_sample_ratio, info.is_finite)

    start = {"logits": jnp.zeros((NUM_CONTEXTS, 2, NUM_TOKENS))}
    carry = start, learner.init(start)
    (params, _), (ratios, is_finite) = jax.lax.scan(step, carry, jax.random.split(key, num_rounds))
    return chances(params), chances(start), ratios, jnp.all(is_finite)


@pytest.mark.parametrize("advantage", rl.ADVANTAGES)
def test_a_probe_task_is_solved_and_with_the_wrong_sign_it_is_not(advantage):
    run = tabular.quick_jit(functools.partial(train_on_probe, advantage=advantage, num_minibatches=2, num_epochs=2))
    after, before, ratios, is_finite = run(jax.random.key(0), sign=1.0)
    np.testing.assert_allclose(before, np.full(NUM_CONTEXTS, 1 / 25), rtol=1e-4)
    assert np.all(np.asarray(after) > 0.9)
    assert float(ratios[:10].mean()) > 0.2
    assert bool(is_finite)
    after, before, _, _ = run(jax.random.key(0), sign=-1.0)
    assert np.all(np.asarray(after) < np.asarray(before) / 2)


def test_training_is_vmapped_over_seeds():
    run = functools.partial(train_on_probe, num_rounds=5, rows_per_step=8)
    keys = jax.random.split(jax.random.key(3), 3)
    (together, _, ratios, _), alone = tabular.quick_jit(jax.vmap(run))(keys), tabular.quick_jit(run)
    assert len({row.tobytes() for row in np.asarray(ratios)}) > 1
    for index in range(3):
        np.testing.assert_allclose(together[index], alone(keys[index])[0], rtol=1e-4)


def test_the_penalty_holds_the_policy_near_its_reference():
    """Nothing is rewarded, so the penalty alone acts: k2 and k3 lead back to the reference, k1 does not."""
    rng = np.random.default_rng(0)
    reference_params = {"logits": jnp.asarray(rng.normal(size=(4, 1, 5)), jnp.float32)}
    prompts = jnp.arange(4, dtype=jnp.int32)[:, None]
    problems = tabular.Problems(prompts=np.asarray(prompts), facts=np.zeros((4, 1), np.int32))
    score_fn = lambda facts, tokens: tabular.Score(tokens[..., 0] < 0, jnp.zeros(tokens.shape[:2]))

    def distance(kl):
        learner = build(kl=kl, kl_coef=1.0, learning_rate=0.05)

        def step(carry, key):
            params, opt_state = carry
            batch = rl.rollout(tabular.sampler(64), score_fn, params, problems, prompts[:, 0], key)
            ref_log_probs, _ = tabular.log_probs_fn(reference_params, batch.prompts, batch.completions)
            return learner.update(params, opt_state, batch, key, ref_log_probs)[:2], None

        start = {"logits": jnp.zeros((4, 1, 5))}
        (params, _), _ = jax.lax.scan(step, (start, learner.init(start)), jax.random.split(jax.random.key(1), 100))
        probs, ref_probs = jax.nn.softmax(params["logits"]), jax.nn.softmax(reference_params["logits"])
        return jnp.abs(probs - ref_probs).max()

    distances = {kl: float(tabular.quick_jit(distance, static_argnums=0)(kl)) for kl in rl.KL_ESTIMATORS}
    assert distances["k2"] < 0.08
    assert distances["k3"] < 0.08
    assert distances["k1"] > 0.2
