import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import rl, selectors
from dps_jax.types import SelectInfo
from tests.rl import tabular

GROUP_SIZE = 4
UNSOLVED, PARTIAL, SOLVED = 0, 1, 2


def make_problems(states):
    """A prompt's only token is its id; its fact says how its group will turn out."""
    ids = np.arange(len(states), dtype=np.int32)[:, None]
    return tabular.Problems(prompts=ids, facts=np.asarray(states, np.int32)[:, None])


def sample_fn(params, prompts, key):
    """Completions with a place in the group and noise; of 1, 2, 3, 3 tokens."""
    shape = (prompts.shape[0], GROUP_SIZE, 3)
    places = jnp.broadcast_to(jnp.arange(GROUP_SIZE, dtype=jnp.int32)[:, None], shape)
    noise = jax.random.randint(key, shape, 0, 1000, jnp.int32)
    mask = jnp.arange(3) <= jnp.minimum(places, 2)
    return tabular.Sampled(jnp.where(mask, 4 * noise + places, 0), -jnp.where(mask, noise / 1000, 0.0), mask)


def score_fn(facts, tokens):
    assert facts.shape[:2] == tokens.shape[:2]
    is_correct = (facts[..., 0] == SOLVED) | ((facts[..., 0] == PARTIAL) & (tokens[..., 0] % 4 == 1))
    return tabular.Score(is_correct, is_correct + 0.25)


def roll_out(problems):
    return functools.partial(rl.rollout, sample_fn, score_fn, None, problems)


def ordered(order):
    """Selects prompts in a fixed order; excluded ones last, as the protocol of selectors has it."""
    order = jnp.asarray(order, jnp.int32)

    def select_fn(state, key, batch_size, candidates=None, exclude=None):
        is_excluded = jnp.zeros(order.shape, bool) if exclude is None else jnp.isin(order, exclude)
        ids = order[jnp.argsort(is_excluded, stable=True)[:batch_size]]
        return ids, SelectInfo(scores=ids / 100.0)

    return select_fn


def plain(select_fn, state, states, batch_size):
    def collect(key):
        key_select, key_collect = jax.random.split(key)
        ids, info = select_fn(state, key_select, batch_size)
        selection = rl.Selection(ids=ids, scores=info.scores, inclusion_probs=info.inclusion_probs)
        return rl.collect_plain(roll_out(make_problems(states)), selection, key_collect)

    return tabular.quick_jit(collect)(jax.random.key(0))


def dynamic(select_fn, states, batch_size, key=0, state=None, **options):
    collect = lambda key: rl.collect_dynamic(
        select_fn,
        roll_out(make_problems(states)),
        state,
        key,
        **{"num_prompts": len(states), **options},
        batch_size=batch_size,
    )
    return tabular.quick_jit(collect)(jax.random.key(key))


def test_rollouts_are_scored_prompt_by_prompt():
    problems = make_problems([UNSOLVED, PARTIAL, SOLVED, PARTIAL])
    batch = tabular.quick_jit(roll_out(problems))(jnp.array([2, 1, 0]), jax.random.key(0))
    np.testing.assert_array_equal(batch.ids, [2, 1, 0])
    np.testing.assert_array_equal(batch.prompts, [[2], [1], [0]])
    np.testing.assert_array_equal(batch.is_correct, [[True] * 4, [False, True, False, False], [False] * 4])
    np.testing.assert_array_equal(batch.rewards, np.asarray(batch.is_correct) + 0.25)
    assert np.all(batch.is_used)
    assert (batch.ids.dtype, batch.rewards.dtype) == (jnp.int32, jnp.float32)


