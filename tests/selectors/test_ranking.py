import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dps_jax.selectors import _ranking

SCORES = {
    "continuous": lambda x: x,
    "heavy ties": lambda x: jnp.round(2 * x),
    "all equal": lambda x: 0 * x - 1.5,
    "few above": lambda x: jnp.where(jnp.arange(x.size) % 997 == 0, 1.0, -3.0),
    "minus infinity": lambda x: jnp.where(x > 3, x, -jnp.inf),
}


def salts_of(seed):
    return jax.random.bits(jax.random.key(seed), (4,), jnp.uint32)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("size", "num_picked"), [(1, 1), (10, 3), (1000, 1000), (70_001, 7), (1_000_003, 100)])
def test_top_b_matches_a_full_sort(size, num_picked, kind, strict):
    scores = SCORES[kind](jax.random.normal(jax.random.key(size), (size,)))
    salts = salts_of(size + 1)
    ranked = jax.jit(lambda scores, salts: _ranking.top_b(scores, salts, num_picked))(scores, salts)
    keys = np.asarray(_ranking.tie_keys(salts, jnp.arange(size, dtype=jnp.int32)))
    expected = np.lexsort((-keys, -np.asarray(scores)))[:num_picked]
    np.testing.assert_array_equal(ranked.ids, expected)
    np.testing.assert_array_equal(ranked.scores, np.asarray(scores)[expected])


@pytest.mark.parametrize(("size", "num_picked"), [(9, 9), (70_001, 50)])
def test_no_scores_are_equal_scores(size, num_picked):
    without = _ranking.random_b(salts_of(0), num_picked, size)
    equal = _ranking.top_b(jnp.zeros(size), salts_of(0), num_picked)
    chex.assert_trees_all_equal(without, equal)


def test_shards_merge_to_the_whole():
    scores = jnp.round(jax.random.normal(jax.random.key(5), (90_000,)))
    whole = _ranking.top_b(scores, salts_of(1), 40)
    parts = [_ranking.top_b(scores[i : i + 30_000], salts_of(1), 40, first_id=i) for i in (0, 30_000, 60_000)]
    merged = _ranking.rank(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), 40)
    chex.assert_trees_all_equal(merged, whole)


def test_tie_keys_are_distinct_positive_normal_floats():
    keys = np.asarray(_ranking.tie_keys(salts_of(2), jnp.arange(1_000_000, dtype=jnp.int32)))
    assert np.unique(keys).size == keys.size
    assert np.all(np.isfinite(keys))
    assert keys.min() >= np.finfo(np.float32).tiny


def test_ties_are_broken_uniformly():
    """Marginal inclusion, and inclusion of neighbours together, over many keys."""
    size, num_picked, num_draws = 40, 10, 4000
    keys = jax.random.split(jax.random.key(17), num_draws)
    draw = lambda key: _ranking.random_b(jax.random.bits(key, (4,), jnp.uint32), num_picked, size).ids
    ids = np.asarray(jax.jit(jax.vmap(draw))(keys))
    picked = np.zeros((num_draws, size), bool)
    picked[np.arange(num_draws)[:, None], ids] = True
    # Without replacement the counts are less spread than multinomial ones; the factor makes the statistic chi-square.
    share = num_picked / size
    statistic = np.sum((picked.sum(0) - num_draws * share) ** 2) / (num_draws * share * (1 - share)) * (size - 1) / size
    assert 0.001 < stats.chi2(size - 1).cdf(statistic) < 0.999
    for step in (1, 2, 8):
        together = np.sum(picked & np.roll(picked, step, axis=1))
        prob = share * (num_picked - 1) / (size - 1)
        expected = num_draws * size * prob
        assert abs(together - expected) < 4 * np.sqrt(expected)
    first = np.bincount(ids[:, 0], minlength=size)
    assert stats.chisquare(first).pvalue > 0.001
