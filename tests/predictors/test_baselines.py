import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.predictors import _outcomes
from dps_jax.predictors._arcsine import arcsine
from dps_jax.predictors._constant import constant
from dps_jax.predictors._ema_variance import average_variance, ema_variance
from dps_jax.predictors._last_state import last_state
from dps_jax.predictors._logit_kalman import logit_kalman
from dps_jax.predictors._mopps import mopps, nearness_to_half
from dps_jax.predictors._queue import queue, rank_score
from dps_jax.selectors._arcsine import arcsine as arcsine_selector
from dps_jax.selectors._ema_variance import ema_variance as ema_variance_selector
from dps_jax.selectors._last_state import last_state as last_state_selector
from dps_jax.selectors._logit_kalman import logit_kalman as logit_kalman_selector
from dps_jax.selectors._mopps import mopps as mopps_selector
from dps_jax.selectors._queue import queue as queue_selector
from tests.reference import predictors as reference

# The predictor, its oracle, and options unlike the defaults.
METHODS = {
    "arcsine": (arcsine, reference.Arcsine, {"decay": 0.9}),
    "ema_variance": (ema_variance, reference.EMAVariance, {"decay": 0.4}),
    "last_state": (last_state, reference.LastState, {"prior_count": 0.8}),
    "logit_kalman": (
        logit_kalman,
        reference.LogitKalman,
        {"process_noise": 0.2, "prior_mean": -0.7, "prior_variance": 2.0},
    ),
    "mopps": (mopps, reference.MoPPS, {"decay": 0.8, "prior_successes": 0.4, "prior_failures": 2.0}),
    "queue": (queue, reference.Queue, {}),
}
SELECTORS = {
    "arcsine": arcsine_selector,
    "ema_variance": ema_variance_selector,
    "last_state": last_state_selector,
    "logit_kalman": logit_kalman_selector,
    "mopps": mopps_selector,
    "queue": queue_selector,
}
# Of outcome probabilities: the oracle of the first has derivatives by differences, that of the second a finer integral.
TOLERANCES = {"arcsine": 1e-4, "logit_kalman": 5e-4}
NUM_PROMPTS = 8

pytestmark = pytest.mark.usefixtures("strict")


def random_round(rng, num_prompts=NUM_PROMPTS, num_observed=3, max_count=11):
    """Returns ids, successes, counts, and the same as a dictionary; many outcomes at an end, and padding between."""
    ids = rng.permutation(num_prompts)[: num_observed + 1]
    counts = rng.integers(1, max_count + 1, num_observed + 1)
    inside, ends = rng.integers(0, counts + 1), rng.integers(0, 2, num_observed + 1) * counts
    successes = np.where(rng.random(num_observed + 1) < 0.4, ends, inside)
    visits = {int(n): (int(m), int(c)) for n, m, c in zip(ids[:-1], successes[:-1], counts[:-1], strict=True)}
    # The last one becomes padding with a count of 0; the others are of no prompt.
    counts[-1] = successes[-1] = 0
    ids, successes, counts = (
        np.concatenate([array, more]).astype(np.int32)
        for array, more in ((ids, [-1, num_prompts, num_prompts + 3]), (successes, [1, 2, 3]), (counts, [2, 2, 3]))
    )
    order = rng.permutation(ids.size)
    return (ids[order], successes[order], counts[order]), visits


def probs_of_all(predictor, state, num_prompts=NUM_PROMPTS):
    return predictor.outcome_probs(state, jnp.arange(num_prompts, dtype=jnp.int32))


def run(predictor, rounds, num_prompts=NUM_PROMPTS):
    """Returns the state after some rounds, distributions of all prompts after each, [R, G + 1, N], and the prediction.

    Under scan, which refuses a state whose structure or dtypes change.
    """

    def step(state, outcome):
        state = predictor.observe(state, *outcome)
        return state, probs_of_all(predictor, state, num_prompts)

    def all_rounds(rounds):
        state, distributions = jax.lax.scan(step, predictor.init(num_prompts), rounds)
        return state, distributions, predictor.predict(state)

    return jax.jit(all_rounds)(rounds)


def stacked(outcomes_of_rounds):
    return tuple(np.stack(arrays).astype(np.int32) for arrays in zip(*outcomes_of_rounds, strict=True))


class Program:
    """A predictor of NUM_PROMPTS prompts, compiled once for all tests: default options with G = 8, others with 5."""

    def __init__(self, method, group_size):
        build, _, options = METHODS[method]
        self.options = {} if group_size == 8 else options
        self.predictor = build(group_size=group_size, **self.options)
        self.init = functools.partial(self.predictor.init, NUM_PROMPTS)
        self.observe = jax.jit(self.predictor.observe)
        self.predict = jax.jit(lambda state: (probs_of_all(self.predictor, state), self.predictor.predict(state)))


