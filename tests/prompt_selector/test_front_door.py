"""What `PromptSelector` promises around the model: threads, signals, prompts in flight, pools, keys, files."""

import contextlib
import copy
import pickle
import signal
import sys
import threading
import uuid

import jax
import numpy as np
import pytest

import dps_jax
from dps_jax import _files
from dps_jax.prompt_selector import _in_flight

pytestmark = pytest.mark.usefixtures("compiled_once")


def rounds(selector, num_rounds, batch_size=8, first=0):
    picks = []
    for index in range(first, first + num_rounds):
        ids = selector.select(batch_size)
        selector.observe(ids, np.random.default_rng(index).integers(0, 9, ids.size), 8)
        picks.append(ids.tolist())
    return picks


def assert_same(selector, state):
    np.testing.assert_equal(selector.state_dict(), state)


# Prompts in flight


def test_a_lost_batch_comes_back_after_sixteen_others():
    selector = dps_jax.PromptSelector(200, method="uniform")
    lost = selector.select(8)
    for index in range(_in_flight.MOST_BATCHES):
        ids = selector.select(8)
        assert not set(ids) & set(lost), index
        selector.observe(ids, np.full(8, 4), 8)
    seen = set()
    for _ in range(200):
        ids = selector.select(8)
        seen |= set(ids)
        selector.observe(ids, np.full(8, 4), 8)
    assert seen >= set(lost)


def test_the_promise_of_max_wait_holds_for_lost_batches():
    selector = dps_jax.PromptSelector(200, method="uniform", max_wait=40)
    lost = selector.select(8)
    seen = set()
    for _ in range(40 + _in_flight.MOST_BATCHES):
        ids = selector.select(8)
        seen |= set(ids)
        selector.observe(ids, np.full(8, 4), 8)
    assert seen >= set(lost)


def test_released_prompts_are_handed_out_at_once():
    selector = dps_jax.PromptSelector(10, method="uniform")
    first = selector.select(8)
    assert set(range(10)) - set(first) <= set(selector.select(4))
    selector.release(first)
    assert selector.metrics()["num_in_flight"] == 2
    with pytest.raises(ValueError, match=r"prompt_ids: expected ids in \[0, 10\), got 10"):
        selector.release([10])
    assert not set(selector.select(8)) & (set(range(10)) - set(first))


def test_where_all_are_in_flight_the_oldest_come_first():
    selector = dps_jax.PromptSelector(12, method="uniform")
    batches = [selector.select(4) for _ in range(3)]
    for batch in batches:
        assert set(selector.select(4)) == set(batch)


def test_a_due_turn_goes_before_in_flight_and_is_handed_out_once():
    selector = dps_jax.PromptSelector(16, method="uniform", max_wait=4)
    first = selector.select(8)
    # Prompts 0, 4, ... have their turn at once; the others are lost, and it comes in one of the next rounds.
    lost = [prompt for prompt in first if prompt % 4]
    selector.observe(first[first % 4 == 0], np.full(4, 4), 8)
    seen = []
    for _ in range(8):
        ids = selector.select(4)
        told = ids[~np.isin(ids, lost)]
        selector.observe(told, np.full(told.size, 4), 8)
        seen += ids[np.isin(ids, lost)].tolist()
    assert sorted(seen) == sorted(lost)


def test_one_prompt_at_a_time_is_one_batch_until_the_commit():
    selector = dps_jax.PromptSelector(100, method="uniform")
    ids = [int(selector.select(1, commit=False)[0]) for _ in range(40)]
    assert len(set(ids)) == 40
    selector.observe(ids[:5], [4] * 5, 8)
    assert selector.metrics()["num_rounds"] == 0
    again = int(selector.select(1, commit=False)[0])
    assert again not in ids
    assert selector.metrics()["num_pending"] == 5
    selector.commit()
    metrics = selector.metrics()
    assert (metrics["num_rounds"], metrics["num_observed"], metrics["num_in_flight"]) == (1, 5, 36)


# Threads and signals


