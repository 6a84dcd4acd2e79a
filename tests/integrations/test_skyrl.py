"""Runs of SkyRL's trainer: who is called when, for which prompts, and what is left behind.

`BasePPOExp.run` and the loop of `RayPPOTrainer` with its data loader, data set, dynamic sampling, evaluation,
callbacks and checkpoints are SkyRL's; models, inference engines and the generator are stubs, see skyrl_runs.py.
"""

import pathlib
import random
import sys

import numpy as np
import pytest

pytest.importorskip("skyrl")

from dps_jax import PromptSelector
from dps_jax.integrations import _versions, skyrl
from tests.integrations import skyrl_runs
from tests.integrations.skyrl_runs import GROUP_SIZE, make_config

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]
EXAMPLES = pathlib.Path(__file__).parents[2] / "experiments" / "integrations"


def chance(label, repetition, step):
    """Returns a reward of 0 or 1 that depends on its arguments alone."""
    return float(random.Random(f"{label}, {repetition}, {step}").random() < label / 40)


class Noted(PromptSelector):
    """A selector that notes what it selects."""

    events = ()

    def select(self, *args, **kwargs):
        state = self.state_dict()
        ids = super().select(*args, **kwargs)
        self.events.append(("select", ids.tolist(), state["in_flight"].shape[1], state["num_rounds"]))
        return ids


class Experiment(skyrl.SelectsPrompts, skyrl_runs.Experiment):
    method = "dps"

    def make_selector(self, num_prompts):
        selector = Noted(num_prompts, self.method, seed=3, group_size=GROUP_SIZE, device="cpu")
        selector.events = self.events
        return selector


def run(config, events, *, grade=chance, kind=Experiment, **options):
    experiment = type("Experiment", (kind,), options | {"events": events, "grade": staticmethod(grade)})(config)
    experiment.run()
    return experiment, experiment.train_dataset.selector


def of_kind(events, kind):
    return [event for event in events if event[0] == kind]


def check_same(mine, other):
    assert mine["leaves"]
    for name, value in mine.items():
        pairs = zip(value, other[name], strict=True) if name == "leaves" else [(value, other[name])]
        for found, expected in pairs:
            np.testing.assert_array_equal(found, expected)


def test_prompts_are_chosen_observed_and_trained_on(tmp_path):
    events = []
    experiment, selector = run(make_config(tmp_path), events, method="instructive")
    assert [event[0] for event in events] == ["select", "generate-train", "update"] * 6
    for number, (_, ids, num_in_flight, num_rounds) in enumerate(of_kind(events, "select")):
        assert len(set(ids)) == 4
        assert (num_in_flight, num_rounds) == (0, number)
        assert of_kind(events, "generate-train")[number][1] == np.repeat(ids, GROUP_SIZE).tolist()
    logs = experiment.trainer.tracker.logs
    assert len(logs) == 6
    for number, (_, entry) in enumerate(logs):
        ids = of_kind(events, "select")[number][1]
        means = [np.mean([chance(index, k, number + 1) for k in range(GROUP_SIZE)]) for index in ids]
        ratio = np.mean([0 < mean < 1 for mean in means])
        assert entry["dps/effective_sample_ratio"] == pytest.approx(ratio)
        assert 0 <= entry["dps/predicted_informative"] <= 1
    assert selector.metrics()["num_observed"] == 24
    assert isinstance(experiment.trainer.generator, sys.modules["skyrl.train.generators.base"].GeneratorInterface)


def test_the_selector_that_is_built(tmp_path):
    class Default(skyrl.SelectsPrompts, skyrl_runs.Experiment):
        pass

    _, selector = run(make_config(tmp_path, max_steps=2), [], kind=Default)
    assert selector.method == "instructive"
    assert selector.metrics()["num_observed"] == 8


def test_evaluation_is_not_observed(tmp_path):
    events = []
    config = make_config(tmp_path, **{"trainer.eval_interval": 2, "trainer.eval_before_train": "true"})
    _, selector = run(config, events)
    assert [event[1] for event in of_kind(events, "generate-eval")[:3]] == [
        list(range(16)),
        list(range(16, 32)),
        list(range(32, 40)),
    ]
    assert len(of_kind(events, "generate-eval")) == 4 * 3
    assert selector.metrics()["num_observed"] == 24
    assert len(of_kind(events, "select")) == 6


def test_groups_that_dynamic_sampling_drops_are_observed(tmp_path):
    # "replace" ends in an assertion of SkyRL 0.3.0 as soon as a group is replaced.
    events = []
    options = {
        "trainer.algorithm.dynamic_sampling.type": "filter",
        "trainer.algorithm.dynamic_sampling.max_sample_batches": 9,
    }
    _, selector = run(make_config(tmp_path, **options), events)
    num_batches = len(of_kind(events, "generate-train"))
    assert num_batches > 6
    assert len(of_kind(events, "update")) == 6
    assert selector.metrics()["num_observed"] == 4 * num_batches
    step, chosen = 0, []
    for event in events:
        if event[0] == "select":
            assert event[2:] == (len(chosen), step)
            chosen += event[1]
            assert len(set(chosen)) == len(chosen)  # in a step
        elif event[0] == "update":
            step, chosen = step + 1, []


