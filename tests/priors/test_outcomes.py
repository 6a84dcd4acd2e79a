import numpy as np
import pytest

from dps_jax import priors
from dps_jax.traces import Trace

# Rounds 3 to 6 of which 5 does not occur, prompts 2, 5 and 7, prompt 5 twice in round 4.
TRACE = Trace(
    rounds=np.array([3, 3, 4, 4, 4, 6], np.int32),
    prompt_ids=np.array([7, 2, 5, 7, 5, 2], np.int32),
    successes=np.array([0, 4, 1, 8, 2, 3], np.int32),
    counts=np.array([8, 4, 4, 8, 6, 8], np.int32),
)
# By hand: (successes, counts) in rounds x prompts 2, 5, 7.
SEEN = [
    [(4, 4), None, (0, 8)],
    [None, (3, 10), (8, 8)],
    [(3, 8), None, None],
]


def changed(**columns):
    return TRACE._replace(**{name: np.asarray(values) for name, values in columns.items()})


def seen(outcomes):
    """Returns (successes, counts) or None per cell."""
    kinds = list(zip(outcomes.successes.tolist(), outcomes.counts.tolist(), strict=True))
    return [[kinds[code] if code else None for code in row] for row in outcomes.codes.tolist()]


def test_every_prompt_in_every_round():
    outcomes = priors.prepare(TRACE)
    assert seen(outcomes) == SEEN
    assert (outcomes.num_rounds, outcomes.num_prompts) == (3, 3)
    assert outcomes.prompt_ids.tolist() == [2, 5, 7]
    assert (int(outcomes.successes[0]), int(outcomes.counts[0])) == (0, 0)
    assert outcomes.groups is None
    assert outcomes.features is None
    assert [leaf.dtype.name for leaf in outcomes[:4]] == ["int32", "int32", "int32", "int64"]


def test_order_of_rows_does_not_matter():
    order = np.random.default_rng(0).permutation(TRACE.rounds.size)
    shuffled = priors.prepare(TRACE.take(order))
    for one, other in zip(shuffled[:4], priors.prepare(TRACE)[:4], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("last_rounds", "ids"), [(1, [2]), (2, [2, 5, 7]), (3, [2, 5, 7]), (100, [2, 5, 7])])
def test_last_rounds_are_used(last_rounds, ids):
    outcomes = priors.prepare(TRACE, last_rounds=last_rounds)
    columns = [position for position, prompt in enumerate([2, 5, 7]) if prompt in ids]
    assert outcomes.prompt_ids.tolist() == ids
    assert seen(outcomes) == [[row[column] for column in columns] for row in SEEN[-last_rounds:]]


def test_steps_and_their_numbers_are_the_same_rounds():
    steps = priors.prepare(changed(rounds=[30, 30, 40, 40, 40, 2**30]))
    for one, other in zip(steps[:4], priors.prepare(TRACE)[:4], strict=True):
        np.testing.assert_array_equal(one, other)


def test_groups_and_features_go_by_prompt_id():
    groups = np.array([9, 9, 1, 9, 9, -1, 9, 0])
    features = np.arange(18.0).reshape(9, 2)
    features[0] = np.nan  # of a prompt that was never seen
    outcomes = priors.prepare(TRACE, groups=groups, features=features)
    assert outcomes.groups.tolist() == [1, -1, 0]
    assert outcomes.features.tolist() == [[4, 5], [10, 11], [14, 15]]
    assert outcomes.features.dtype == np.float32


def test_ids_of_prompts_and_groups_may_be_hashes():
    first, second, third = 2**63 - 1, 12345678901234567, 7
    trace = changed(prompt_ids=[first, third, second, first, second, third])
    groups = {first: 2**62, second: 5 * 10**12, third: -1, 99: 4}
    outcomes = priors.prepare(trace, groups=groups, features={first: [1, 2], second: [3, 4], third: [5, 6]})
    assert outcomes.prompt_ids.tolist() == [third, second, first]
    assert outcomes.groups.tolist() == [-1, 1, 2]
    assert outcomes.group_ids.tolist() == [4, 5 * 10**12, 2**62]
    assert outcomes.features.tolist() == [[5, 6], [3, 4], [1, 2]]
    assert priors.build("grouped", outcomes).name == "grouped"
    assert priors.prepare(trace, groups={first: 0}).groups.tolist() == [-1, -1, 0]


