"""The pictures of the README: the animation, and the figure of the first screen."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
from PIL import Image

from dps_jax.training._curves import cost_to_reach


@pytest.fixture
def script(monkeypatch, request):
    """Returns a function that imports a script as Python would run it."""
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    return importlib.import_module


def row(mix, method, slope, interval, num_prompts=100):
    """Returns a cell of the arena whose accuracy rises by a slope per 1,000 rollouts."""
    rollouts = np.arange(11) * 1000.0
    return {
        "mix": mix,
        "num_prompts": num_prompts,
        "method": method,
        "seeds": [1, 2],
        "area": 5 * slope,
        "rollouts": rollouts.tolist(),
        "accuracy": (slope * np.arange(11)).tolist(),
        "effective_sample_ratio": 0.25,
        "ratio_to_uniform": 0.04 / slope if slope >= 0.04 else None,
        "ratio_interval": interval,
    }


def cells(mix, slope, interval):
    """Returns a mix in which `instructive` has a slope, and the largest N decides."""
    slopes = {"uniform": 0.04, "dps": 0.05, "dps:decay=0.9": 0.06, "dps:decay=1.0": 0.03, "instructive": slope}
    rows = [row(mix, method, value, interval) for method, value in slopes.items()]
    return rows + [row(mix, method, 0.01, [0.5, 0.5], num_prompts=50) for method in slopes]


def test_the_first_screen_shows_gains_and_where_there_is_none(script):
    module = script("_first_screen")
    found = [*cells("rich", 0.04, [0.9, None]), *cells("lean", 0.08, [0.4, 0.6]), *cells("typical", 0.05, [0.7, 0.9])]
    found += cells("by-level", 0.09, [0.3, 0.5])
    figure = module.draw({"cells": found})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "by-level: 25% informative\n44% of uniform's rollouts",
        "lean: 25% informative\n50% of uniform's rollouts",
        "rich: 25% informative\nselection does not pay",
    ]
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert [name for name in lines if not name.startswith("_")] == [
        *("uniform", "dps", "dps at its best decay", "instructive"),
    ]
    np.testing.assert_allclose(lines["dps at its best decay"].get_ydata(), 0.06 * np.arange(11))
    np.testing.assert_allclose(lines["instructive"].get_xdata(), np.arange(11))
    # The last three evaluations of uniform selection.
    target = np.mean([0.32, 0.36, 0.4])
    cost = cost_to_reach(np.arange(11) * 1000.0, 0.04 * np.arange(11), target - 1e-9)
    place = module.places_of(found)[1]
    expected = (target, 0.5 * cost, 0.4 * cost, 0.6 * cost)
    np.testing.assert_allclose(module.interval(place.rows["instructive"], place.rows["uniform"]), expected)
    bars = [line for line in figure.axes[1].lines if line.get_linewidth() == 4.5]
    np.testing.assert_allclose(bars[-1].get_xdata(), [0.4 * cost / 1000, 0.6 * cost / 1000])
    # An end that was not reached is the end of the axis.
    bars = [line for line in figure.axes[2].lines if line.get_linewidth() == 4.5]
    assert bars[-1].get_xdata()[1] == 10
    assert module.draw({"cells": [cell for cell in found if cell["method"] != "uniform"]}) is None


def test_the_animation_moves_beliefs(script, tmp_path):
    module, update_docs = script("animate_beliefs"), script("update_docs")
    sizes = {"num_prompts": 40, "num_rounds": 3, "batch_size": 4, "method": "dps", "seconds": 3.0}
    config = module.Config(**sizes, out_dir=tmp_path / "runs")
    results = module.main(config)
    with Image.open(config.out_dir / "beliefs.gif") as image:
        assert image.size == (700, 390)
        assert 3 <= image.n_frames <= 6
        durations = []
        for frame in range(image.n_frames):
            image.seek(frame)
            durations.append(image.info["duration"])
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert sum(durations) == pytest.approx(3000 - 250, abs=60)
    run = module.simulate(config, "dps")
    assert run.success_rate.shape == run.p_informative.shape == (3, 40)
    assert results["effective_sample_ratio"]["dps"] == pytest.approx(run.is_informative.mean())
    # Nothing was visited before the first round.
    np.testing.assert_allclose(run.p_informative[0], 1 / 3, atol=1e-6)

    for folder in ("docs/results", "docs/figures"):
        (tmp_path / folder).mkdir(parents=True)
    missing = {field.name: tmp_path / "missing" for field in dataclasses.fields(update_docs.Config)}
    update_docs.main(update_docs.Config(**missing | {"animate_beliefs": config.out_dir, "root": tmp_path}))
    written = (tmp_path / "docs" / "figures" / "beliefs.gif").read_bytes()
    assert written == (config.out_dir / "beliefs.gif").read_bytes()
    assert json.loads((tmp_path / "docs" / "results" / "animate_beliefs.json").read_text()) == results
    assert module.Config().out_dir == update_docs.Config().animate_beliefs


def test_points_go_on_a_line_from_round_to_round(script):
    module = script("animate_beliefs")
    from matplotlib.figure import Figure

    rates, informative = np.array([[0.2, 0.4], [0.6, 0.4]]), np.array([[0.5, 0.5], [0.9, 0.1]])
    run = module.Run(rates, informative, np.array([[1], [0]]), np.array([[True], [False]]))
    scene = module.Scene(Figure().subplots(), run, 8)
    shift = scene._shift
    for time, part in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.5, 1.0)):
        scene.show(time)
        expected = np.stack(
            [(1 - part) * rates[0] + part * rates[1], (1 - part) * informative[0] + part * informative[1]]
        )
        np.testing.assert_allclose(scene._all.get_data(), expected + shift)
        pick, points = (1, scene._hit) if time < 1 else (0, scene._missed)
        np.testing.assert_allclose(np.ravel(points.get_data()), (expected + shift)[:, pick])
    assert scene._hit.get_xdata().size == 0


def test_the_animation_refuses_what_cannot_be(script):
    module = script("animate_beliefs")
    with pytest.raises(ValueError, match="method: expected one of"):
        module.Config(method="crystal")
    with pytest.raises(ValueError, match="regime: expected one of"):
        module.Config(regime="easy")
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1 and <= 10, got 32"):
        module.Config(num_prompts=10)
    with pytest.raises(ValueError, match=r"seconds: expected a finite number > 1\.5, got 1"):
        module.Config(seconds=1)
