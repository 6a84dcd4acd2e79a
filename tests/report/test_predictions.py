import jax
import numpy as np
import pytest

from dps_jax import selectors
from dps_jax.report import _predictions, _runs
from dps_jax.training import _config as configs
from dps_jax.training import _selection
from tests.report import made


def read(tmp_path, **changes):
    return _runs.read_run(made.run(tmp_path, **changes))


@pytest.mark.parametrize("method", list(selectors.SELECTORS))
def test_every_method_has_a_predictor_to_replay(tmp_path, method):
    run = read(tmp_path, selector=configs.SelectorConfig(method=method))
    name, build, notes = _predictions._method_of(run)
    assert (name == method) != bool(notes)
    state = jax.eval_shape(lambda: build(made.GROUP).init(made.NUM_PROMPTS))
    probs = jax.eval_shape(build(made.GROUP).outcome_probs, state, np.arange(3))
    assert probs.shape == (made.GROUP + 1, 3)


@pytest.mark.parametrize(
    "selector",
    [
        configs.SelectorConfig(method="dps", decay=0.4, prior="progress"),
        configs.SelectorConfig(method="mopps", options=("prior_failures=3.0",)),
        configs.SelectorConfig(method="binomial_hmm", side_information="groups", num_states=8),
    ],
    ids=lambda selector: selector.method,
)
def test_the_replay_predicts_what_the_selector_predicted(tmp_path, selector):
    run = read(tmp_path, num_rounds=5, selector=selector)
    found = _predictions.predict(run)
    prompts = _selection.Prompts(run.groups, run.features, ("a", "b", "c"))
    config = configs.TrainConfig(selector=selector, rollout=configs.RolloutConfig(batch_size=8, group_size=made.GROUP))
    _, options = _selection.selector_options(config, prompts)
    built = selectors.build(selector.method, made.NUM_PROMPTS, **options)
    state, predict, observe = built.init(jax.random.key(0)), jax.jit(built.predict), jax.jit(built.observe)
    visits, expected = run.visits, []
    for index in range(visits.num_rounds):
        rows = visits.rounds == index
        expected.append(predict(state, visits.ids[rows]).p_informative)
        state = observe(state, visits.ids[rows], visits.successes[rows], visits.counts[rows])
    np.testing.assert_allclose(found.probs[:, 1:-1].sum(axis=1), np.concatenate(expected), atol=2e-3)
    np.testing.assert_allclose(found.next_informative, predict(state, np.arange(made.NUM_PROMPTS))[0], atol=2e-3)


def test_only_the_most_frequent_sizes_are_replayed(tmp_path):
    path = tmp_path / "log.csv"
    rows = [f"{index},{index % 3},{index % 2},{size}" for index, size in enumerate([8, 8, 8, 7, 7, 6, 6, 5, 5, 4])]
    path.write_text("round,prompt_id,successes,count\n" + "\n".join(rows) + "\n")
    found = _predictions.predict(_runs.read_run(path))
    assert sorted(set(found.counts.tolist())) == [5, 6, 7, 8]
    assert any("9 of 10" in note for note in found.notes)
    np.testing.assert_allclose(found.probs.sum(axis=1), 1, atol=1e-5)
