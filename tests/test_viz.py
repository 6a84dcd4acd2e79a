"""Figures of predictions: what is drawn is compared with what loops over the trace compute."""

import inspect
import pickle
import subprocess
import sys

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from scipy import stats

import dps_jax
from dps_jax import predictors, traces, viz

GROUP_SIZE = 8


def random_trace(num_rounds=7, num_prompts=12, batch_size=5, seed=0, counts=GROUP_SIZE):
    rng = np.random.default_rng(seed)
    rounds = np.repeat(np.arange(num_rounds), batch_size)
    ids = np.concatenate([rng.choice(num_prompts, batch_size, replace=False) for _ in range(num_rounds)])
    counts = np.full(ids.size, counts) if np.ndim(counts) == 0 else rng.choice(counts, ids.size)
    return traces.Trace(rounds, ids, rng.binomial(counts, 0.5), counts)


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def predictions_by_round(predictor, trace, num_prompts):
    """Returns predictions of all prompts before every round, one eager call after another."""
    state, found = predictor.init(num_prompts), []
    for index in range(trace.rounds.max() + 1):
        found.append(predictor.predict(state))
        rows = trace.rounds == index
        columns = (jnp.asarray(column[rows], jnp.int32) for column in (trace.prompt_ids, trace.successes, trace.counts))
        state = predictor.observe(state, *columns)
    return {name: np.array([getattr(one, name) for one in found]) for name in ("success_rate", "p_informative")}


@pytest.mark.parametrize("quantity", ["success_rate", "p_informative"])
@pytest.mark.parametrize("method", ["mopps", "dps"])
def test_beliefs_are_predictions_before_each_round(method, quantity):
    trace = random_trace()
    prior = dps_jax.hmm.resolve_prior("uniform", decay=0.7)
    predictor = predictors.mopps() if method == "mopps" else predictors.hmm(prior)
    expected = predictions_by_round(predictor, trace, 12)[quantity]
    some, everything, _ = viz.beliefs(trace, method, prompt_ids=[7, 2], quantity=quantity, num_prompts=12).axes
    assert legend_of(some) == ["prompt 7", "prompt 2", "observed"]
    for line, prompt in zip(some.lines, (7, 2), strict=False):
        np.testing.assert_allclose(line.get_ydata(), expected[:, prompt], atol=1e-5)
    for points, prompt in zip(some.collections, (7, 2), strict=True):
        rows = trace.prompt_ids == prompt
        rates = trace.successes[rows] / GROUP_SIZE
        heights = rates if quantity == "success_rate" else (rates > 0) & (rates < 1)
        np.testing.assert_allclose(points.get_offsets(), np.stack([trace.rounds[rows], heights], axis=1))
    (heat_map,) = everything.collections
    shares = [np.histogram(row, np.linspace(0, 1, 21))[0] / 12 for row in np.clip(expected + 5e-6, 0, 1)]
    np.testing.assert_allclose(np.reshape(heat_map.get_array(), (20, 7)), np.transpose(shares))
    assert everything.get_title(loc="left") == "All 12 prompts"


def test_beliefs_name_prompts_as_the_trace_does():
    trace = random_trace()
    trace = trace._replace(prompt_ids=trace.prompt_ids * 10**12, rounds=trace.rounds * 3 + 5)
    some, everything, _ = viz.beliefs(trace, lambda size: predictors.mopps(group_size=size)).axes
    ids, visits = np.unique(trace.prompt_ids, return_counts=True)
    assert legend_of(some)[:-1] == [f"prompt {ids[index]}" for index in np.argsort(-visits, kind="stable")[:4]]
    assert everything.get_title(loc="left") == f"{ids.size} visited prompts"
    assert some.lines[0].get_xdata().tolist() == [*range(7)]


def test_beliefs_name_prompts_by_their_texts():
    trace = random_trace()
    names = [f"${index} and a text  of\nmore than 24 characters" for index in range(12)]
    some = viz.beliefs(trace, "mopps", prompt_ids=[3, 5], names=names).axes[0]
    assert legend_of(some)[:-1] == [rf"\${index} and a text of more …" for index in (3, 5)]
    with pytest.raises(ValueError, match=r"names: expected a text for each id up to \d+, got 2; pass"):
        viz.beliefs(trace, names=names[:2])


