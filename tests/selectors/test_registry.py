"""Methods and predictors of one's own, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import PromptSelector, hmm, predictors, selectors, tasks, traces, viz


@pytest.fixture(autouse=True)
def _registries():
    before = dict(selectors.SELECTORS), dict(predictors.PREDICTORS)
    yield
    for registry, content in zip((selectors.SELECTORS, predictors.PREDICTORS), before, strict=True):
        registry.clear()
        registry.update(content)


def test_every_method_with_predictions_has_a_predictor():
    assert set(selectors.SELECTORS) - set(predictors.PREDICTORS) == {"uniform", "history", "instructive"}


@pytest.mark.parametrize("name", predictors.PREDICTORS)
def test_predictors_by_name_have_the_group_size_and_take_what_they_can_use(name):
    predictor = predictors.build(name, group_size=3, group_ids=np.array([0, 0, 1]), features=np.ones((3, 2)))
    probs = predictor.outcome_probs(predictor.init(3), jnp.arange(3))
    assert probs.shape == (4, 3)
    np.testing.assert_allclose(probs.sum(axis=0), 1, rtol=1e-5)


def test_registered_predictor_is_a_method_with_its_own_options_and_those_of_the_acquisition():
    seen = {}

    @selectors.register_predictor
    def shrunk(*, decay=0.5, group_size=8, group_ids=None):
        seen.update(decay=decay, group_size=group_size, group_ids=group_ids)
        return predictors.mopps(decay=decay, group_size=group_size)

    assert selectors.option_names("shrunk")[:4] == ["decay", "group_size", "groups", "mesh"]
    groups = np.array([0, 0, 0, 1, 1, 1])
    selector = selectors.build("shrunk", 6, decay=0.9, group_size=4, groups=groups, quotas=[0.0, 0.5], temperature=0.5)
    assert (seen["decay"], seen["group_size"], seen["group_ids"] is groups) == (0.9, 4, True)
    ids, info = selector.select(selector.init(jax.random.key(0)), jax.random.key(1), 2)
    assert np.isin(np.asarray(ids), [3, 4, 5]).any()
    assert info.inclusion_probs.shape == (2,)
    with pytest.raises(ValueError, match=r"'shrunk': expected options among decay, .*temperature.*got decoy"):
        selectors.build("shrunk", 6, decoy=1)
    # By name in the object for other loops and in pictures.
    PromptSelector(6, method="shrunk", decay=0.2, group_size=4, seed=0).select(3)
    trace = traces.simulate_learners(np.random.default_rng(0), num_prompts=8, num_rounds=4, batch_size=4).trace
    assert viz.beliefs(trace, method="shrunk").axes
    assert seen["group_size"] == 8


@pytest.mark.parametrize("register", [selectors.register, selectors.register_predictor, predictors.register])
def test_only_named_functions_with_the_expected_arguments_are_registered(register):
    def lacking(number):
        return number

    known = dict(selectors.SELECTORS), dict(predictors.PREDICTORS)
    for factory in (lambda num_prompts, group_size: None, 3):
        with pytest.raises(ValueError, match="factory: expected a function with a name, got"):
            register(factory)
    with pytest.raises(ValueError, match=r"factory: expected a function.* (num_prompts|argument group_size)"):
        register(lacking)

    def mopps(num_prompts, *, group_size=8):
        return None

    with pytest.raises(ValueError, match=r"factory: expected a name that no other .* has, got 'mopps'; rename"):
        register(mopps)
    assert (dict(selectors.SELECTORS), dict(predictors.PREDICTORS)) == known


def test_a_name_that_only_a_predictor_has_leaves_the_methods_as_they_were():
    def constant(*, group_size=8):
        return predictors.queue(group_size=group_size)

    with pytest.raises(ValueError, match="no other predictor has, got 'constant'"):
        selectors.register_predictor(constant)
    assert "constant" not in selectors.SELECTORS


def test_unknown_names_and_options_of_predictors_are_listed():
    with pytest.raises(ValueError, match=r"name: expected one of 'binomial_hmm'.*got 'dsp'"):
        predictors.build("dsp")
    with pytest.raises(ValueError, match=r"options of dps: expected options among .*prior.*got decoy"):
        predictors.build("dps", decoy=1)


def test_hmm_accepts_the_forms_of_a_prior(tmp_path):
    prior = tmp_path / "prior.json"
    hmm.resolve_prior("progress", decay=0.9).save(prior)
    states = [predictors.hmm(form).init(2) for form in (str(prior), prior, hmm.resolve_prior("progress", decay=0.9))]
    for state in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, state, states[0])
    with pytest.raises(ValueError, match="prior: expected"):
        predictors.hmm("unknown")


def test_registries_of_tasks_refuse_alike():
    with pytest.raises(ValueError, match="factory: expected a function with a name"):
        tasks.register(lambda format_reward=0.0: None)
