import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dps_jax
from dps_jax.hmm import _transitions


def test_named_priors_are_those_of_the_paper():
    named = _transitions.named_concentration
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
    by_path = _transitions.resolve_prior(str(path), initial=2)
    np.testing.assert_array_equal(by_path.initial_probs, [0, 0, 1])
    assert by_path.decay == 0.83


def grouped_prior(decay=0.6):
    rng = np.random.default_rng(0)
    emission = dps_jax.binomial([0.1, 0.4, 0.9])
    parts = lambda: (
        rng.dirichlet(np.ones(3)),
        rng.gamma(1.0, size=(3, 3)),
        decay,
        emission,
        rng.gamma(1.0, size=(3, 3)),
    )
    groups = tuple(dps_jax.TransitionPrior(*parts()) for _ in range(4))
    return dps_jax.TransitionPrior(*parts(), groups)


def test_groups_and_trained_concentration_survive_a_file(tmp_path):
    prior, path = grouped_prior(), tmp_path / "prior.json"
    prior.save(path)
    loaded = dps_jax.TransitionPrior.load(path)
    assert (loaded.decay, loaded.emission, len(loaded.groups)) == (prior.decay, prior.emission, 4)
    for ours, theirs in zip((loaded, *loaded.groups), (prior, *prior.groups), strict=True):
        for name in ("initial_probs", "concentration", "trained_concentration"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-15)
        assert (ours.decay, ours.emission) == (theirs.decay, theirs.emission)


def test_files_name_new_fields_only_where_they_are_set(tmp_path):
    """Files of before are those of a prior without groups, and the other way round."""
    path = tmp_path / "prior.json"
    fields = {"initial_probs": [0.5, 0.5], "concentration": [[1, 2], [3, 4]], "decay": 0.5}
    path.write_text(json.dumps(fields | {"emission": {"kind": "exact", "num_states": 2}}))
    prior = dps_jax.TransitionPrior.load(path)
    assert prior.trained_concentration is None
    assert prior.groups == ()
    prior.save(path)
    assert list(json.loads(path.read_text())) == ["format", "initial_probs", "concentration", "decay", "emission"]


def test_a_prior_is_a_pytree_with_a_static_emission():
    prior = grouped_prior()
    doubled = jax.jit(lambda prior: jax.tree.map(lambda leaf: 2 * leaf, prior))(prior)
    assert isinstance(doubled, dps_jax.TransitionPrior)
    assert doubled.emission == prior.emission
    np.testing.assert_allclose(doubled.groups[3].trained_concentration, 2 * prior.groups[3].trained_concentration)

    @jax.jit
    def rebuilt(concentration, decay):
        prior = dps_jax.TransitionPrior(concentration[0] / concentration[0].sum(), concentration, decay)
        return _transitions.prior_table(prior)

    table = rebuilt(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]), 0.4)
    assert table.concentration.shape == (3, 3, 1, 1)
    np.testing.assert_allclose(table.concentration[1, :, 0, 0], [4, 5, 6])
    np.testing.assert_allclose(table.initial_probs[:, 0], [1 / 6, 1 / 3, 1 / 2], rtol=1e-6)


def test_the_table_has_the_population_last():
    prior = grouped_prior()
    table = _transitions.prior_table(prior, jnp.float32)
    assert table.concentration.shape == (3, 3, 2, 5)
    np.testing.assert_allclose(table.initial_probs[:, 4], prior.initial_probs, rtol=1e-6)
    np.testing.assert_allclose(table.concentration[:, :, 0, 4], prior.concentration, rtol=1e-6)
    np.testing.assert_allclose(table.concentration[:, :, 1, 2], prior.groups[2].trained_concentration, rtol=1e-6)


def test_options_override_all_groups():
    prior = _transitions.resolve_prior(grouped_prior(), initial=1, decay=0.25)
    for part in (prior, *prior.groups):
        assert part.decay == 0.25
        np.testing.assert_array_equal(part.initial_probs, [0, 1, 0])


def with_groups(*groups, trained=None, **options):
    return dps_jax.TransitionPrior([0.5, 0.5], np.ones((2, 2)), 0.7, None, trained, groups, **options)