def test_beliefs_refuse_what_cannot_be_drawn():
    trace = random_trace()
    with pytest.raises(ValueError, match="quantity: expected one of 'success_rate', 'p_informative', got 'variance'"):
        viz.beliefs(trace, quantity="variance")
    with pytest.raises(ValueError, match=r"method: expected one of 'binomial_hmm', 'shared_net'.* got 'crystal'"):
        viz.beliefs(trace, "crystal")
    with pytest.raises(ValueError, match="prompt_ids: expected ids of prompts of the trace, got 99; None draws those"):
        viz.beliefs(trace, prompt_ids=[2, 99])
    with pytest.raises(ValueError, match="prompt_ids: expected ids of prompts of the trace, got none"):
        viz.beliefs(trace, prompt_ids=[])
    with pytest.raises(ValueError, match="prompt_ids: expected at most 8 ids, got 9; draw several figures"):
        viz.beliefs(trace, prompt_ids=np.unique(trace.prompt_ids)[:9])
    with pytest.raises(ValueError, match="trace: expected at least one row"):
        viz.beliefs(trace.take(slice(0)))
    with pytest.raises(ValueError, match=r"trace: expected a Trace, got 'trace\.npz'"):
        viz.beliefs("trace.npz")
    with pytest.raises(ValueError, match=r"trace.prompt_ids: expected ids in \[0, 5\)"):
        viz.beliefs(trace, num_prompts=5)


@pytest.mark.parametrize("counts", [8, (4, 8)], ids=["one size", "two sizes"])
def test_calibration_bins_predictions_of_visits(counts):
    trace = random_trace(num_rounds=30, counts=counts)
    diagram, sizes = viz.calibration(trace, "mopps", num_bins=7).axes
    # Each visit is predicted at its own size.
    predicted = np.zeros(trace.rounds.size)
    for size in np.unique(trace.counts):
        of_size = predictions_by_round(predictors.mopps(group_size=int(size)), trace, 12)["p_informative"]
        rows = trace.counts == size
        predicted[rows] = of_size[trace.rounds[rows], trace.prompt_ids[rows]]
    is_hit = (trace.successes > 0) & (trace.successes < trace.counts)
    bins = np.minimum((predicted * 7).astype(int), 6)
    visits = np.bincount(bins, minlength=7)
    assert [bar.get_height() for bar in sizes.patches] == visits.tolist()
    np.testing.assert_allclose([bar.get_x() for bar in sizes.patches], np.arange(7) / 7)
    full = np.flatnonzero(visits)
    shares = np.array([is_hit[bins == index].mean() for index in full])
    points = np.stack([[predicted[bins == index].mean() for index in full], shares], axis=1)
    (container,) = diagram.containers
    np.testing.assert_allclose(container[0].get_xydata(), points, atol=1e-5)
    (bars,) = container[2]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    intervals = [
        stats.binomtest(int(is_hit[bins == i].sum()), int(visits[i])).proportion_ci(method="wilson") for i in full
    ]
    np.testing.assert_allclose(ends, intervals, atol=1e-5)
    distance = np.sum(visits[full] * np.abs(points[:, 0] - shares)) / visits.sum()
    assert legend_of(diagram)[0].startswith(f"mopps: {distance:.3f} (chance ")
    assert sizes.get_legend() is None


def test_several_methods_are_compared():
    diagram, sizes = viz.calibration(random_trace(), {"a": "mopps", "b": predictors_of("constant")}).axes
    assert [text.partition(":")[0] for text in legend_of(diagram)] == ["a", "b"]
    assert legend_of(sizes) == ["a", "b"]
    # Side by side in each bin.
    np.testing.assert_allclose(
        [bar.get_x() for bar in sizes.patches], [*np.arange(10) / 10, *np.arange(10) / 10 + 0.05]
    )


def predictors_of(name):
    return lambda size: getattr(predictors, name)(group_size=size)


def test_calibration_refuses_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="trace: expected visits of 2 completions or more"):
        viz.calibration(random_trace(counts=1))
    with pytest.raises(ValueError, match="num_bins: expected an integer >= 1, got 0"):
        viz.calibration(random_trace(), num_bins=0)
    with pytest.raises(ValueError, match="method: expected at least one method, got none"):
        viz.calibration(random_trace(), {})
    with pytest.raises(ValueError, match="tables: expected 1 to 8 tables, got 0"):
        viz.reliability_diagram({})
    with pytest.raises(ValueError, match="tables: expected predicted, share, visits of one length in 'a', got"):
        viz.reliability_diagram({"a": {"predicted": [0.5], "share": [0.5]}})


