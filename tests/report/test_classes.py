import numpy as np
import pytest
from scipy import stats

from dps_jax import traces
from dps_jax.report import _classes
from dps_jax.traces.replay import visits_of
from dps_jax.viz import _calibration


def class_of(outcomes):
    """Returns the class of a prompt from its visits (m, G), oldest first, by the words on the page."""
    if not outcomes:
        return "unvisited"
    hits, size = outcomes[-1]
    was_solved = any(m == g for m, g in outcomes[:-1])
    if len(outcomes) >= 2 and all(m == g for m, g in outcomes[-2:]):
        return "mastered"
    if was_solved and hits < size / 2:
        return "forgotten"
    if len(outcomes) >= 3 and all(m == 0 for m, _ in outcomes[-3:]) and not was_solved:
        return "stuck"
    return "informative" if 0 < hits < size else "undecided"


def random_trace(seed, num_prompts=30, num_rounds=25):
    rng = np.random.default_rng(seed)
    rows = []
    for round_index in range(num_rounds):
        for prompt in rng.permutation(num_prompts)[: rng.integers(1, 20)]:
            count = int(rng.choice([1, 2, 4]))
            # Runs of zeros and of full marks, so that all classes occur.
            rate = [0, 1, 0.5, round_index / num_rounds, 1 - round_index / num_rounds][prompt % 5]
            rows.append((round_index, prompt, rng.binomial(count, rate), count))
    return traces.Trace(*np.array(rows).T)


@pytest.mark.parametrize("seed", range(5))
def test_classes_and_their_counts_equal_a_slow_reading(seed):
    trace = random_trace(seed)
    visits = visits_of(trace, 32)
    found = _classes.histories(visits)
    counts = _classes.counts_over_rounds(visits, found)
    outcomes = [[] for _ in range(32)]
    for round_index in range(visits.num_rounds):
        for row in np.flatnonzero(visits.rounds == round_index):
            outcomes[visits.ids[row]].append((int(visits.successes[row]), int(visits.counts[row])))
        names = [class_of(of_prompt) for of_prompt in outcomes]
        assert counts[round_index].tolist() == [names.count(name) for name in _classes.NAMES]
    assert [_classes.NAMES[index] for index in found.of_prompts(32)] == names


def test_all_classes_occur_in_these_traces():
    seen = set()
    for seed in range(5):
        visits = visits_of(random_trace(seed), 32)
        seen |= set(_classes.histories(visits).of_prompts(32).tolist())
    assert seen == set(range(len(_classes.NAMES)))


def test_definitions_name_every_class():
    assert tuple(_classes.DEFINITIONS) == _classes.NAMES
    assert all(words.endswith(".") for words in _classes.DEFINITIONS.values())


@pytest.mark.parametrize(("hits", "visits"), [(0, 5), (3, 7), (20, 20), (499, 1000)])
def test_intervals_are_those_of_wilson(hits, visits):
    low, high = _calibration.wilson(hits / visits, visits)
    expected = stats.binomtest(hits, visits).proportion_ci(method="wilson")
    np.testing.assert_allclose([low, high], expected, atol=1e-9)