def test_options_override_a_prior():
    prior = dps_jax.TransitionPrior([0.2, 0.3, 0.5], np.ones((3, 3)), 0.83)
    assert _transitions.resolve_prior(prior).decay == 0.83
    assert _transitions.resolve_prior(prior, decay=0.1).decay == 0.1
    assert _transitions.resolve_prior("local").decay == 0.7
    assert _transitions.resolve_prior("local", num_states=7).num_states == 7
    assert _transitions.resolve_prior(np.ones((5, 5))).num_states == 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _transitions.resolve_prior("sideways"), "prior: expected one of uniform, progress.*got 'sideways'"),
        (lambda: _transitions.resolve_prior([[1, 1], [0, 0]]), "prior: .* every row .* zeros in row 1"),
        (lambda: _transitions.resolve_prior([[1, 1], [-1, 2]]), "prior: expected finite entries >= 0"),
        (lambda: _transitions.resolve_prior(np.ones((3, 2))), r"prior: expected shape \[3, 3\], got \[3, 2\]"),
        (
            lambda: _transitions.resolve_prior(np.ones((4, 4))),
            r"prior: expected one of uniform, .*, with K one of 2, 3, 5, 7, got array\(\[\[1",
        ),
        (lambda: _transitions.resolve_prior(np.ones((3, 3)), num_states=5), r"prior: expected shape \[5, 5\]"),
        (lambda: _transitions.resolve_prior(initial="sure"), "initial: expected one of 'uniform', got 'sure'"),
        (lambda: _transitions.resolve_prior(initial=3), "initial: expected an integer >= 0 and <= 2, got 3"),
        (lambda: _transitions.resolve_prior(initial=[0.5, 0.5]), "initial: expected 3 probabilities, got 2"),
        (lambda: _transitions.resolve_prior(initial=[0.5, 0.5, 0.5]), "initial: .* sum to 1"),
        (lambda: _transitions.resolve_prior(decay=1.5), r"decay: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: _transitions.resolve_prior(decay=float("nan")), "decay: expected a number"),
        (
            lambda: dps_jax.TransitionPrior([0.5, 0.5], np.ones((2, 2)), 0.5, dps_jax.exact(3)),
            "initial_probs: expected 3",
        ),
        (lambda: with_groups(trained=np.ones((3, 3))), r"trained_concentration: expected shape \[2, 2\], got \[3, 3\]"),
        (lambda: with_groups(trained=[[1, 1], [0, 0]]), "trained_concentration: .* zeros in row 1"),
        (
            lambda: with_groups(np.ones((2, 2))),
            "groups: expected only instances of TransitionPrior, got ndarray as group 0",
        ),
        (lambda: with_groups(with_groups(), with_groups(with_groups())), "groups: .* without groups of their own"),
        (
            lambda: with_groups(with_groups(), with_groups(trained=np.ones((2, 2)))),
            "groups: expected trained_concentration as in this prior, got group 1 with it",
        ),
        (
            lambda: with_groups(with_groups(), trained=np.ones((2, 2))),
            "groups: expected trained_concentration as in this prior, got group 0 without it",
        ),
        (
            lambda: with_groups(dps_jax.TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)))),
            "groups: expected num_states 2 as in this prior, got 3 in group 0",
        ),
        (
            lambda: with_groups(dps_jax.TransitionPrior([0.5, 0.5], np.ones((2, 2)), 0.6)),
            "groups: expected decay 0.7 as in this prior, got 0.6 in group 0",
        ),
        (
            lambda: with_groups(
                dps_jax.TransitionPrior([0.5, 0.5], np.ones((2, 2)), 0.7, dps_jax.binomial([0.1, 0.8]))
            ),
            "groups: expected emission .*exact.* as in this prior, got .*binomial.* in group 0",
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
    with pytest.raises(ValueError, match=r"prior\.json: .*; correct it, or save the prior again"):
        dps_jax.TransitionPrior.load(path)


def test_hashes_name_groups(tmp_path):
    prior, path = dataclasses.replace(grouped_prior(), group_ids=(2**62, 7, 900, 5)), tmp_path / "prior.json"
    prior.save(path)
    loaded = dps_jax.TransitionPrior.load(path)
    assert loaded.group_ids == prior.group_ids
    assert jax.tree.map(lambda leaf: leaf, prior).group_ids == prior.group_ids
    assert _transitions.check_group_ids("groups", [5, -1, 2**62, 900], loaded).tolist() == [3, -1, 0, 2]
    with pytest.raises(
        ValueError, match=r"groups: expected -1 or the id of one of the 4 groups .* got 8 at position 1"
    ):
        _transitions.check_group_ids("groups", [5, 8], loaded)
    with pytest.raises(
        ValueError, match=r"group_ids: expected 4 different ids >= 0, one per group, got \[1, 1, 2, 3\]"
    ):
        dataclasses.replace(prior, group_ids=(1, 1, 2, 3))
    # A prompt gets the prior of its group, by whichever name.
    by_place = dps_jax.PromptSelector(4, prior=dataclasses.replace(prior, group_ids=()), groups=[3, -1, 0, 2])
    by_name = dps_jax.PromptSelector(4, prior=str(path), groups=[5, -1, 2**62, 900])
    np.testing.assert_array_equal(by_name.predicted_probs(), by_place.predicted_probs())


def test_a_state_is_not_taken_for_that_of_other_groups():
    prior = dataclasses.replace(grouped_prior(), group_ids=(10, 20, 30, 40))
    other = dataclasses.replace(prior, group_ids=(20, 10, 30, 40))
    build = lambda prior: dps_jax.PromptSelector(4, prior=prior, groups=[10, 20, -1, 30])
    selector, same, reordered = build(prior), build(prior), build(other)
    same.load_state_dict(selector.state_dict())
    same.set_prior(prior)
    with pytest.raises(ValueError, match=r"state\['options'\]: .* prior\.group_ids = .*20.*10.* \(was .*10.*20"):
        reordered.load_state_dict(selector.state_dict())
    with pytest.raises(ValueError, match="prior: expected group_ids"):
        selector.set_prior(other)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("groups", 3, "groups: expected a list, got 3; correct it"),
        ("groups", [3], r"groups\[0\]: expected an object with initial_probs, concentration, got 3"),
        ("groups", [{"initial_probs": [1, 0]}], r"groups\[0\].concentration: expected the field to be present"),
        (
            "groups",
            [{"initial_probs": [1, 0], "concentration": [[1, 1], [1, 1]], "trained_concentration": [[1, 1], [1, 1]]}],
            "groups: expected trained_concentration as in this prior, got group 0 with it",
        ),
        (
            "groups",
            [{"initial_probs": [1, 0], "concentration": [[1, 1]]}],
            r"groups\[0\]: concentration: expected shape \[2, 2\]",
        ),
        ("groups", [{"initial_probs": [1, 0], "concentration": [[1, 1], [1]]}], r"groups\[0\].concentration: expected"),
        ("group_ids", [1], "group_ids: expected 0 different ids"),
        ("group_ids", [1.5], "group_ids: expected a list of integers"),
        ("trained_concentration", [[1, -1], [1, 1]], "trained_concentration: expected finite entries >= 0"),
        ("concentration", [[1, 2], [3, "4"]], "concentration: expected rows of numbers, got"),
        ("concentration", {}, "concentration: expected rows of numbers, got {}"),
        ("initial_probs", None, "initial_probs"),
        ("initial_probs", [True, False], "initial_probs: expected numbers, got"),
        ("decay", "0.5", "decay: expected a number, got '0.5'"),
        ("decay", 10**400, "decay: expected a number, got 1000"),
        ("decay", 2, r"decay: expected a number in \[0\.0, 1\.0\], got 2"),
        ("emission", [], r"emission: expected an object with kind, got \[\]"),
        ("emission", {"kind": "exact"}, "emission.num_states: expected the field to be present"),
        ("emission", {"kind": "exact", "num_states": 4}, r"emission.num_states: expected one of \(2, 3, 5, 7\), got 4"),
        ("emission", {"kind": "binomial", "success_rates": [0.5, 2]}, "emission: expected .*inside"),
        (
            "emission",
            {"kind": "binomial", "success_rates": [0.1, 0.2], "num_states": 3},
            "emission.num_states: expected 2",
        ),
        ("emission", {"kind": "exact", "num_states": 2, "rate": 1}, "emission.rate: expected only fields among kind"),
        ("traned_concentration", [[1, 1], [1, 1]], "traned_concentration: expected only fields among format"),
        ("format", "other", "format: expected 'dps_jax.TransitionPrior', got 'other'"),
    ],
)
def test_bad_new_fields_of_a_file_are_refused(tmp_path, field, value, message):
    path = tmp_path / "prior.json"
    dps_jax.TransitionPrior([0.5, 0.5], np.ones((2, 2))).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=rf"prior\.json: prior: {message}"):
        dps_jax.TransitionPrior.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"decay": 0.7', '"decay": NaN', "got NaN, which is not JSON"),
        ('"decay": 0.7', '"decay": 0.7, "decay": 0.8', "got the key 'decay' twice"),
        ('"kind": "exact"', '"kind": "exact", "kind": "exact"', "got the key 'kind' twice"),
        ('"decay": 0.7', '"decay": ' + "[" * 100_000, "got lists or objects nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, old, new, message):
    path = tmp_path / "prior.json"
    dps_jax.TransitionPrior([0.5, 0.5], np.ones((2, 2))).save(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"prior\.json: .*{message}"):
        dps_jax.TransitionPrior.load(path)
