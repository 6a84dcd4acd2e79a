import json

import numpy as np
import pytest

import dps_jax
from dps_jax.hmm import transitions


def test_named_priors_are_those_of_the_paper():
    named = transitions.named_concentration
    np.testing.assert_array_equal(named("uniform"), np.ones((3, 3)))
    np.testing.assert_array_equal(named("progress"), [[1, 1, 1], [0.5, 1, 1], [0.5, 0.5, 1]])
    np.testing.assert_array_equal(named("stability"), [[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]])
    np.testing.assert_array_equal(named("local"), [[1, 1, 0], [1, 1, 1], [0, 1, 1]])
    assert named("local", 5).shape == (5, 5)


def test_prior_survives_a_file(tmp_path):
    prior = dps_jax.TransitionPrior(
        [0.2, 0.3, 0.5], [[1, 2, 3], [0.1, 0.2, 1 / 3], [4, 5, 6]], 0.83, dps_jax.binomial([0.1, 0.4, 0.9])
    )
    path = tmp_path / "prior.json"
    prior.save(path)
    loaded = dps_jax.TransitionPrior.load(path)
    np.testing.assert_array_equal(loaded.initial_probs, prior.initial_probs)
    np.testing.assert_array_equal(loaded.concentration, prior.concentration)
    assert (loaded.decay, loaded.emission) == (prior.decay, prior.emission)
    assert [entry.name for entry in tmp_path.iterdir()] == ["prior.json"]
    by_path = transitions.resolve_prior(str(path), initial=2)
    np.testing.assert_array_equal(by_path.initial_probs, [0, 0, 1])
    assert by_path.decay == 0.83


def test_options_override_a_prior():
    prior = dps_jax.TransitionPrior([0.2, 0.3, 0.5], np.ones((3, 3)), 0.83)
    assert transitions.resolve_prior(prior).decay == 0.83
    assert transitions.resolve_prior(prior, decay=0.1).decay == 0.1
    assert transitions.resolve_prior("local").decay == 0.7
    assert transitions.resolve_prior("local", num_states=7).num_states == 7
    assert transitions.resolve_prior(np.ones((5, 5))).num_states == 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: transitions.resolve_prior("sideways"), "prior: expected one of uniform, progress.*got 'sideways'"),
        (lambda: transitions.resolve_prior([[1, 1], [0, 0]]), "prior: .* every row .* zeros in row 1"),
        (lambda: transitions.resolve_prior([[1, 1], [-1, 2]]), "prior: expected finite entries >= 0"),
        (lambda: transitions.resolve_prior(np.ones((3, 2))), r"prior: expected shape \[3, 3\], got \[3, 2\]"),
        (lambda: transitions.resolve_prior(np.ones((4, 4))), "num_states: expected one of 2, 3, 5, 7, got 4"),
        (lambda: transitions.resolve_prior(np.ones((3, 3)), num_states=5), r"prior: expected shape \[5, 5\]"),
        (lambda: transitions.resolve_prior(initial="sure"), "initial: expected one of 'uniform', got 'sure'"),
        (lambda: transitions.resolve_prior(initial=3), "initial: expected an integer >= 0 and <= 2, got 3"),
        (lambda: transitions.resolve_prior(initial=[0.5, 0.5]), "initial: expected 3 probabilities, got 2"),
        (lambda: transitions.resolve_prior(initial=[0.5, 0.5, 0.5]), "initial: .* sum to 1"),
        (lambda: transitions.resolve_prior(decay=1.5), r"decay: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: transitions.resolve_prior(decay=float("nan")), "decay: expected a number"),
        (
            lambda: dps_jax.TransitionPrior([0.5, 0.5], np.ones((2, 2)), 0.5, dps_jax.exact(3)),
            "initial_probs: expected 3",
        ),
    ],
)
def test_bad_priors_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"decay": 1})], ids=["none", "cut", "list", "fields"])
def test_bad_prior_files_are_refused(tmp_path, content):
    path = tmp_path / "prior.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="prior: expected"):
        dps_jax.TransitionPrior.load(path)
