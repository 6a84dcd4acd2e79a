"""Random calls, valid and not: what is refused changes nothing, and what is accepted keeps every promise."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import dps_jax
from dps_jax import selectors

NUM_PROMPTS = 40
# Of the slow test; more of them with, say, FUZZ_CALLS=5000.
NUM_CALLS = int(os.environ.get("FUZZ_CALLS", "1000"))
# Sizes from few shapes, so that little is compiled.
_SIZES = (1, 4, 8)


def valid_call(selector, rng, path, *, is_alone=True):
    """Makes one valid call, and checks what it returns."""
    kind = rng.integers(9)
    size = int(rng.choice(_SIZES))
    if kind <= 2:
        candidates = rng.permutation(NUM_PROMPTS)[:16] if kind == 2 else None
        ids = selector.select(size, candidates, commit=bool(rng.integers(4)))
        assert ids.shape == (size,)
        assert np.unique(ids).size == size
        assert np.isin(ids, np.arange(NUM_PROMPTS) if candidates is None else candidates).all()
    elif kind <= 4:
        ids = rng.integers(0, NUM_PROMPTS, size)
        counts = rng.integers(1, 12, size)
        selector.observe(ids, rng.integers(0, counts + 1), counts)
    elif kind == 5:
        selector.observe_rewards(rng.integers(0, NUM_PROMPTS, size), rng.random(size), 4)
    elif kind == 6:
        selector.release(rng.integers(0, NUM_PROMPTS, size))
    elif kind == 7:
        selector.commit()
    elif is_alone:
        before = selector.state_dict()
        selector.save(path)
        selector.restore(path)
        np.testing.assert_equal(selector.state_dict(), before)
    else:
        # The selector goes on meanwhile: what was saved has to be whole.
        selector.save(path)
        selector.restore(path)


def invalid_call(selector, rng, *, is_alone=True):
    """Makes one call that must be refused, and changes nothing."""
    calls = (
        lambda: selector.select(int(rng.integers(NUM_PROMPTS + 1, 100))),
        lambda: selector.select(int(-rng.integers(0, 3))),
        lambda: selector.select(2, candidates=[1, 1, 2]),
        lambda: selector.select(1, candidates=[NUM_PROMPTS + int(rng.integers(9))]),
        lambda: selector.observe([NUM_PROMPTS], [1], 8),
        lambda: selector.observe([1], [9], 8),
        lambda: selector.observe([1], [1], rng.choice([0, -3, 2**31, np.nan])),
        lambda: selector.observe([1, 2], [1], 8),
        lambda: selector.observe_rewards([1], [rng.choice([-0.1, 1.1, np.nan, np.inf])], 8),
        lambda: selector.observe_rows([1], [0.5]),
        lambda: selector.release([-1]),
        lambda: selector.load_state_dict(selector.state_dict() | {"num_rounds": -1}),
    )
    call = calls[rng.integers(len(calls))]
    before = selector.state_dict() if is_alone else None
    with pytest.raises(ValueError, match=": "):
        call()
    if is_alone:
        np.testing.assert_equal(selector.state_dict(), before)


def check_predictions(selector):
    prediction = selector.predict()
    for values in prediction.values():
        assert values.shape == (NUM_PROMPTS,)
        assert np.all((values >= 0) & (values <= 1 + 1e-6))
    if selector._selector.predicted_probs is not None:
        probs = selector.predicted_probs()
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
        assert probs.min() >= 0


def fuzz(method, num_calls, path, seed=0):
    rng = np.random.default_rng(seed)
    selector = dps_jax.PromptSelector(NUM_PROMPTS, method=method, seed=seed)
    for index in range(num_calls):
        if rng.random() < 0.25:
            invalid_call(selector, rng)
        else:
            valid_call(selector, rng, path)
        if index % 20 == 0:
            check_predictions(selector)
            assert np.isfinite(list(selector.metrics().values())).all()
    check_predictions(selector)


def fuzz_from_threads(method, num_calls, folder, num_threads=4):
    selector = dps_jax.PromptSelector(NUM_PROMPTS, method=method)

    def calls(number):
        rng = np.random.default_rng(number)
        for index in range(num_calls // num_threads):
            if rng.random() < 0.25:
                invalid_call(selector, rng, is_alone=False)
            else:
                valid_call(selector, rng, folder / f"{number}.npz", is_alone=False)
            if index % 20 == 0:
                check_predictions(selector)

    with ThreadPoolExecutor(num_threads) as executor:
        # Results are asked for, so that what a thread raises is raised here.
        list(executor.map(calls, range(num_threads)))
    check_predictions(selector)
    assert np.isfinite(list(selector.metrics().values())).all()
    before = selector.state_dict()
    selector.save(folder / "end.npz")
    np.testing.assert_equal(dps_jax.PromptSelector.load(folder / "end.npz").state_dict(), before)


@pytest.mark.parametrize("method", ["dps", "history", "uniform"])
def test_a_hundred_calls(method, tmp_path):
    fuzz(method, 100, tmp_path / "selector.npz")


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(selectors.SELECTORS))
def test_many_calls(method, tmp_path):
    fuzz(method, NUM_CALLS, tmp_path / "selector.npz")


@pytest.mark.parametrize("method", ["dps"])
def test_a_few_calls_from_four_threads(method, tmp_path):
    fuzz_from_threads(method, 200, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(selectors.SELECTORS))
def test_many_calls_from_four_threads(method, tmp_path):
    fuzz_from_threads(method, NUM_CALLS, tmp_path)
