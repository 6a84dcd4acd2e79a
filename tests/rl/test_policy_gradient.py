import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import rl
from tests.reference import policy_gradient as reference
from tests.rl import tabular


def build(**options):
    return rl.learner(tabular.log_probs_fn, learning_rate=0.1, **options)


def oracle(params, batch, ref, *, advantage="grpo", loss="token-mean", **options):
    """Returns loss and gradient in float64."""
    batch = jax.tree.map(np.asarray, batch)
    table = reference.advantages(advantage, batch.rewards, batch.is_used)
    weights = reference.token_weights(loss, batch.mask, reference.counted_groups(loss, batch.is_used, table))
    options = {"clip_low": 0.2, "clip_high": 0.28, **options}
    return reference.loss_and_gradient(np.asarray(params["logits"]), batch, table, weights, ref=ref, **options)


def test_the_oracle_is_its_own_derivative():
    params, batch, ref = tabular.random_case(0, length=2, num_tokens=3, num_prompts=6)
    for kl in rl.KL_ESTIMATORS:
        run = lambda logits, kl=kl: oracle({"logits": logits}, batch, ref, kl=kl, kl_coef=0.3, entropy_coef=0.2)
        numeric = reference.finite_differences(lambda logits: run(logits)[0], params["logits"])  # noqa: B023
        np.testing.assert_allclose(run(params["logits"])[1], numeric, atol=1e-9)


def gradients_of_every_penalty(params, batch, ref, kl_coef, entropy_coef, loss):
    """Returns pairs of options and results: constant zeros, where rows are skipped, and traced coefficients."""
    results = {}
    for advantage in rl.ADVANTAGES:
        run = lambda advantage=advantage, **options: build(advantage=advantage, loss=loss, **options).gradient(
            params, batch, ref
        )
        results[advantage, None] = run()
        for kl in rl.KL_ESTIMATORS:
            results[advantage, kl] = run(kl=kl, kl_coef=kl_coef, entropy_coef=entropy_coef)
    return list(results.values())


@pytest.mark.parametrize("loss", rl.LOSSES)
def test_gradients_match_float64(loss):
    cases = list(itertools.product(rl.ADVANTAGES, (None, *rl.KL_ESTIMATORS)))
    compiled = tabular.quick_jit(gradients_of_every_penalty, static_argnums=5)
    for noise, (kl_coef, entropy_coef) in itertools.product((0.0, 0.5), ((0.3, 0.0), (0.0, 0.2), (0.5, 0.1))):
        params, batch, ref = tabular.random_case(1, noise=noise)
        results = compiled(params, batch, ref, kl_coef, entropy_coef, loss)
        for (advantage, kl), (gradient, info) in zip(cases, results, strict=True):
            penalty = {} if kl is None else {"kl": kl, "kl_coef": kl_coef, "entropy_coef": entropy_coef}
            expected_loss, expected_gradient = oracle(params, batch, ref, advantage=advantage, loss=loss, **penalty)
            np.testing.assert_allclose(info.loss, expected_loss, atol=2e-6)
            np.testing.assert_allclose(gradient["logits"], expected_gradient, atol=2e-6)
            np.testing.assert_allclose(info.grad_norm, np.sqrt((expected_gradient**2).sum()), rtol=1e-5)
            assert (float(info.clip_fraction) > 0.1) == (noise > 0)
            assert bool(info.is_finite)
            assert np.abs(expected_gradient).max() > 1e-3


def test_metrics_match_float64():
    params, batch, ref = tabular.random_case(2, noise=0.5)
    _, info = jax.jit(build(kl="k1", kl_coef=0.3).gradient)(params, batch, ref)
    log_probs, entropies = reference.log_probs_and_entropies(params["logits"], batch.prompts, batch.completions)
    inside = np.asarray(batch.mask) & np.asarray(batch.is_used)[:, None, None]
    table = reference.advantages("grpo", np.asarray(batch.rewards), batch.is_used)[..., None] + 0 * log_probs
    ratios = np.exp(log_probs - np.asarray(batch.old_log_probs))
    is_clipped = np.where(table > 0, ratios > 1.28, (table < 0) & (ratios < 0.8))
    np.testing.assert_allclose(info.kl, (log_probs - ref)[inside].mean(), rtol=1e-5)
    np.testing.assert_allclose(info.entropy, entropies[inside].mean(), rtol=1e-5)
    np.testing.assert_allclose(info.sampled_entropy, -np.asarray(batch.old_log_probs)[inside].mean(), rtol=1e-5)
    np.testing.assert_allclose(info.clip_fraction, is_clipped[inside].sum() / (inside & (table != 0)).sum(), rtol=1e-6)
    assert int(info.num_rows) == 5 * 4
    np.testing.assert_allclose(info.loss - info.policy_loss, 0.3 * info.kl, rtol=1e-4)  # alike for the token mean