def test_any_thread_may_call_any_method():
    selector = dps_jax.PromptSelector(64, method="dps")
    errors, told = [], []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(25):
                ids = selector.select(4)
                selector.observe(ids, rng.integers(0, 9, 4), 8)
                told.append(4)
                selector.observe_rows(ids[:1], [True])
                call = (
                    selector.commit,
                    selector.predict,
                    selector.metrics,
                    selector.state_dict,
                    selector.predicted_probs,
                )
                call[rng.integers(len(call))]()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    selector.commit()
    metrics = selector.metrics()
    assert metrics["num_pending"] == 0
    assert metrics["num_rounds"] <= 4 * 25 * 2
    # Batches that share a prompt in a round count it once; the next test counts to the last observation.
    assert metrics["num_observed"] >= 4 * 25


def test_no_observation_is_lost_between_threads():
    selector = dps_jax.PromptSelector(1000, method="dps")
    given = []

    def tell(first):
        for prompt in range(first, first + 250):
            selector.observe([prompt], [4], 8)
            given.append(prompt)

    threads = [threading.Thread(target=tell, args=(250 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        selector.commit()
    selector.commit()
    assert len(given) == 1000
    assert selector.metrics()["num_observed"] == 1000


def test_an_interrupt_leaves_the_selector_whole():
    selector = dps_jax.PromptSelector(50, method="dps", seed=3)
    expected = dps_jax.PromptSelector(50, method="dps", seed=3)
    rounds(selector, 2)
    rounds(expected, 2)
    expected.commit()
    step = selector._programs.observe

    def interrupted(*arrays):
        state = step(*arrays)
        signal.raise_signal(signal.SIGINT)
        return state

    selector._programs.observe = interrupted
    # Where tests run in several processes, these ignore it.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            selector.commit()
    finally:
        signal.signal(signal.SIGINT, usual)
    selector._programs.observe = step
    assert_same(selector, expected.state_dict())
    assert rounds(selector, 2) == rounds(expected, 2)


# Devices and shapes


def test_state_and_work_stay_on_the_device():
    selector = dps_jax.PromptSelector(50, device="cpu")
    device = jax.local_devices(backend="cpu")[0]
    rounds(selector, 2)
    state = selector.state_dict()
    thread = threading.Thread(target=lambda: (selector.load_state_dict(state), rounds(selector, 1)))
    thread.start()
    thread.join()
    assert all(leaf.devices() == {device} and leaf.committed for leaf in jax.tree.leaves(selector._state))
    with pytest.raises(ValueError, match=r"device: expected a jax\.Device or a platform such as 'cpu', got 'abacus'"):
        dps_jax.PromptSelector(50, device="abacus")
    mesh = jax.make_mesh((1,), ("prompts",))
    with pytest.raises(ValueError, match="device: expected None along with a mesh"):
        dps_jax.PromptSelector(50, device="cpu", mesh=mesh)


def test_few_programs_serve_all_lengths_of_candidates():
    selector = dps_jax.PromptSelector(3000, method="dps")
    for length in range(1025, 2048, 41):
        ids = selector.select(8, candidates=np.arange(length) + 3)
        assert ids.min() >= 3
        assert ids.max() < length + 3
        selector.release(ids)
    assert selector._programs.select._cache_size() <= 2


def test_padding_of_candidates_is_never_picked():
    for method in ("uniform", "history", "dps"):
        selector = dps_jax.PromptSelector(100, method=method)
        assert set(selector.select(9, candidates=np.arange(50, 59))) == set(range(50, 59))


def test_warm_up_changes_nothing_and_compiles(caplog):
    selector = dps_jax.PromptSelector(500, method="dps", pool_factor=4)
    before = selector.state_dict()
    selector.warm_up(8)
    selector.warm_up(8, pool_size=100)
    assert_same(selector, before)
    with caplog.at_level("WARNING"), jax.log_compiles():
        rounds(selector, 2)
        selector.select(8, candidates=np.arange(100))
    assert not [message for message in caplog.messages if "XLA compilation" in message]
    with pytest.raises(ValueError, match="pool_size: expected an integer >= 8 and <= 500, got 4"):
        selector.warm_up(8, pool_size=4)
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1 and <= 500, got 501"):
        selector.warm_up(501)


# Pools


def test_pools_follow_from_the_seed_and_the_number_of_calls():
    make = lambda **options: dps_jax.PromptSelector(2000, method="history", **options)
    selector, same, other = make(seed=1), make(seed=1), make(seed=2)
    picks = rounds(selector, 3)
    assert rounds(same, 3) == picks
    assert rounds(other, 3) != picks
    restored = make(seed=5)
    restored.load_state_dict(selector.state_dict())
    assert rounds(restored, 3, first=3) == rounds(same, 3, first=3)


def test_without_candidates_a_pool_is_drawn():
    sizes = lambda selector, batch_size: selector._pools.size(batch_size)
    assert sizes(dps_jax.PromptSelector(2000), 8) == 64
    assert sizes(dps_jax.PromptSelector(2000, pool_factor=0), 8) is None
    assert sizes(dps_jax.PromptSelector(2000, max_wait=500), 8) is None
    assert sizes(dps_jax.PromptSelector(50), 8) is None
    assert sizes(dps_jax.PromptSelector(2000, method="instructive"), 8) == 500
    selector = dps_jax.PromptSelector(2000)
    pool = selector._drawn_pool(8)
    assert np.unique(pool).size == 64
    assert set(selector.select(8)) <= set(pool)
    with pytest.raises(ValueError, match=r"pool_factor: expected an integer >= 0 .*got -1"):
        dps_jax.PromptSelector(50, pool_factor=-1)


# Keys


def test_what_is_known_of_a_prompt_goes_with_its_key():
    keys = [f"prompt {number}" for number in range(40)]
    selector = dps_jax.PromptSelector(40, keys=keys, groups=np.arange(40) % 3)
    rounds(selector, 6)
    selector.commit()
    selector.observe([0, 39], [3, 4], 8)
    last = selector.select(8, commit=False)
    kept = [*range(39, 20, -1), *range(10)]
    others = [uuid.UUID(int=1), ("a", 3)]
    groups = [*(number % 3 for number in kept), 0, 1]
    moved = dps_jax.PromptSelector(31, keys=[keys[number] for number in kept] + others, seed=9, groups=groups)
    moved.load_state_dict(selector.state_dict())
    np.testing.assert_array_equal(moved.predicted_probs()[:29], selector.predicted_probs()[kept])
    cold = dps_jax.PromptSelector(2).predicted_probs()
    np.testing.assert_allclose(moved.predicted_probs()[29:], cold, atol=1e-6)
    assert moved.metrics()["num_pending"] == 2
    assert moved.metrics()["num_in_flight"] == len(set(last) & set(kept))
    moved.commit()
    selector.commit()
    np.testing.assert_array_equal(moved.predicted_probs()[:29], selector.predicted_probs()[kept])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a"] * 50, "keys: expected distinct names, got 'a' at positions 0 and 1"),
        (["a", "b"], "keys: expected 50, one per prompt, got 2"),
        ([[number] for number in range(50)], r"keys: expected hashable names, got \[0\] at position 0"),
    ],
)
def test_bad_keys_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        dps_jax.PromptSelector(50, keys=keys)


def test_without_keys_another_number_of_prompts_is_refused():
    state = dps_jax.PromptSelector(50).state_dict()
    with pytest.raises(ValueError, match=r"state\['num_prompts'\]: expected 40, got 50; give both selectors keys"):
        dps_jax.PromptSelector(40).load_state_dict(state)
    with pytest.raises(ValueError, match="one of the two has keys"):
        dps_jax.PromptSelector(50, keys=range(50)).load_state_dict(state)


# What differs is named


@pytest.mark.parametrize(
    ("method", "saved", "mine", "message"),
    [
        ("dps", {"decay": 0.5}, {"decay": 0.9}, r"decay = 0.9 \(was 0.5\)"),
        ("dps", {"group_size": 8}, {"group_size": 16}, r"group_size = 16.0 \(was 8.0\)"),
        ("dps", {}, {"temperature": 0.5}, r"temperature = 0.5 \(was 0.0\)"),
        (
            "binomial_hmm",
            {"groups": np.zeros(50)},
            {"groups": np.arange(50) % 2},
            "groups: expected those .* first for prompt 1;",
        ),
        (
            "binomial_hmm",
            {"groups": np.zeros(50)},
            {},
            "groups: expected those that the state was saved with, got none",
        ),
        (
            "binomial_hmm",
            {"features": np.eye(50)},
            {"features": np.eye(50) + np.eye(50)[::-1] * 1e-9},
            "features: expected those .* first for prompt 0",
        ),
        (
            "uniform",
            {"groups": np.zeros(50), "quotas": [0.5]},
            {"groups": np.zeros(50), "quotas": [0.25]},
            r"quotas = \['0.25'\] \(was \['0.5'\]\)",
        ),
    ],
)
def test_a_state_of_other_options_is_refused(method, saved, mine, message):
    state = dps_jax.PromptSelector(50, method=method, **saved).state_dict()
    selector = dps_jax.PromptSelector(50, method=method, **mine)
    before = selector.state_dict()
    with pytest.raises(ValueError, match=message):
        selector.load_state_dict(state)
    assert_same(selector, before)
    # The same options are taken, a default given by name included.
    dps_jax.PromptSelector(50, method=method, **saved).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"state: expected a dict from state_dict\(\), got NoneType"),
        ({"pending": np.zeros((2, 1))}, r"state\['pending'\]: expected numbers of shape \[3, P\], got shape \[2, 1\]"),
        ({"pending": np.array([[99], [1], [8]])}, r"state\['pending'\]: expected ids in \[0, 10\), got 99"),
        ({"pending": np.array([[1], [9], [8]])}, r"state\['pending'\]: expected numbers in \[0, 1\]"),
        ({"pending": np.array([[1], [0], [0]])}, r"state\['pending'\]: expected at least 1, got 0"),
        ({"pending": "none"}, r"state\['pending'\]: expected numbers"),
        ({"in_flight": np.zeros(3, np.int64)}, r"state\['in_flight'\]: expected ids, batches and 0 or 1, \[3, F\]"),
        ({"in_flight": np.array([[99], [0], [0]])}, r"state\['in_flight'\]: expected ids in \[0, 10\), got 99"),
        ({"in_flight": np.array([[1], [7], [0]])}, r"state\['in_flight'\]: expected batches up to"),
        ({"in_flight": None}, r"state\['in_flight'\]: expected an array of int64"),
        ({"num_rounds": -1}, r"state\['num_rounds'\]: expected an integer >= 0 .*, got -1"),
        ({"num_selects": 2**70}, r"state\['num_selects'\]: expected an integer"),
        ({"num_observed": "many"}, r"state\['num_observed'\]: expected an integer"),
        ({"is_batch_open": 2}, r"state\['is_batch_open'\]: expected an integer >= 0 and <= 1"),
        ({"key": np.zeros(5, np.uint32)}, r"state\['key'\]: expected shape \[2\], got \[5\]"),
        ({"key": None}, r"state\['key'\]: expected an array of uint32"),
        ({"last_round": {}}, r"state\['last_round'\]: expected effective_sample_ratio"),
        (
            {"last_round": {"effective_sample_ratio": np.nan, "predicted_informative": 0.0, "brier": 0.0}},
            r"state\['last_round'\]\['effective_sample_ratio'\]: expected a number in \[0.0, 1.0\], got nan",
        ),
        ({"leaves": 3}, r"state\['leaves'\]: expected a list of arrays, got int"),
        ({"leaves": None}, r"state\['leaves'\]: expected a list of arrays"),
        ({"options": None}, r"state\['options'\]: expected a dict of strings"),
        ({"num_prompts": "ten"}, r"state\['num_prompts'\]: expected an integer"),
        ({"method": None}, r"state\['method'\]: expected 'dps', got None"),
    ],
)
def test_damaged_states_are_refused(change, message):
    selector = dps_jax.PromptSelector(10)
    before = selector.state_dict()
    state = None if change is None else selector.state_dict() | change
    with pytest.raises(ValueError, match=message):
        selector.load_state_dict(state)
    assert_same(selector, before)


