import inspect

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from dps_jax import viz
from dps_jax.training import _figures


def make_records(num_rounds, seed=0, rollouts=256):
    rng = np.random.default_rng(seed)
    records = []
    for index in range(num_rounds):
        record = {
            "round": index,
            "rollouts": rollouts,
            "completion_tokens": int(rollouts * (11 + rng.normal())),
            "effective_sample_ratio": float(rng.random()),
            "predicted_informative": float(rng.random()),
            "reward": None if index % 5 == 2 else float(rng.random()),
            "confusion": rng.integers(0, 9, (3, 3)).tolist(),
            "select_s": 0.25,
            "rollout_s": 1.0,
            "update_s": 0.5,
            "observe_s": 0.25,
        }
        if (index + 1) % 4 == 0:
            record |= {"test_accuracy": 0.2 + index / 100, "test_accuracy_error": 0.01 + index / 1000}
        records.append(record)
    return records


def lines_of(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def is_png(path):
    image = matplotlib.image.imread(path)
    return image.shape[0] > 300 and image.shape[1] > 300 and image.std() > 0.02


def test_the_curves_show_the_records():
    records = make_records(30)
    accuracy, ratio, reward, length = _figures.training_curves(records, accuracy_before=0.15, title="a run").axes
    np.testing.assert_allclose(
        lines_of(accuracy)["pass@1 ± standard error"],
        [(0, 0.15), *((256 * (index + 1), 0.2 + index / 100) for index in range(3, 30, 4))],
    )
    (band,) = accuracy.collections
    corners = band.get_paths()[0].vertices
    assert np.any(np.all(np.isclose(corners, [256 * 28, 0.47 + 0.037]), axis=1))
    assert np.any(np.all(np.isclose(corners, [256 * 28, 0.47 - 0.037]), axis=1))
    raw, smooth, predicted = ratio.lines
    ratios = _figures.column(records, "effective_sample_ratio")
    np.testing.assert_allclose(raw.get_ydata(), ratios)
    assert raw.get_alpha() < 0.5
    np.testing.assert_allclose(smooth.get_ydata(), viz.moving_average(ratios, 2))
    expected = viz.moving_average(_figures.column(records, "predicted_informative"), 2)
    np.testing.assert_allclose(predicted.get_ydata(), expected)
    np.testing.assert_allclose(reward.lines[0].get_ydata(), _figures.column(records, "reward"))
    tokens = [record["completion_tokens"] / 256 for record in records]
    np.testing.assert_allclose(length.lines[0].get_ydata(), tokens)


@pytest.mark.parametrize("num_rounds", [0, 1, 3])
def test_little_data_is_drawn_all_the_same(num_rounds, tmp_path):
    figure = _figures.training_curves(make_records(num_rounds))
    viz.save(figure, tmp_path / "few.png")
    assert is_png(tmp_path / "few.png")
    assert texts_of(figure.axes[0]) == ["nothing was logged"]
    assert (texts_of(figure.axes[1]) == ["nothing was logged"]) == (num_rounds == 0)


def test_a_run_gets_its_figures(tmp_path):
    records = make_records(20)
    paths = _figures.plot_run(records, {"test_accuracies": {"0": 0.1, "4": 0.2}}, tmp_path)
    assert [path.name for path in paths] == ["training_curves.png", "confusion.png"]
    assert all(is_png(path) for path in paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    first = paths[0].read_bytes()
    _figures.plot_run(records, {"test_accuracies": {"0": 0.1, "4": 0.2}}, tmp_path)
    assert paths[0].read_bytes() == first


def test_methods_without_states_get_no_confusion(tmp_path):
    for name, confusion in {"zeros": [[0] * 3] * 3, "none": None}.items():
        records = [record | {"confusion": confusion} for record in make_records(4)]
        (tmp_path / name).mkdir()
        paths = _figures.plot_run(records, {}, tmp_path / name)
        assert [path.name for path in paths] == ["training_curves.png"]


def test_no_state_is_shared():
    assert "pyplot" not in inspect.getsource(_figures)
    before = dict(matplotlib.rcParams)
    _figures.training_curves(make_records(5))
    assert dict(matplotlib.rcParams) == before


def test_levels_of_picks_and_predicted_rates_are_shown(tmp_path):
    levels = np.array([[0, 0, 1, -1], [0, 1, 1, -1], [1, 1, 1, -1]])
    records = make_records(3)
    for index in (0, 2):
        records[index]["predicted_success_rates"] = np.eye(10)[index].tolist()
    figure = _figures.prompts_over_rounds(levels, ["easy", "hard"], records, title="run")
    viz.save(figure, tmp_path / "prompts.png")
    picked, solved = figure.axes[:2]
    assert texts_of(picked.get_legend()) == ["hard", "easy"]
    lowest = picked.collections[0].get_paths()[0].vertices
    # The share of easy prompts falls from two of three to none; padding does not count.
    assert np.any(np.all(np.isclose(lowest, [0, 2 / 3]), axis=1))
    assert np.any(np.all(np.isclose(lowest, [2, 0]), axis=1))
    np.testing.assert_allclose(solved.collections[0].get_array().reshape(10, 2)[[0, 2]], [[1, 0], [0, 1]])
    empty = _figures.prompts_over_rounds(np.zeros((0, 0), int), [], [])
    assert texts_of(empty.axes[0]) == ["nothing was logged"]


def test_answers_are_green_where_they_are_correct():
    row = {
        "prompt": "1 + 1 >",
        "before": "3 carry 0",
        "before_is_correct": False,
        "after": "2 carry 0",
        "after_is_correct": True,
    }
    axes = _figures.examples([row, row], title="held-out").axes[0]
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert colors["2 carry 0"] != colors["3 carry 0"]
    assert len([text for text in axes.texts if text.get_text() == "1 + 1 >"]) == 2


def test_rasters_have_room_for_all_their_lines():
    row = {"before": "3", "before_is_correct": False, "after": "4", "after_is_correct": True}
    one, raster = row | {"prompt": "1 + 1 >"}, row | {"prompt": "\n".join(["..##"] * 12)}
    heights = [_figures.examples([first, one]).get_figheight() for first in (one, raster)]
    assert heights[1] - heights[0] == pytest.approx(11 * 0.15)
    figure = _figures.examples([raster, one, raster])
    figure.draw_without_rendering()
    boxes = [
        text.get_window_extent()
        for text in figure.axes[0].texts
        if text.get_text() in (one["prompt"], raster["prompt"])
    ]
    assert boxes[0].y0 >= boxes[1].y1
    assert boxes[1].y0 >= boxes[2].y1