def test_rewards_may_be_missing(tmp_path):
    def grade(label, repetition, step):
        # SkyRL itself takes no None: a metric may be missing, or NaN.
        accuracy = {0: None, 1: float("nan")}.get(repetition, float(repetition == 2)) if label % 2 else None
        return {"reward": 0.0} if accuracy is None else {"reward": 0.0, "accuracy": accuracy}

    events = []
    _, selector = run(make_config(tmp_path), events, grade=grade, outcome="accuracy")
    odd = [index for event in of_kind(events, "select") for index in event[1] if index % 2]
    assert selector.metrics()["num_observed"] == len(odd) > 0
    assert [event[2] for event in of_kind(events, "select")] == [0] * 6
    assert selector.metrics()["effective_sample_ratio"] == 1.0


def test_rewards_may_all_be_missing(tmp_path):
    events = []
    run(make_config(tmp_path), events, grade=lambda *ids: float("nan"))
    assert [event[2:] for event in of_kind(events, "select")] == [(0, 0)] * 6  # never a round


def test_a_threshold_and_rewards_per_token(tmp_path):
    states = []
    for name, grade, threshold in (
        ("plain", chance, None),
        ("shaped", lambda *ids: 0.2 + 0.6 * chance(*ids), 0.5),
        ("tokens", lambda *ids: [chance(*ids)], None),
    ):
        states.append(run(make_config(tmp_path / name), [], grade=grade, threshold=threshold)[1].state_dict())
    check_same(states[1], states[0])
    check_same(states[2], states[0])


def test_of_several_turns_the_last_counts(tmp_path):
    events = []
    config = make_config(tmp_path, **{"generator.step_wise_trajectories": "true"})
    _, selector = run(config, events, turns=2)
    assert selector.metrics()["num_observed"] == 24
    expected = run(make_config(tmp_path / "one"), [])[1]
    check_same(selector.state_dict(), expected.state_dict())


@pytest.mark.parametrize(
    ("grade", "outcome", "message"),
    [
        (lambda *ids: 0.3, None, r"rewards: expected rewards of 0 \(wrong\) and 1 \(correct\), got 0.3"),
        (lambda *ids: {"reward": 1.0, "right": 1}, "accuracy", "outcome: .* one of reward, right, got 'accuracy'"),
        (lambda *ids: {"reward": 1.0, "right": 2}, "right", r"right: expected rewards of 0"),
    ],
)
def test_bad_rewards_are_refused(grade, outcome, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(make_config(tmp_path), [], grade=grade, outcome=outcome)


# Of forty prompts an epoch has ten steps; of twelve the checkpoint is at the end of an epoch of three.
@pytest.mark.parametrize("num_prompts", [40, 12])
def test_resumed_runs_equal_uninterrupted_ones(num_prompts, tmp_path):
    whole, parts = [], []
    _, expected = run(make_config(tmp_path / "whole", num_prompts), whole)
    run(make_config(tmp_path / "parts", num_prompts, max_steps=3), parts)
    _, resumed = run(make_config(tmp_path / "parts"), parts)
    assert parts == whole
    check_same(resumed.state_dict(), expected.state_dict())
    from_path = {
        "trainer.resume_mode": "from_path",
        "trainer.resume_path": tmp_path / "parts/checkpoints/global_step_4",
    }
    again = []
    _, resumed = run(make_config(tmp_path / "parts", **from_path), again)
    assert again == whole[-6:]
    check_same(resumed.state_dict(), expected.state_dict())


def test_checkpoints_that_do_not_belong_are_refused(tmp_path):
    run(make_config(tmp_path, max_steps=2), [])
    path = tmp_path / "prompts.jsonl"
    text = path.read_text()
    path.write_text("".join(reversed(text.splitlines(keepends=True))))
    with pytest.raises(ValueError, match="other rows or in another order"):
        run(make_config(tmp_path), [])
    path.write_text(text)
    (tmp_path / "checkpoints/global_step_2/dps_jax_selector.npz").unlink()
    with pytest.raises(ValueError, match=r"expected dps_jax_selector.npz and dps_jax_selector.json beside"):
        run(make_config(tmp_path), [])


def test_bad_experiments_are_refused(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    with pytest.raises(ValueError, match=r"data.dataloader.num_workers: expected 0, .* got 8"):
        run(make_config(tmp_path, **{"data.dataloader.num_workers": 8}), [])
    with pytest.raises(ValueError, match="threshold"):
        run(config, [], threshold="a")
    with pytest.raises(ValueError, match="selector: expected one over 40 prompts"):
        run(config, [], make_selector=lambda self, num_prompts: PromptSelector(41, "uniform"))
    kind = type("FullyAsyncRayPPOTrainer", (skyrl_runs.Trainer,), {})
    with pytest.raises(ValueError, match=r"trainer: expected a RayPPOTrainer, got FullyAsync"):
        run(config, [], trainer_kind=kind)
    plain = lambda self, *parts: skyrl_runs.Grades(chance, [])
    with pytest.raises(ValueError, match="trainer: expected the data set and the generator"):
        run(config, [], get_generator=plain)
    found = _versions.metadata.version
    for release in ("0.2.0", "0.4.0"):
        monkeypatch.setattr(_versions.metadata, "version", lambda name, release=release: release)
        with pytest.raises(ValueError, match=f"skyrl: expected a release from 0.3 on and before 0.4, got {release}"):
            run(config, [])
    monkeypatch.setattr(_versions.metadata, "version", found)


def test_the_example_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = __import__("skyrl_simulated")
    for method in ("instructive", "uniform"):
        ratios = example.main(**vars(example.parsed(["--steps", "6", "--method", method])))
        assert len(ratios) == 6
    assert "partially solved" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        example.parsed(["--help"])