def test_leaves_that_are_not_numbers_are_refused():
    selector = dps_jax.PromptSelector(10)
    state = selector.state_dict()
    state["leaves"][0][3] = np.nan
    with pytest.raises(ValueError, match=r"state\['leaves'\]: expected finite numbers, got nan in array 0"):
        selector.load_state_dict(state)


# Rewards and large counts


def test_rewards_of_partial_credit():
    selector = dps_jax.PromptSelector(50)
    expected = dps_jax.PromptSelector(50)
    selector.observe_rewards([0, 1, 2, 3, 4], [0.0, 1.0, 0.01, 0.99, 0.5], 8)
    expected.observe([0, 1, 2, 3, 4], [0, 8, 1, 7, 4], 8)
    # A row per completion.
    selector.observe_rewards([5, 5, 5, 5], [0.2, 0.2, 0.2, 0.2])
    expected.observe([5], [1], [4])
    for each in (selector, expected):
        each.commit()
    np.testing.assert_array_equal(selector.predicted_probs(), expected.predicted_probs())
    for rewards, message in (
        ([1.5], r"expected numbers in \[0, 1\], got 1.5"),
        ([np.nan], "got nan"),
        ([1, 0], "1 values"),
    ):
        with pytest.raises(ValueError, match=f"rewards: .*{message}"):
            selector.observe_rewards([3], rewards, 8)