def test_plain_collection_reports_what_was_picked():
    states = [UNSOLVED, PARTIAL, SOLVED, PARTIAL, UNSOLVED]
    collection = plain(ordered([4, 3, 2, 1, 0]), None, states, 3)
    np.testing.assert_array_equal(collection.ids, [4, 3, 2])
    np.testing.assert_array_equal(collection.successes, [0, 1, 4])
    np.testing.assert_array_equal(collection.counts, [4, 4, 4])
    np.testing.assert_allclose(collection.scores, [0.04, 0.03, 0.02])
    assert int(collection.num_rollouts) == 12
    assert int(collection.num_tokens) == 3 * (1 + 2 + 3 + 3)
    np.testing.assert_allclose(collection.effective_sample_ratio, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(collection.mean_reward, 5 / 12 + 0.25, rtol=1e-6)


def test_plain_collection_carries_inclusion_probabilities():
    collection = plain(selectors.uniform(4).select, selectors.uniform(4).init(jax.random.key(0)), [PARTIAL] * 4, 3)
    np.testing.assert_allclose(collection.batch.inclusion_probs, [0.75] * 3)
    collection = dynamic(selectors.uniform(4).select, [PARTIAL] * 4, 3)
    assert collection.batch.inclusion_probs is None


def loop_by_hand(order, states, batch_size, max_batches):
    """Dynamic sampling as a Python loop: prompts tried in order, and those of them that are kept."""
    tried, kept = [], []
    for _ in range(max_batches):
        batch = [n for n in order if n not in tried][:batch_size]
        if len(batch) < batch_size:
            batch += [n for n in order if n in tried][: batch_size - len(batch)]
        tried += [n for n in batch if n not in tried]
        kept += [n for n in batch if states[n] == PARTIAL and n not in kept]
        if len(kept) >= batch_size:
            break
    return tried, kept[:batch_size]


@pytest.mark.parametrize(("batch_size", "max_batches"), [(1, 10), (3, 1), (3, 4), (5, 10)])
def test_dynamic_collection_equals_a_loop_by_hand(batch_size, max_batches):
    rng = np.random.default_rng(batch_size)
    sizes = {"batch_size": batch_size, "num_prompts": 30, "max_batches": max_batches}
    collect = tabular.quick_jit(
        lambda order, problems, key: rl.collect_dynamic(ordered(order), roll_out(problems), None, key, **sizes)
    )
    for share in (0.0, 0.2, 0.4, 0.9):
        order, states = rng.permutation(30), rng.choice(3, 30, p=[0.7 * (1 - share), share, 0.3 * (1 - share)])
        collection = collect(order, make_problems(states), jax.random.key(0))
        tried, kept = loop_by_hand(list(order), states, batch_size, max_batches)
        padding = [-1] * (collection.ids.shape[0] - len(tried))
        np.testing.assert_array_equal(collection.ids, tried + padding)
        np.testing.assert_array_equal(collection.counts, [4] * len(tried) + [0] * len(padding))
        successes = [{UNSOLVED: 0, PARTIAL: 1, SOLVED: 4}[states[n]] for n in tried]
        np.testing.assert_array_equal(collection.successes, successes + [0] * len(padding))
        np.testing.assert_allclose(collection.scores, [n / 100 for n in tried] + [0] * len(padding), rtol=1e-6)
        assert int(collection.num_rollouts) == 4 * len(tried)
        assert int(collection.num_tokens) == 9 * len(tried)
        np.testing.assert_allclose(collection.effective_sample_ratio, np.mean(states[tried] == PARTIAL), rtol=1e-6)
        np.testing.assert_allclose(collection.mean_reward, sum(successes) / (4 * len(tried)) + 0.25, rtol=1e-6)

        batch = collection.batch
        np.testing.assert_array_equal(batch.ids, kept + [-1] * (batch_size - len(kept)))
        np.testing.assert_array_equal(batch.is_used, np.arange(batch_size) < len(kept))
        np.testing.assert_array_equal(batch.prompts[: len(kept), 0], kept)
        assert np.all(np.asarray(batch.is_correct[: len(kept)]).sum(axis=1) == 1)
        assert not np.any(batch.mask[len(kept) :])
    assert collect._cache_size() == 1


def test_kept_groups_keep_their_own_completions():
    """What is scattered into the batch is row by row what was rolled out: tokens, log-probs and rewards together."""
    states = np.tile([UNSOLVED, PARTIAL], 10)
    batch = dynamic(ordered(np.arange(20)), states, 4).batch
    noise = np.asarray(batch.completions) // 4 / 1000
    np.testing.assert_allclose(batch.old_log_probs, -np.where(batch.mask, noise, 0), atol=1e-6)
    np.testing.assert_array_equal(batch.rewards, np.asarray(batch.is_correct) + 0.25)
    assert len(np.unique(np.asarray(batch.completions)[:, 0, 0])) == 4


def test_batches_of_a_round_are_sampled_from_different_keys():
    fixed = lambda state, key, batch_size, exclude: (jnp.arange(batch_size), SelectInfo(scores=jnp.zeros(batch_size)))
    seen = []

    def spying_roll_out(ids, key):
        jax.debug.callback(lambda bits: seen.append(int(bits)), jax.random.bits(key))
        return roll_out(make_problems([UNSOLVED] * 30))(ids, key)

    sizes = {"batch_size": 3, "num_prompts": 30, "max_batches": 4}
    jax.block_until_ready(rl.collect_dynamic(fixed, spying_roll_out, None, jax.random.key(0), **sizes))
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 4


@pytest.mark.parametrize("num_prompts", [4, 7])
def test_few_prompts_end_the_round(num_prompts):
    """Ten batches of four are more than there are prompts: every prompt is tried, none is in the batch twice."""
    states = np.full(num_prompts, UNSOLVED)
    states[1::3] = PARTIAL
    collection = dynamic(selectors.uniform(num_prompts).select, states, 4)
    num_batches = -(-num_prompts // 4)
    assert collection.ids.shape == (4 * num_batches,)
    tried = np.asarray(collection.ids)
    np.testing.assert_array_equal(np.sort(tried[tried >= 0]), np.arange(num_prompts))
    assert int(collection.num_rollouts) == num_batches * 16 == int(collection.counts.sum())
    kept = np.asarray(collection.batch.ids)[np.asarray(collection.batch.is_used)]
    np.testing.assert_array_equal(np.sort(kept), np.flatnonzero(states == PARTIAL))
    np.testing.assert_array_equal(collection.successes, np.where(np.isin(tried, kept), collection.counts // 4, 0))


def test_prompts_handed_out_again_are_counted_in_one_entry():
    """A selector that does not look at `exclude`: `observe` wants distinct ids, and all that was seen of them."""
    deaf = lambda state, key, batch_size, exclude: (jnp.array([5, 1, 3]), SelectInfo(scores=jnp.ones(3)))
    states = np.array([0, 1, 0, 2, 0, 0] + [0] * 30)
    collection = dynamic(deaf, states, 3, max_batches=4)
    np.testing.assert_array_equal(collection.ids, [5, 1, 3] + [-1] * 9)
    np.testing.assert_array_equal(collection.counts, [16, 16, 16] + [0] * 9)
    np.testing.assert_array_equal(collection.successes, [0, 4, 16] + [0] * 9)
    np.testing.assert_array_equal(collection.batch.ids, [1, -1, -1])
    assert int(collection.num_rollouts) == 4 * 12


def test_dynamic_collection_runs_under_vmap():
    """Seeds need different numbers of batches; every one is what it is alone."""
    states = np.random.default_rng(5).choice(3, 40, p=[0.6, 0.2, 0.2])
    state = selectors.uniform(40).init(jax.random.key(0))
    collect = lambda key: rl.collect_dynamic(
        selectors.uniform(40).select, roll_out(make_problems(states)), state, key, batch_size=3, num_prompts=40
    )
    keys = jax.random.split(jax.random.key(9), 5)
    together, alone = tabular.quick_jit(jax.vmap(collect))(keys), tabular.quick_jit(collect)
    assert len(set(np.asarray(together.num_rollouts).tolist())) > 1
    for index in range(5):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6),
            jax.tree.map(lambda leaf: leaf[index], together),  # noqa: B023
            alone(keys[index]),
        )
    assert alone._cache_size() == 1


@pytest.mark.parametrize("method", sorted(set(selectors.SELECTORS) - {"instructive"}))
def test_what_was_collected_can_be_observed(method):
    """Rounds with any selector under scan: no prompt is tried twice in a round, and padding is no observation."""
    states = np.random.default_rng(6).choice(3, 30, p=[0.6, 0.2, 0.2])
    selector = selectors.build(method, 30)

    def step(state, key):
        sizes = {"batch_size": 3, "num_prompts": 30, "max_batches": 4}
        collection = rl.collect_dynamic(selector.select, roll_out(make_problems(states)), state, key, **sizes)
        state = selector.observe(state, collection.ids, collection.successes, collection.counts)
        return state, collection

    run = tabular.quick_jit(lambda state, keys: jax.lax.scan(step, state, keys))
    state, collections = run(selector.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 6))
    for ids, counts in zip(np.asarray(collections.ids), np.asarray(collections.counts), strict=True):
        tried = ids[ids >= 0]
        assert len(set(tried.tolist())) == tried.size >= 3
        np.testing.assert_array_equal(counts, np.where(ids >= 0, GROUP_SIZE, 0))
    assert jax.tree.structure(state) == jax.tree.structure(selector.init(jax.random.key(0)))


def test_the_learner_takes_a_batch_with_padding():
    params = {"logits": jnp.zeros((30, 3, 4000))}  # more tokens than `sample_fn` knows
    states = np.zeros(30, int)
    states[3] = PARTIAL
    collection = dynamic(ordered(np.arange(30)), states, 3, max_batches=4)
    gradient, info = tabular.quick_jit(rl.learner(tabular.log_probs_fn, learning_rate=0.1).gradient)(
        params, collection.batch
    )
    moved = np.abs(gradient["logits"]).sum(axis=(1, 2))
    np.testing.assert_array_equal(np.flatnonzero(moved), [3])
    assert int(info.num_rows) == GROUP_SIZE


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected an integer >= 1 and <= 30, got 0"),
        ({"batch_size": 31}, "batch_size: expected an integer >= 1 and <= 30, got 31"),
        ({"num_prompts": 0}, "num_prompts: expected an integer >= 1, got 0"),
        ({"max_batches": 0}, "max_batches: expected an integer >= 1, got 0"),
    ],
)
def test_bad_sizes_are_refused(sizes, message):
    options = {"batch_size": 3, "num_prompts": 30, **sizes}
    with pytest.raises(ValueError, match=message):
        rl.collect_dynamic(ordered(range(30)), roll_out(make_problems([0] * 30)), None, jax.random.key(0), **options)