@pytest.mark.parametrize("num_prompts", [None, 20])
def test_coverage_counts_visits(num_prompts):
    trace = random_trace(num_rounds=9)
    order = np.random.default_rng(1).permutation(trace.rounds.size)
    distinct, spread, recent = viz.coverage(trace.take(order), num_prompts=num_prompts).axes
    seen = [np.unique(trace.prompt_ids[trace.rounds <= index]).size for index in range(9)]
    assert distinct.lines[0].get_ydata().tolist() == seen
    ids = np.unique(trace.prompt_ids)
    visits = [np.sum(trace.prompt_ids == prompt) for prompt in (ids if num_prompts is None else range(20))]
    assert [bar.get_height() for bar in spread.patches] == np.bincount(visits).tolist()
    assert spread.patches[2].get_x() + 0.5 == 2
    assert spread.get_title(loc="right") == f"{visits.count(0)} of {len(visits)} never visited"
    ages = [8 - trace.rounds[trace.prompt_ids == prompt].max() for prompt in ids]
    assert [bar.get_height() for bar in recent.patches] == np.bincount(ages).tolist()
    assert (legend_of(distinct) == ["distinct prompts", "all prompts"]) == (num_prompts is not None)


def test_many_visits_share_bars():
    rounds = np.arange(100)
    trace = traces.Trace(rounds, np.where(rounds < 95, 0, 1), np.ones(100, int), np.full(100, 2))
    spread, recent = viz.coverage(trace).axes[1:]
    # 96 numbers of visits in bars of three.
    assert [bar.get_height() for bar in spread.patches] == [*([0, 1] + [0] * 29), 1]
    assert {bar.get_width() for bar in spread.patches} == {2.7}
    assert [bar.get_height() for bar in recent.patches] == [1, 0, 0, 0, 0, 1]


PREDICTED = {
    "success_rate": np.array([0.1, 0.1, 0.9, 0.5, 0.96], np.float32),
    "p_informative": np.array([0.2, 0.3, 0.3, 0.99, 0.05], np.float32),
}


def test_predictions_are_distributed_over_all_prompts():
    rates, informative, by_group = viz.predictions(
        PREDICTED, groups=[1, 1, 0, -1, 0], group_names=["a", "b"], candidates=[1, 3], title="now"
    ).axes
    edges = np.linspace(0, 1, 26)
    for axes, values in ((rates, PREDICTED["success_rate"]), (informative, PREDICTED["p_informative"])):
        outline, bars = axes.patches[-1], axes.patches[:-1]
        np.testing.assert_allclose([bar.get_height() for bar in bars], np.histogram(values, edges)[0] / 5)
        np.testing.assert_allclose(outline.get_data().values, np.histogram(values[[1, 3]], edges)[0] / 2)
        assert legend_of(axes) == ["2 candidates of the next batch", "all 5 prompts"]
    assert [label.get_text() for label in by_group.get_yticklabels()] == ["a (2)", "b (2)", "unknown (1)"]
    ranges, means = by_group.lines[::3], [by_group.lines[1::3], by_group.lines[2::3]]
    np.testing.assert_allclose(ranges[0].get_xdata(), [0.906, 0.954], atol=1e-6)
    np.testing.assert_allclose([line.get_xdata()[0] for line in means[0]], [0.93, 0.1, 0.5], atol=1e-6)
    np.testing.assert_allclose([line.get_xdata()[0] for line in means[1]], [0.175, 0.25, 0.99], atol=1e-6)
    assert [line.get_ydata()[0] for line in means[1]] == [0, 1, 2]


def test_the_largest_of_many_groups_are_drawn():
    groups = np.repeat(np.arange(15), np.arange(15, 0, -1))
    values = dict.fromkeys(PREDICTED, np.full(groups.size, 0.5))
    by_group = viz.predictions(values, groups=groups).axes[2]
    assert [label.get_text() for label in by_group.get_yticklabels()][::11] == ["group 0 (15)", "group 11 (4)"]
    assert by_group.get_title(loc="right") == "the 12 largest of 15"