def test_counts_beyond_the_integers_of_the_device_are_refused():
    selector = dps_jax.PromptSelector(50)
    with pytest.raises(ValueError, match=r"counts: expected fewer than 2\*\*31 = 2147483648, got 2147483648"):
        selector.observe([3], [1], 2**31)
    selector.observe([3], [1], 2**31 - 1)
    before = selector.state_dict()
    with pytest.raises(ValueError, match=r"counts: expected fewer than 2\*\*31 completions of a prompt in a round"):
        selector.observe([3], [1], 1)
    assert_same(selector, before)
    # A state brings what is pending.
    loaded = dps_jax.PromptSelector(50)
    loaded.load_state_dict(before)
    with pytest.raises(ValueError, match=r"counts: expected fewer than 2\*\*31 completions of a prompt in a round"):
        loaded.observe([3], [1], 1)
    selector.observe([4], [1], 2**31 - 1)
    selector.commit()
    assert np.isfinite(selector.predicted_probs()).all()


def test_metrics_and_the_words_for_a_selector():
    selector = dps_jax.PromptSelector(1200, method="history")
    assert not np.isnan(list(selector.metrics().values())).any()
    rounds(selector, 2)
    selector.commit()
    assert not np.isnan(list(selector.metrics().values())).any()
    assert repr(selector) == "PromptSelector(method='history', num_prompts=1,200, num_rounds=2)"


