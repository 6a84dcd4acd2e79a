"""What all integrations share: outcomes, fingerprints, files beside a checkpoint, versions, the default selector."""

import json

import numpy as np
import pytest

from dps_jax import PromptSelector
from dps_jax.integrations import _building, _fingerprints, _outcomes, _states, _versions


def pending(selector):
    return selector.state_dict()["pending"]


def test_rewards_of_zero_and_one_are_outcomes():
    selector = PromptSelector(5)
    selector.select(5)
    _outcomes.observe(selector, [3, 3, 1, 1, 4], [1.0, 0, None, float("nan"), 1], None, "reward")
    np.testing.assert_array_equal(pending(selector), [[3, 3, 4], [1, 0, 1], [1, 1, 1]])
    # Without a reward at all, prompt 1 is no longer in flight.
    assert sorted(selector.state_dict()["in_flight"][0]) == [0, 2, 3, 4]


def test_a_threshold_makes_shaped_rewards_outcomes():
    selector = PromptSelector(5)
    _outcomes.observe(selector, [0, 1, 2], [0.4, 0.5, 3.0], 0.5, "reward")
    np.testing.assert_array_equal(pending(selector)[1], [0, 1, 1])


@pytest.mark.parametrize(
    ("rewards", "threshold", "message"),
    [
        ([0.0, 0.3], None, r"accuracy: expected rewards of 0 \(wrong\) and 1 \(correct\), got 0.3 for prompt 1"),
        ([0.0, float("inf")], 0.5, "accuracy: expected finite rewards, got inf for prompt 1"),
        ([0.0], None, "accuracy: expected 2 rewards"),
    ],
)
def test_bad_rewards_change_nothing(rewards, threshold, message):
    selector = PromptSelector(5)
    with pytest.raises(ValueError, match=message):
        _outcomes.observe(selector, [0, 1], rewards, threshold, "accuracy")
    assert pending(selector).size == 0


@pytest.mark.parametrize("threshold", ["a", float("nan"), float("inf")])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match="threshold"):
        _outcomes.check_threshold(threshold)


def rows(num_rows, first=0):
    return [{"prompt": f"question {index}", "answer": np.array([index])} for index in range(first, first + num_rows)]


def test_fingerprints_differ_by_order_content_and_number():
    same = _fingerprints.fingerprint(rows(10))
    assert same == _fingerprints.fingerprint([dict(reversed(row.items())) for row in rows(10)])
    assert same != _fingerprints.fingerprint(rows(10)[::-1])
    assert same != _fingerprints.fingerprint(rows(9))
    assert same != _fingerprints.fingerprint(rows(10, first=1))
    other = [row | {"answer": 0} for row in rows(10)]
    assert same != _fingerprints.fingerprint(other)
    assert _fingerprints.fingerprint(rows(10), ("prompt",)) == _fingerprints.fingerprint(other, ("prompt",))


def test_states_come_back(tmp_path):
    selector = PromptSelector(20, "binomial_hmm", seed=3)
    selector.observe(selector.select(4), [1, 2, 3, 0], 4)
    _states.save(tmp_path, selector, "print", step=7)
    other = PromptSelector(20, "binomial_hmm", seed=9)
    assert _states.restore(tmp_path, other, "print") == {"step": 7}
    np.testing.assert_array_equal(other.select(4), selector.select(4))
    for name, value in selector.predict().items():
        np.testing.assert_array_equal(other.predict()[name], value)


def test_only_what_was_saved_is_forgotten(tmp_path):
    for name in ("made", "kept"):
        (tmp_path / name).mkdir()
    _states.save(tmp_path / "made", PromptSelector(20), "print")
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    _states.save(tmp_path / "kept", PromptSelector(20), "print")
    for name in ("made", "kept"):
        _states.forget(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]


def test_states_that_do_not_belong_are_refused(tmp_path):
    selector = PromptSelector(20)
    with pytest.raises(ValueError, match=r"expected dps_jax_selector.npz and dps_jax_selector.json beside"):
        _states.restore(tmp_path, selector, "print")
    _states.save(tmp_path, selector, "print")
    with pytest.raises(ValueError, match="other rows or in another order"):
        _states.restore(tmp_path, selector, "another")
    with pytest.raises(ValueError, match=r"dps_jax_selector.npz: .*num_prompts"):
        _states.restore(tmp_path, PromptSelector(21), "print")
    selector.observe([0], [1], 2)
    selector.save(tmp_path / "dps_jax_selector.npz")
    with pytest.raises(ValueError, match="got another"):
        _states.restore(tmp_path, selector, "print")
    for text in ("{", json.dumps({"fingerprint": "print"})):
        (tmp_path / "dps_jax_selector.json").write_text(text)
        with pytest.raises(ValueError, match=r"dps_jax_selector.json: expected"):
            _states.restore(tmp_path, selector, "print")


def test_versions_are_checked(monkeypatch):
    assert _versions.require("numpy", "1.0", "99") is np
    with pytest.raises(ImportError, match=r"no_such_package: .*pip install 'no_such_package>=1,<2'"):
        _versions.require("no_such_package", "1", "2")
    with pytest.raises(ImportError, match=r"no_such_package: .*; clone it"):
        _versions.require("no_such_package", "1", "2", install="clone it")
    for found, is_good in (
        ("1.16.0", True),
        ("1.16", True),
        ("1.15.9", False),
        ("2.0.0rc1", False),
        ("1.20.dev1", True),
    ):
        monkeypatch.setattr(_versions.metadata, "version", lambda name, found=found: found)
        if is_good:
            _versions.require("numpy", "1.16", "2")
        else:
            with pytest.raises(ValueError, match=f"numpy: expected a release from 1.16 on and before 2, got {found}"):
                _versions.require("numpy", "1.16", "2")


def test_the_default_selector_is_on_the_cpu():
    selector = _building.default_selector(10, 4)
    assert selector.method == _building.DEFAULT_METHOD
    _building.check_selector(selector, 10)
    with pytest.raises(ValueError, match="selector: expected one over 11 prompts"):
        _building.check_selector(selector, 11)
    with pytest.raises(ValueError, match="selector: expected a PromptSelector"):
        _building.check_selector("dps", 10)