def test_completions_without_a_score_are_not_counted():
    group = jnp.array([[True, False, True], [True, True, True], [False, False, False]])
    rewards = jnp.array([[1.0, jnp.nan, 0.5], [1.0, 1.0, jnp.nan], [jnp.nan, jnp.nan, jnp.nan]])
    score = tabular.Score(is_correct=group, rewards=rewards)
    score_lists = score._replace(rewards=[[1.0, None, 0.5], [1.0, 1.0, None], [None] * 3])
    problems = tabular.Problems(prompts=np.arange(4)[:, None], facts=np.zeros((4, 1), np.int32))
    params = {"logits": jnp.zeros((4, 2, 3))}

    def collect(found):
        roll_out = lambda ids, key: rl.rollout(tabular.sampler(3), lambda *_: found, params, problems, ids, key)
        selection = rl.Selection(ids=jnp.array([2, 0, 3]), scores=jnp.zeros(3))
        return rl.collect_plain(roll_out, selection, jax.random.key(0))

    for collection in (collect(score), collect(score_lists)):
        np.testing.assert_array_equal(collection.ids, [2, 0, -1])
        np.testing.assert_array_equal(collection.successes, [2, 2, 0])
        np.testing.assert_array_equal(collection.counts, [2, 2, 0])
        assert float(collection.mean_reward) == 3.5 / 4
        assert int(collection.num_rollouts) == 9
        # With the completion that has no score the first group would be partially solved.
        assert float(collection.effective_sample_ratio) == 0


def test_an_empty_plain_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1, got 0"):
        plain(ordered(range(3)), None, [0] * 3, 0)