SKIP_CASES = [
    *((advantage, "token-mean", 8) for advantage in rl.ADVANTAGES),
    *(("grpo", loss, 8) for loss in rl.LOSSES if loss != "token-mean"),
    *(("grpo", "token-mean", rows_per_step) for rows_per_step in (1, 12, 1000)),
]


def test_skipping_leaves_the_gradient_as_it_is():
    params, batch, _ = tabular.random_case(3)

    @jax.jit
    def run(params, batch):
        def gradient(case, skips):
            advantage, loss, rows_per_step = case
            options = {"advantage": advantage, "loss": loss, "rows_per_step": rows_per_step}
            return build(**options, skips_zero_advantage=skips).gradient(params, batch)

        return [(gradient(case, True), gradient(case, False)) for case in SKIP_CASES]

    for (advantage, loss, _), results in zip(SKIP_CASES, run(params, batch), strict=True):
        (skipping, info), (everything, info_everything) = results
        np.testing.assert_allclose(skipping["logits"], everything["logits"], atol=1e-7)
        assert np.abs(everything["logits"]).max() > 1e-3
        for field in ("loss", "policy_loss", "sampled_entropy", "grad_norm", "clip_fraction"):
            np.testing.assert_allclose(getattr(info, field), getattr(info_everything, field), rtol=1e-5, atol=1e-7)
        assert int(info.num_rows) == (5 if advantage == "reinforce++" else 3) * 4
        # This loss counts no others.
        assert int(info_everything.num_rows) == (3 if loss == "token-mean-signal" else 5) * 4