@pytest.mark.parametrize("positions", [np.array([2, 0]), np.array([True, False, True])], ids=["positions", "mask"])
def test_some_prompts_are_taken(positions):
    some = priors.prepare(TRACE, groups=np.arange(8), features=np.arange(8.0)[:, None]).take(positions)
    expected = np.array([0, 1, 2])[positions].tolist()
    assert some.prompt_ids.tolist() == [[2, 5, 7][n] for n in expected]
    assert some.groups.tolist() == some.prompt_ids.tolist()
    assert some.features[:, 0].tolist() == some.prompt_ids.tolist()
    assert seen(some) == [[row[n] for n in expected] for row in SEEN]


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (Trace(*(np.zeros(0, np.int32),) * 4), r"trace: expected at least one row, got an empty trace"),
        (changed(rounds=[3, 3, np.nan, 4, 4, 6]), r"trace\.rounds: expected whole numbers, got nan at position 2"),
        (
            changed(prompt_ids=[7, 2, 5, 7, 5.5, 2]),
            r"trace\.prompt_ids: expected whole numbers, got 5\.5 at position 4",
        ),
        (changed(rounds=[3, 3, -4, 4, 4, 6]), r"trace\.rounds: expected 6 values >= 0 .* got 6 from -4"),
        (changed(prompt_ids=[7, 2, -1, 7, 5, 2]), r"trace\.prompt_ids: expected 6 values >= 0 .* got 6 from -1"),
        (changed(prompt_ids=[7, 2]), r"trace\.prompt_ids: expected 6 values >= 0 .* got 2 from 2"),
        (changed(prompt_ids=[]), r"trace\.prompt_ids: expected 6 values"),
        (changed(rounds=np.zeros((6, 1), int)), r"trace\.rounds: expected one dimension, got shape \[6, 1\]"),
        (changed(rounds=list("abcdef")), r"trace\.rounds: expected integers, got dtype"),
        (changed(successes=[0, 4, np.nan, 8, 2, 3]), r"successes: expected whole numbers, got nan at position 2"),
        (changed(successes=[0, 4, -1, 8, 2, 3]), r"successes: expected values in \[0, count\], got -1 of 4"),
        (
            changed(successes=[0, 5, 1, 8, 2, 3]),
            r"successes: expected values in \[0, count\], got 5 of 4 at position 1",
        ),
        (changed(successes=[0, 4]), r"successes: expected 6 values, one per prompt id, got 2"),
        (changed(counts=[8, 4, 4, 8, 0, 8]), r"counts: expected at least 1, got 0 at position 4"),
        (changed(counts=[8, 4, 4, 8, 6.5, 8]), r"counts: expected whole numbers, got 6\.5 at position 4"),
    ],
)
def test_bad_columns(trace, message):
    with pytest.raises(ValueError, match=message):
        priors.prepare(trace)


def test_traces_that_are_too_large_are_refused(monkeypatch):
    monkeypatch.setattr("dps_jax.priors._outcomes._MAX_CELLS", 8)
    with pytest.raises(ValueError, match=r"trace: expected at most 8 cells .* got 3 x 3; set last_rounds"):
        priors.prepare(TRACE)
    assert priors.prepare(TRACE, last_rounds=2).num_rounds == 2


def with_entry(shape, place, value):
    array = np.zeros(shape)
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_rounds": 0}, r"last_rounds: expected an integer >= 1, got 0"),
        ({"last_rounds": 1.5}, r"last_rounds: expected an integer >= 1, got 1\.5"),
        ({"groups": np.zeros(7, int)}, r"groups: expected an id for every prompt up to 7, got 7 values"),
        (
            {"features": {7: [1.0], 5: [2.0]}},
            r"features: expected a row for every prompt of the trace, got none for prompt 2",
        ),
        ({"features": {7: 1.0, 5: 2.0, 2: 3.0}}, r"features: expected rows of one length D >= 1, got shape \[3\]"),
        ({"groups": {7: 0.5}}, r"groups: expected whole numbers, got 0\.5"),
        ({"groups": np.full(8, -2)}, r"groups: expected ids >= 0, or -1 for unknown, got -2"),
        ({"groups": with_entry(8, 2, np.nan)}, r"groups: expected whole numbers, got nan at position 2"),
        ({"features": np.zeros(8)}, r"features: expected shape \[8 or more, D\], a row per prompt id, got \[8\]"),
        ({"features": np.zeros((7, 2))}, r"features: expected shape \[8 or more, D\].* got \[7, 2\]"),
        ({"features": np.zeros((8, 0))}, r"features: expected shape \[8 or more, D\].* got \[8, 0\]"),
        ({"features": with_entry((8, 2), (5, 1), np.nan)}, r"features: expected finite numbers, got .* for prompt 5"),
        ({"features": with_entry((8, 2), (7, 0), np.inf)}, r"features: expected finite numbers, got .* for prompt 7"),
        ({"features": with_entry((8, 2), (7, 0), 1e300)}, r"features: expected finite numbers, got .* for prompt 7"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        priors.prepare(TRACE, **options)