# Files and copies


def test_a_file_holds_everything(tmp_path):
    prior = dps_jax.TransitionPrior([0.2, 0.3, 0.5], [[1, 2, 1], [3, 1, 2], [1, 1, 5]], 0.9)
    keys = [("a", number) for number in range(50)]
    selector = dps_jax.PromptSelector(50, seed=3, prior=prior, keys=keys, pool_factor=2)
    rounds(selector, 3)
    selector.observe([1, 2], [3, 4], 8)
    selector.save(tmp_path / "selector.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["selector.npz"]
    loaded = dps_jax.PromptSelector.load(tmp_path / "selector.npz")
    assert_same(loaded, selector.state_dict())
    restored = dps_jax.PromptSelector(50, prior="progress", decay=None, keys=keys, pool_factor=2)
    restored.restore(tmp_path / "selector.npz")
    assert_same(restored, selector.state_dict())
    picks = rounds(selector, 3)
    assert rounds(loaded, 3) == picks
    assert rounds(restored, 3) == picks
    with pytest.raises(ValueError, match=r"selector.npz: state\['method'\]: expected 'history', got 'dps'"):
        dps_jax.PromptSelector(50, method="history").restore(tmp_path / "selector.npz")


def test_a_prior_from_a_file_is_in_the_file(tmp_path):
    path = tmp_path / "prior.json"
    dps_jax.TransitionPrior([0.2, 0.3, 0.5], [[1, 2, 1], [3, 1, 2], [1, 1, 5]], 0.9).save(path)
    selector = dps_jax.PromptSelector(50, prior=str(path))
    selector.save(tmp_path / "selector.npz")
    path.unlink()
    assert_same(dps_jax.PromptSelector.load(tmp_path / "selector.npz"), selector.state_dict())


def test_arrays_that_a_selector_was_built_with_are_in_the_file(tmp_path):
    selector = dps_jax.PromptSelector(
        50, method="binomial_hmm", groups=np.arange(50) % 3, features=np.eye(50, 4), expected_tokens=np.arange(50) + 1.0
    )
    rounds(selector, 2)
    selector.save(tmp_path / "a.npz")
    loaded = dps_jax.PromptSelector.load(tmp_path / "a.npz")
    assert rounds(loaded, 2, first=2) == rounds(selector, 2, first=2)


def test_loading_takes_no_option_that_the_file_contains(tmp_path):
    dps_jax.PromptSelector(10, "mopps", decay=0.7).save(tmp_path / "selector.npz")
    with pytest.raises(ValueError, match=r"options: expected only mesh, .* got decay, pool_factor; to change"):
        dps_jax.PromptSelector.load(tmp_path / "selector.npz", decay=0.8, pool_factor=4)


def is_harmless(selector, path):
    """Whether a file can be read all the same."""
    with contextlib.suppress(ValueError):
        selector.restore(path)
        return True
    return False


def test_damaged_files_are_named(tmp_path):
    selector = dps_jax.PromptSelector(50, method="history")
    selector.save(tmp_path / "whole.npz")
    content = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "damaged.npz"
    rng = np.random.default_rng(0)
    flipped = [bytearray(content) for _ in range(20)]
    for damaged in flipped:
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
    cases = [b"", b"none", content[: len(content) // 2], bytes(len(content)), pickle.dumps({"a": 1}), *flipped]
    before = selector.state_dict()
    for damaged in cases:
        path.write_bytes(damaged)
        # A flipped bit may be one that says nothing.
        if damaged not in flipped or not is_harmless(selector, path):
            with pytest.raises(ValueError, match=r"damaged\.npz"):
                selector.restore(path)
        assert_same(selector, before)
    with pytest.raises(FileNotFoundError):
        selector.restore(tmp_path / "nowhere.npz")


def test_a_refused_save_leaves_the_old_file(tmp_path, monkeypatch):
    selector = dps_jax.PromptSelector(5, method="history", keys=[object() for _ in range(5)])
    path = tmp_path / "old.npz"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="keys: expected strings, numbers, bytes, UUIDs or tuples of these in a file"):
        selector.save(path)
    assert path.read_bytes() == b"old"
    monkeypatch.setattr(_files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="free space there"):
        dps_jax.PromptSelector(5, method="history").save(path)
    assert path.read_bytes() == b"old"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["old.npz"]


def test_selectors_pickle_and_copy():
    selector = dps_jax.PromptSelector(50, method="history", seed=3, keys=range(50), device="cpu")
    rounds(selector, 3)
    for other in (pickle.loads(pickle.dumps(selector)), copy.copy(selector), copy.deepcopy(selector)):
        assert_same(other, selector.state_dict())
        before = selector.state_dict()
        rounds(other, 1)
        assert_same(selector, before)