@pytest.mark.parametrize(("rows_per_step", "num_rows"), [(1, 1), (2, 2), (3, 2), (4, 4), (9, 8)])
def test_groups_go_through_the_model_in_parts(rows_per_step, num_rows):
    params, batch, ref_log_probs = tabular.random_case(3)
    sizes = []

    def log_probs_fn(params, prompts, completions):
        sizes.append((prompts.shape[0], completions.shape[0] * completions.shape[1]))
        return tabular.log_probs_fn(params, prompts, completions)

    options = {"learning_rate": 0.1, "kl_coef": 0.3, "entropy_coef": 0.1}
    expected, of_whole = rl.learner(tabular.log_probs_fn, **options).gradient(params, batch, ref_log_probs)
    run = rl.learner(log_probs_fn, **options, rows_per_step=rows_per_step).gradient
    found, info = jax.jit(run)(params, batch, ref_log_probs)
    assert {size for _, size in sizes} == {num_rows}
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-7)
    for one, other in zip(info, of_whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("loss", rl.LOSSES)
@pytest.mark.parametrize("rows_per_step", [2, 8, 1000])
def test_cut_completions_have_the_same_gradient(loss, rows_per_step):
    params, batch, ref_log_probs = tabular.random_case(4, length=7)
    options = {"learning_rate": 0.1, "loss": loss, "kl_coef": 0.3, "entropy_coef": 0.1, "rows_per_step": rows_per_step}
    expected, of_whole = rl.learner(tabular.log_probs_fn, **options).gradient(params, batch, ref_log_probs)
    for num_lengths in (3, 7, 100):
        run = rl.learner(tabular.log_probs_fn, **options, num_lengths=num_lengths).gradient
        found, info = tabular.quick_jit(run)(params, batch, ref_log_probs)
        np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-7)
        assert np.abs(found["logits"]).max() > 1e-3
        for one, other in zip(info, of_whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_rows_of_a_step_are_as_long_as_the_longest_of_them():
    params, batch, _ = tabular.random_case(6, num_groups=8, length=16, num_prompts=9)
    # Every group has a signal; lengths within a group differ.
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1 / 4, batch.rewards.shape), 16)
    lengths[3, 1] = 16
    rewards = jnp.asarray(np.arange(4) % 2, jnp.float32) + 0 * batch.rewards
    batch = batch._replace(
        mask=jnp.asarray(np.arange(16) < lengths[..., None]), rewards=rewards, is_used=jnp.ones(8, bool)
    )
    num_tokens = []

    def counting_fn(params, prompts, completions):
        jax.debug.callback(lambda tokens: num_tokens.append(tokens.size), completions)
        return tabular.log_probs_fn(params, prompts, completions)

    def count(**options):
        num_tokens.clear()
        run = rl.learner(counting_fn, learning_rate=0.1, **options).gradient
        jax.block_until_ready(tabular.quick_jit(run)(params, batch))
        jax.effects_barrier()
        return sum(num_tokens)

    assert count(rows_per_step=4) == 8 * 4 * 16
    # Groups by their longest, in steps of 2.
    longest = lengths.max(axis=1)
    assert count(rows_per_step=4, num_lengths=8) == 4 * np.sum(-(-longest // 2) * 2)
    # Pairs of rows: those of a group are in order, too.
    pairs = np.sort(lengths, axis=1)[:, 1::2]
    assert count(rows_per_step=2, num_lengths=8) == 2 * np.sum(-(-pairs // 2) * 2)
    assert count(rows_per_step=2, num_lengths=8) < 1.6 * lengths.sum() < 0.5 * 8 * 4 * 16


def test_skipped_rows_never_reach_the_model():
    """A model that makes NaN of some prompts: harmless where their groups are skipped, seen where they are not."""
    params, batch, _ = tabular.random_case(3)
    is_poisoned = jnp.zeros(8, bool).at[batch.prompts[jnp.array([1, 2, 4]), 0]].set(True)
    is_padding_poisoned = jnp.zeros(8, bool).at[batch.prompts[2, 0]].set(True)

    def poisoned_fn(which):
        def log_probs_fn(params, prompts, completions):
            log_probs, entropies = tabular.log_probs_fn(params, prompts, completions)
            return log_probs * jnp.where(which[prompts[:, 0]], jnp.nan, 1.0)[:, None, None], entropies

        return log_probs_fn

    @jax.jit
    def run(params, batch):
        results = []
        for rows_per_step in (8, 1000):
            grade = lambda fn, rows=rows_per_step, **options: rl.learner(
                fn, learning_rate=0.1, rows_per_step=rows, **options
            ).gradient(params, batch)
            healthy = grade(tabular.log_probs_fn)
            skipping = grade(poisoned_fn(is_poisoned))
            without_padding = grade(poisoned_fn(is_padding_poisoned), skips_zero_advantage=False)
            everything = grade(poisoned_fn(is_poisoned), skips_zero_advantage=False)
            results.append((healthy, skipping, without_padding, everything))
        return results

    for healthy, skipping, without_padding, everything in run(params, batch):
        np.testing.assert_array_equal(skipping[0]["logits"], healthy[0]["logits"])
        assert bool(skipping[1].is_finite)
        assert bool(without_padding[1].is_finite)
        assert not bool(everything[1].is_finite)


def test_work_is_that_of_the_rows_with_a_signal():
    """Counts the rows that the model is given while running, at one compilation for all batches."""
    params, batch, _ = tabular.random_case(5)
    num_rows = []

    def counting_fn(params, prompts, completions):
        jax.debug.callback(lambda tokens: num_rows.append(tokens.shape[0] * tokens.shape[1]), completions)
        return tabular.log_probs_fn(params, prompts, completions)

    run = jax.jit(rl.learner(counting_fn, learning_rate=0.1, rows_per_step=8).gradient)
    for num_informative in (0, 1, 3, 5, 6):
        rewards = jnp.zeros_like(batch.rewards).at[:num_informative, 0].set(1.0)
        gradient, info = run(params, batch._replace(rewards=rewards, is_used=jnp.ones(6, bool)))
        jax.block_until_ready(gradient)
        jax.effects_barrier()
        assert sum(num_rows) == 8 * -(-num_informative // 2)
        assert int(info.num_rows) == 4 * num_informative
        num_rows.clear()
    assert run._cache_size() == 1


def test_nothing_to_learn_is_a_gradient_of_exactly_zero():
    params, batch, _ = tabular.random_case(6)
    flat = batch._replace(rewards=jnp.full_like(batch.rewards, 0.1))
    unused = batch._replace(is_used=jnp.zeros(6, bool))
    with jax.debug_nans(True):
        for case, skips in itertools.product((flat, unused), (True, False)):
            gradient, info = build(skips_zero_advantage=skips, rows_per_step=8).gradient(params, case)
            assert np.all(np.asarray(gradient["logits"]) == 0)
            assert bool(info.is_finite)


def test_infinities_are_reported():
    params, batch, _ = tabular.random_case(7)
    bad = batch._replace(rewards=batch.rewards.at[0, 0].set(jnp.inf))
    assert not bool(build().gradient(params, bad)[1].is_finite)


def test_gradients_of_bfloat16_parameters_are_summed_in_float32():
    """1024 equal chunks: in bfloat16 a sum stops growing at 256 of them."""
    num_groups = 1024
    completions = jnp.broadcast_to(jnp.array([[0], [1]], jnp.int32), (num_groups, 2, 1))
    rewards = completions[..., 0].astype(jnp.float32)
    batch = rl.Batch(
        ids=jnp.arange(num_groups),
        prompts=jnp.zeros((num_groups, 1), jnp.int32),
        completions=completions,
        mask=jnp.ones(completions.shape, bool),
        old_log_probs=jnp.zeros(completions.shape),
        rewards=rewards,
        is_correct=rewards == 1,
        is_used=jnp.ones(num_groups, bool),
    )
    linear_fn = lambda params, prompts, completions: (params * completions, 0.0 * completions)
    learner = rl.learner(linear_fn, learning_rate=0.1, advantage="dr-grpo", rows_per_step=2)
    gradient, _ = jax.jit(learner.gradient)(jnp.zeros((), jnp.bfloat16), batch)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), -0.25, rtol=1e-2)