def test_predictions_refuse_what_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"predicted: expected p_informative of shape \[N\], got none; Prompt"):
        viz.predictions({"success_rate": [0.5]})
    with pytest.raises(ValueError, match=r"predicted: expected success_rate of shape \[N\], got shape \[\]"):
        viz.predictions(dps_jax.Prediction(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"predicted: expected success_rate in \[0, 1\], got 2.0 to 2.0"):
        viz.predictions({"success_rate": [2.0], "p_informative": [0.5]})
    with pytest.raises(ValueError, match="predicted: expected one value per prompt, got 1 of success_rate and 2 of"):
        viz.predictions({"success_rate": [0.5], "p_informative": [0.5, 0.5]})
    with pytest.raises(ValueError, match="groups: expected 5 ids, one per prompt, got 1"):
        viz.predictions(PREDICTED, groups=[0])
    with pytest.raises(ValueError, match=r"group_names: expected at least 3 names, got \['a'\]"):
        viz.predictions(PREDICTED, groups=[0, 1, 2, 0, 0], group_names=["a"])
    with pytest.raises(ValueError, match=r"candidates: expected ids in \[0, 5\), got 5"):
        viz.predictions(PREDICTED, candidates=[5])


def busy_selector(**options):
    """Returns a selector with outcomes that are committed, pending, and out."""
    selector = dps_jax.PromptSelector(60, groups=[0, 1, 2] * 20, seed=3, **options)
    first = selector.select(6)
    selector.observe(first, np.arange(6), 8)
    second = selector.select(6)
    selector.observe(second[:4], [0, 8, 3, 2], 8)
    return selector


@pytest.mark.parametrize("method", ["dps", "uniform"])
def test_plotting_leaves_a_selector_as_it_is(method):
    drawn, other = busy_selector(method=method), busy_selector(method=method)
    before, metrics = pickle.dumps(drawn.state_dict()), drawn.metrics()
    figure = drawn.plot(batch_size=5)
    assert pickle.dumps(drawn.state_dict()) == before
    assert drawn.metrics() == metrics
    np.testing.assert_allclose(
        [bar.get_height() for bar in figure.axes[1].patches[:-1]],
        np.histogram(drawn.predict()["p_informative"], np.linspace(0, 1, 26))[0] / 60,
    )
    for _ in range(3):
        np.testing.assert_array_equal(drawn.select(5), other.select(5))


@pytest.mark.parametrize("pool_factor", [8, 2, 0])
def test_the_candidates_are_those_of_the_next_batch(pool_factor):
    selector = busy_selector(method="dps", pool_factor=pool_factor)
    candidates, in_flight = selector._next_candidates(4), selector.state_dict()["in_flight"][0]
    pending = selector.state_dict()["pending"][0]
    assert candidates.size in ({0: [58], 2: [6, 7, 8], 8: [*range(30, 33)]}[pool_factor])
    assert not np.intersect1d(candidates, np.setdiff1d(in_flight, pending)).size
    restricted = busy_selector(method="dps", pool_factor=pool_factor)
    expected = restricted.select(4, candidates=candidates)
    np.testing.assert_array_equal(selector.select(4), expected)
    assert f"{candidates.size} candidates of the next batch" in legend_of(
        busy_selector(pool_factor=pool_factor).plot(4).axes[0]
    )


def test_a_selector_without_groups_has_two_panels():
    selector = dps_jax.PromptSelector(10)
    assert len(selector.plot().axes) == 2
    assert legend_of(selector.plot().axes[0]) == ["all 10 prompts"]
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1 and <= 10, got 11"):
        selector.plot(11)


def test_matplotlib_comes_when_it_is_needed():
    program = "import sys\nfrom dps_jax import viz\nassert 'matplotlib' not in sys.modules"
    program += "\nviz.confusion_matrix([[1]])\nassert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_state_of_matplotlib_is_changed():
    before = dict(matplotlib.rcParams)
    for figure in (viz.beliefs(random_trace(), "constant"), viz.coverage(random_trace(num_rounds=1))):
        figure.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    for name in viz.__all__:
        if callable(getattr(viz, name)):
            assert "pyplot" not in inspect.getsource(inspect.getmodule(getattr(viz, name)))


@pytest.mark.parametrize("window", [1, 2, 3, 6, 40])
@pytest.mark.parametrize("size", [0, 1, 2, 11])
def test_moving_averages_match_a_loop(window, size):
    values = np.random.default_rng(size).normal(size=size)
    values[3:6] = np.nan
    result = viz.moving_average(values, window)
    assert result.shape == (size,)
    for place in range(size):
        first = place - (window - 1) // 2
        inside = [values[n] for n in range(first, first + window) if 0 <= n < size and np.isfinite(values[n])]
        np.testing.assert_allclose(result[place], np.mean(inside) if inside else np.nan, atol=1e-12)


def test_a_confusion_matrix_has_predictions_in_rows():
    counts = np.array([[6, 3, 1], [0, 0, 0], [2000, 0, 0]])
    figure = viz.confusion_matrix(counts, title="dps")
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("observed", "predicted")
    expected = ["60%\n6", "30%\n3", "10%\n1", "-", "-", "-", "100%\n2,000", "0%\n0", "0%\n0"]
    assert texts_of(axes) == expected
    assert [text.get_position() for text in axes.texts[:4]] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.6, 0.3, 0.1], [0, 0, 0], [1, 0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["unsolved", "partial", "solved"]
    assert "0.3% of 2,010 groups as predicted" in axes.get_title()
    assert "no groups" in viz.confusion_matrix(np.zeros((5, 5))).axes[0].get_title()


def test_bad_matrices_are_refused():
    with pytest.raises(ValueError, match=r"counts: expected shape \[K, K\], got \[2, 3\]"):
        viz.confusion_matrix(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"state_names: expected 3 names, got \['a'\]"):
        viz.confusion_matrix(np.zeros((3, 3)), state_names=["a"])
