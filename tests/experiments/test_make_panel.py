"""The panel of the main job, at sizes of seconds."""

import importlib

import numpy as np
import pytest
import tyro

from dps_jax.traces import read_trace
from dps_jax.traces.panel import read_panel
from dps_jax.training import trainer


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        yield importlib.import_module("make_panel")


def test_defaults_and_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(script.Config, args=["--help"], description=script.__doc__)
    assert stop.value.code == 0
    assert "held out" in capsys.readouterr().out
    assert tyro.cli(script.Config, args=[]) == script.Config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ("best-0",)}, "runs: expected one of 'arcsine', .* got 'best'"),
        ({"runs": ("dps",)}, "runs: expected "),
        ({"period": 0}, "period: expected an integer >= 1, got 0"),
        ({"period": 3000}, "period: expected at most num_prompts = 2400, got 3000"),
    ],
)
def test_bad_options(script, options, message):
    with pytest.raises(ValueError, match=message):
        script.Config(**options)


@pytest.mark.slow
def test_panel_samples_everybody_and_trains_as_the_trainer_does(script, tmp_path):
    sizes = {"num_prompts": 10, "num_rounds": 4, "period": 3, "batch_size": 2, "group_size": 4}
    config = script.Config(runs=("dps-1",), out_dir=tmp_path / "panel", **sizes)
    found = script.main(config)
    panel = read_panel(tmp_path / "panel" / "dps-1.npz")
    assert found["dps-1"]["groups_swept"] == 4 + 3 + 3 + 4
    for index in range(4):
        np.testing.assert_array_equal(np.nonzero(panel.swept[index] >= 0)[0], np.arange(index % 3, 10, 3))
    train_config = script.dataclasses.replace(config.train_config("dps-1"), out_dir=tmp_path / "runs", eval_samples=1)
    trainer.train(script.dataclasses.replace(train_config, task=script.configs.TaskConfig(num_train=10, num_test=2)))
    recorded = read_trace(tmp_path / "runs" / "dps-1" / "trace.npz")
    order = np.lexsort((recorded.prompt_ids, recorded.rounds))
    for name in ("rounds", "prompt_ids", "successes", "counts"):
        np.testing.assert_array_equal(getattr(panel.training_trace(), name), getattr(recorded, name)[order])
    # What is there is kept.
    before = (tmp_path / "panel" / "dps-1.npz").stat().st_mtime_ns
    assert script.main(config) == found
    assert (tmp_path / "panel" / "dps-1.npz").stat().st_mtime_ns == before