program = functools.cache(Program)


def outcome(ids, successes, counts):
    """Returns the outcomes, and padding up to seven entries at both ends."""
    rows = [(-1, 2, 3), *zip(ids, successes, counts, strict=True), (1, 0, 0), (NUM_PROMPTS + 1, 1, 3)]
    return tuple(np.array((rows + [(-5, 0, 2)] * 4)[:7], np.int32).T)


def check_prediction(prediction, distributions, atol):
    for field, expected in zip(prediction, _outcomes.summarise(distributions), strict=True):
        assert field.shape == expected.shape
        assert field.dtype == jnp.float32
        assert np.all((np.asarray(field) >= 0) & (np.asarray(field) <= 1 + 1e-6))
        np.testing.assert_allclose(field, expected, atol=atol)


@pytest.mark.parametrize("group_size", [5, 8])
@pytest.mark.parametrize("method", METHODS)
def test_predictor_matches_float64_loop(method, group_size):
    ours, rng = program(method, group_size), np.random.default_rng(group_size)
    state, slow = ours.init(), METHODS[method][1](NUM_PROMPTS, group_size, **ours.options)
    specs = lambda state: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    structure = specs(state)
    for index in range(30):
        # Prompts 6 and 7 come late, and there are rounds in which all are idle.
        num_prompts = 6 if index < 12 else NUM_PROMPTS
        (ids, successes, counts), visits = random_round(rng, num_prompts)
        ids = np.where(ids >= num_prompts, NUM_PROMPTS, ids)
        if index % 7 == 6:
            ids, visits = np.full_like(ids, NUM_PROMPTS), {}
        state = ours.observe(state, ids, successes, counts)
        slow.observe(visits)
        distributions, prediction = ours.predict(state)
        expected = np.stack([slow.distribution(n) for n in range(NUM_PROMPTS)], axis=1)
        np.testing.assert_allclose(distributions.sum(axis=0), 1, atol=2e-6)
        np.testing.assert_allclose(distributions, expected, atol=TOLERANCES.get(method, 5e-6))
        check_prediction(prediction, distributions, atol=3e-6)
    assert specs(state) == structure
    assert ours.observe._cache_size() == 1


@pytest.mark.parametrize("method", METHODS)
def test_padding_is_not_observed(method):
    ours = program(method, 8)
    state = ours.observe(ours.init(), *outcome([2, 5], [3, 8], [8, 8]))
    plain = ours.observe(state, *outcome([2, 7], [8, 3], [8, 8]))
    padding = ([-1, 2, 8, 3, 7, 12, 0], [5, 8, 2, 0, 3, 0, 0], [8, 8, 8, 0, 8, 1, 0])
    padded = ours.observe(state, *(np.array(column, np.int32) for column in padding))
    chex.assert_trees_all_close(plain, padded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_shards_learn_what_one_device_learns(method):
    """Two shards under vmap, which knows the name of an axis like a mesh does."""
    ours, rng, half = program(method, 8), np.random.default_rng(0), NUM_PROMPTS // 2
    first_ids, state = jnp.array([0, half], jnp.int32), ours.init()
    shards = jax.vmap(lambda first_id: ours.predictor.init(half, first_id))(first_ids)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None, None, None), axis_name="prompts")
    def observe(state, first_id, ids, successes, counts):
        is_mine = (ids >= first_id) & (ids < first_id + half)
        return ours.predictor.observe(state, jnp.where(is_mine, ids - first_id, half), successes, counts, "prompts")

    for _ in range(8):
        seen, _ = random_round(rng)
        state, shards = ours.observe(state, *seen), observe(shards, first_ids, *seen)

    def check(joint, whole):
        is_split = joint[0].shape != whole.shape
        ours = np.concatenate(list(joint), axis=-1) if is_split else joint[1]
        np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-5)

    jax.tree.map(check, shards, state)


@pytest.mark.parametrize("group_size", [1, 150])
@pytest.mark.parametrize("method", METHODS)
def test_small_and_large_groups(method, group_size):
    predictor, ids, counts = METHODS[method][0](group_size=group_size), np.arange(2), np.full(2, group_size)
    rounds = stacked([(ids, np.array([m, m // 2]), counts) for m in (group_size, 0, group_size)])
    with jax.debug_nans(True):
        _, distributions, prediction = run(predictor, rounds, 3)
    np.testing.assert_allclose(distributions.sum(axis=1), 1, atol=1e-5)
    check_prediction(prediction, distributions[-1], atol=1e-4)
    if group_size == 1:
        np.testing.assert_allclose(prediction.p_informative, 0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_laws_stay_finite_after_long_agreement_and_long_idleness(method):
    """Certain prompts, a surprise, and a stretch of a million idle rounds for the methods that count them."""
    ours = program(method, 8)
    state = ours.init()
    for _ in range(60):
        state = ours.observe(state, *outcome([0, 1, 2], [0, 8, 4], [8, 8, 8]))
    distributions, prediction = ours.predict(state)
    check_prediction(prediction, distributions, atol=3e-6)
    # Tiers are shared by prompts: the queue cannot tell the solved from the unsolved.
    if method != "queue":
        assert distributions[0, 0] > 0.6
        assert distributions[8, 1] > 0.6
    state = ours.observe(state, *outcome([0, 1, 2], [8, 0, 4], [8, 8, 8]))
    if hasattr(state, "round_index"):
        state = state._replace(round_index=state.round_index + jnp.int32(1_000_000))
    distributions, prediction = ours.predict(state)
    np.testing.assert_allclose(distributions.sum(axis=0), 1, atol=1e-5)
    check_prediction(prediction, distributions, atol=3e-6)


def mean_log_loss(observe, outcome_probs, state, num_rounds=200):
    """Returns nats per visit in the later half of the rounds; prompts have constant rates, all but one are visited."""
    rng, rates = np.random.default_rng(1), np.array([0.01, 0.5, 0.9, 0.02, 0.99, 0.2, 0.7, 0.05])
    losses = []
    for _ in range(num_rounds):
        ids = rng.permutation(rates.size)[:7].astype(np.int32)
        successes = rng.binomial(8, rates[ids]).astype(np.int32)
        losses.append(-np.log(np.asarray(outcome_probs(state))[successes, ids]).mean())
        state = observe(state, ids, successes, np.full(7, 8, np.int32))
    return np.mean(losses[num_rounds // 2 :])


@functools.cache
def base_rate_log_loss():
    predictor = constant()
    distributions = jax.jit(functools.partial(probs_of_all, predictor))
    return mean_log_loss(jax.jit(predictor.observe), distributions, predictor.init(NUM_PROMPTS))


@pytest.mark.parametrize("method", METHODS)
def test_memory_of_prompts_beats_the_base_rate(method):
    ours = program(method, 8)
    assert mean_log_loss(ours.observe, lambda state: ours.predict(state)[0], ours.init()) < base_rate_log_loss() - 0.1


def test_arcsine_learns_drifts_and_noise():
    """Angles grow by 0.04 out of a round with a visit, and shrink by 0.005 out of an idle one; noise sd 0.06, 0.01."""
    rng, size = np.random.default_rng(0), 2000
    angles, rounds = rng.uniform(0.2, 1.2, size), []
    for _ in range(150):
        ids = rng.permutation(size)[:250]
        rounds.append((ids, rng.binomial(8, np.sin(angles[ids]) ** 2), np.full(250, 8)))
        moves = rng.normal(-0.005, 0.01, size)
        moves[ids] = rng.normal(0.04, 0.06, 250)
        angles = np.clip(angles + moves, 0, np.pi / 2)
    observe, state = jax.jit(arcsine().observe), arcsine().init(size)
    for outcome in zip(*stacked(rounds), strict=True):
        state = observe(state, *outcome)
    drift, noise = np.asarray(state.learned.drift), np.exp(np.asarray(state.learned.log_noise))
    assert abs(drift[0] - 0.04) < 0.01
    assert abs(drift[1] + 0.005) < 0.002
    assert 0.06**2 / 2.5 < noise[0] < 0.06**2 * 2.5
    assert noise[1] < 4e-4


def test_queue_is_in_order():
    state, slow, rng = queue().init(30), reference.Queue(30, 8), np.random.default_rng(2)
    observe = jax.jit(queue().observe)
    for _ in range(12):
        outcome, visits = random_round(rng, 30)
        state = observe(state, *outcome)
        slow.observe(visits)
        scores = np.asarray(rank_score(state))
        assert scores.dtype == np.float32
        groups = [{int(n) for n in np.flatnonzero(scores == score)} for score in np.unique(scores)[::-1]]
        assert groups == slow.tiers_in_order()


def test_queue_keeps_its_order_for_millions_of_rounds():
    state = (
        queue()
        .init(4)
        ._replace(
            visit=jnp.array([-1, 2 * 7_000_000, 2 * 7_000_001, 2 * 6_999_999 + 1]), round_index=jnp.int32(8_000_000)
        )
    )
    assert list(np.argsort(-np.asarray(rank_score(state)))) == [3, 0, 1, 2]


def test_average_variance_matches_the_loop():
    predictor, slow = ema_variance(decay=0.6), reference.EMAVariance(NUM_PROMPTS, 8, decay=0.6)
    state, rng, observe = predictor.init(NUM_PROMPTS), np.random.default_rng(5), jax.jit(predictor.observe)
    for _ in range(4):
        outcome, visits = random_round(rng, 6)
        outcome = (np.where(outcome[0] >= 6, NUM_PROMPTS, outcome[0]), *outcome[1:])
        state = observe(state, *outcome)
        slow.observe(visits)
    np.testing.assert_allclose(average_variance(state), [slow.average(n)[1] for n in range(NUM_PROMPTS)], atol=1e-6)


def test_mopps_scores_mirror_images_alike():
    ours = program("mopps", 8)
    scores = np.asarray(nearness_to_half(ours.observe(ours.init(), *outcome([0, 1, 2], [3, 5, 8], [8, 8, 8]))))[:4]
    assert scores[0] == scores[1]
    np.testing.assert_allclose(scores, [-0.1, -0.1, -0.4, 0], atol=1e-7)


@pytest.mark.parametrize("method", SELECTORS)
def test_selectors_rank_by_what_they_say(method):
    ours = program(method, 5)
    selector = SELECTORS[method](NUM_PROMPTS, group_size=5, **ours.options)
    scores = {"queue": rank_score, "mopps": nearness_to_half}.get(method, lambda s: ours.predict(s)[1].p_informative)
    rng, expected = np.random.default_rng(0), ours.init()
    rounds = [random_round(rng)[0] for _ in range(6)]

    @jax.jit
    def by_selector(rounds):
        step = lambda state, seen: (selector.observe(state, *seen), None)
        state, _ = jax.lax.scan(step, selector.init(jax.random.key(0)), rounds)
        return state, selector.select(state, jax.random.key(1), NUM_PROMPTS), selector.predict(state)

    state, (ids, info), prediction = by_selector(stacked(rounds))
    for seen in rounds:
        expected = ours.observe(expected, *seen)
    chex.assert_trees_all_close(state, expected, rtol=1e-5)
    np.testing.assert_allclose(info.scores, scores(expected)[ids], atol=1e-6)
    assert set(np.asarray(ids)) == set(range(NUM_PROMPTS))
    assert np.all(np.diff(info.scores) <= 0)
    assert all(field.shape == (NUM_PROMPTS,) for field in prediction)


def test_ema_variance_ranks_by_either_average():
    selector = ema_variance_selector(2, decay=0.0, rank_by="variance")
    observe, select = jax.jit(selector.observe), jax.jit(selector.select, static_argnums=2)
    state = observe(selector.init(jax.random.key(0)), jnp.arange(2), jnp.array([2, 5]), jnp.full(2, 8))
    ids, info = select(state, jax.random.key(1), 2)
    assert list(ids) == [1, 0]
    np.testing.assert_allclose(info.scores, [15 / 64, 12 / 64], rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: arcsine_selector(3, decay=1.5), r"decay: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: ema_variance_selector(3, decay=-1), r"decay: expected a number in \[0.0, 1.0\], got -1"),
        (lambda: ema_variance_selector(3, rank_by="rate"), "rank_by: expected one of 'p_informative', 'variance', got"),
        (lambda: last_state_selector(3, prior_count=0), "prior_count: expected a number in .*, got 0"),
        (lambda: last_state_selector(3, group_size=40_000), "group_size: expected an integer >= 1 and <= 32766, got"),
        (lambda: logit_kalman_selector(3, process_noise=-0.1), "process_noise: expected a number in .*, got -0.1"),
        (lambda: logit_kalman_selector(3, prior_mean=100), "prior_mean: expected a number in .*, got 100"),
        (lambda: logit_kalman_selector(3, prior_variance=0), "prior_variance: expected a number in .*, got 0"),
        (lambda: mopps_selector(3, decay="half"), "decay: expected a number in .*, got 'half'"),
        (lambda: mopps_selector(3, prior_successes=0), "prior_successes: expected a number in .*, got 0"),
        (lambda: mopps_selector(3, prior_failures=-1), "prior_failures: expected a number in .*, got -1"),
        (lambda: queue_selector(0), "num_prompts: expected an integer >= 1"),
        *(
            (functools.partial(build, 3, group_size=0), "group_size: expected an integer >= 1.*, got 0")
            for build in SELECTORS.values()
        ),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
