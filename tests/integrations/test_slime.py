"""Rollouts of slime: who is called when, for which prompts, and what is left behind.

slime's own data source and its own rollout function run where slime can be imported (as with a clone of it on
PYTHONPATH), with a simulated engine in them; a stand-in of a hundred lines elsewhere.
"""

import copy
import pathlib
import re
import sys

import numpy as np
import pytest

from dps_jax.integrations import _versions, slime
from tests.integrations import slime_runs
from tests.integrations.slime_runs import GROUP_SIZE, RUN, chance, make_args

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]
EXAMPLES = pathlib.Path(__file__).parents[2] / "experiments" / "integrations"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(slime_runs.RUN, "grade", chance)
    monkeypatch.setattr(slime_runs.RUN, "generate", None)
    monkeypatch.setattr(slime_runs.RUN, "events", [])


def make_source(args):
    source = slime.DataSource(args)
    select = source.selector.select

    def noted(batch_size, *rest, **named):
        state = source.selector.state_dict()
        ids = select(batch_size, *rest, **named)
        RUN.events.append(("select", ids.tolist(), state["in_flight"].shape[1], state["num_rounds"]))
        return ids

    source.selector.select = noted
    return source


def train(args, first=0, last=6):
    """Runs rollouts as slime's train.py does."""
    source = make_source(args)
    generate_rollout = slime_runs.rollouts().generate_rollout
    source.load(first - 1)
    batches = []
    for rollout_id in range(first, last):
        batches.append(generate_rollout(args, rollout_id, source).samples)
        source.save(rollout_id)
    return source, batches


def prompts_of(groups):
    return [int(slime_runs.flat(group)[0].label) for group in groups]


def of_kind(kind):
    return [event for event in RUN.events if event[0] == kind]


def check_same(mine, other):
    assert mine["leaves"]
    for name, value in mine.items():
        pairs = zip(value, other[name], strict=True) if name == "leaves" else [(value, other[name])]
        for found, expected in pairs:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_prompts_are_chosen_observed_and_trained_on(is_shuffled, tmp_path):
    source, batches = train(make_args(tmp_path, rollout_shuffle=is_shuffled, dps_method=None))
    assert [event[0] for event in RUN.events] == ["select", "observe"] * 6
    for number, batch in enumerate(batches):
        _, ids, num_in_flight, num_rounds = of_kind("select")[number]
        assert (num_in_flight, num_rounds) == (0, number)
        assert prompts_of(batch) == ids
        assert [row[0][0] for row in of_kind("observe")[number][1]] == ids
        assert all(len({sample.label for sample in group}) == 1 for group in batch)
    samples = [sample for batch in batches for group in batch for sample in group]
    assert [sample.index for sample in samples] == list(range(6 * 4 * GROUP_SIZE))  # numbered by slime
    assert samples[0].prompt == f"{samples[0].label} + 1 ="
    assert source.selector.metrics()["num_observed"] == 24
    assert source.selector.method == "instructive"
    assert len(source) == 40
    assert source.get_buffer_length() == 0


def test_an_epoch_ends_within_a_batch(tmp_path):
    source, batches = train(make_args(tmp_path, num_prompts=10))
    assert source.epoch_id == 2
    for batch in batches:
        assert len(set(prompts_of(batch))) == 4
    assert [len(event[1]) for event in of_kind("select")] == [4, 4, 2, 2, 4, 4, 4]


def test_groups_that_are_dropped_are_observed(tmp_path):
    args = make_args(tmp_path, dynamic_sampling_filter_path="tests.integrations.slime_runs.keeps_mixed")
    source, batches = train(args)
    seen = [row for event in of_kind("observe") for row in event[1]]
    kept = [group for batch in batches for group in batch]
    assert len(of_kind("select")) > 6
    assert len(of_kind("observe")) == 6
    assert len(kept) == 24 < len(seen)
    assert any(len({reward for _, reward in row}) == 1 for row in seen)
    assert source.selector.metrics()["num_observed"] == sum(
        len({row[0][0] for row in event[1]}) for event in of_kind("observe")
    )
    # Those that were handed out and thrown away may be chosen again at once.
    assert source.selector.metrics()["num_in_flight"] == 0


def test_partial_rollouts_go_out_first(tmp_path):
    args = make_args(tmp_path, partial_rollout=True, over_sampling_batch_size=8)
    source, _ = train(args, last=1)
    in_buffer = [int(slime_runs.flat(group)[0].label) for group in source.buffer]
    assert in_buffer
    assert set(in_buffer) <= set(source.selector.state_dict()["in_flight"][0].tolist())
    num_selects = len(of_kind("select"))
    groups = source.get_samples(len(in_buffer) + 1)
    assert prompts_of(groups)[:-1] == in_buffer
    assert len(of_kind("select")) == num_selects + 1
    assert of_kind("select")[-1][1] == prompts_of(groups)[-1:]
    # They are not saved by slime: after a restart their prompts are free.
    args = copy.copy(args)
    args.load = args.save
    other = make_source(args)
    other.load(0)
    assert other.selector.metrics()["num_in_flight"] == 0


def test_rewards_may_be_missing(tmp_path):
    def generate(sample):
        sample.response, sample.status = "2", type(sample).Status.COMPLETED
        if sample.index % (4 * GROUP_SIZE) == GROUP_SIZE:  # one of the second prompt
            sample.status = type(sample).Status.ABORTED
        return sample

    RUN.generate = generate
    # None of the first prompt, all but one of the second, all but one of the third.
    rewards = {0: float("nan"), 1: None, 2: float("nan"), 3: None, 8: None, 9: None, 10: float("nan")}
    RUN.grade = lambda sample: rewards.get(sample.index % 16, float(sample.index % 2))
    source, _ = train(make_args(tmp_path))
    assert len(of_kind("observe")) == 6
    assert source.selector.metrics()["num_observed"] == 18
    assert source.selector.metrics()["num_in_flight"] == 0


def test_rewards_may_all_be_missing(tmp_path):
    RUN.grade = lambda sample: None if sample.index % 2 else float("nan")
    source, _ = train(make_args(tmp_path))
    assert [event[3] for event in of_kind("select")] == [0] * 6  # not a round
    assert source.selector.metrics()["num_in_flight"] == 0


@pytest.mark.parametrize("by", ["dps_outcome", "reward_key"])
def test_a_named_outcome_and_a_threshold(by, tmp_path):
    RUN.grade = lambda sample: {"accuracy": 0.2 + 0.6 * chance(sample), "format": 0.1}
    found, _ = train(make_args(tmp_path / by, dps_threshold=0.5, **{by: "accuracy"}))
    RUN.grade = chance
    expected, _ = train(make_args(tmp_path / "plain"))
    check_same(found.selector.state_dict(), expected.selector.state_dict())


def test_a_completion_may_become_several_samples(tmp_path):
    def generate(sample):
        sample.response, sample.status = "2", type(sample).Status.COMPLETED
        parts = [sample, copy.deepcopy(sample)]
        parts[0].reward = 0.5
        for part in parts:
            part.rollout_id = sample.index
        return parts

    RUN.generate = generate
    source, _ = train(make_args(tmp_path))
    assert source.selector.metrics()["num_observed"] == 24


@pytest.mark.parametrize(
    ("grade", "options", "message"),
    [
        (lambda sample: 0.3, {}, r"reward: expected rewards of 0 \(wrong\) and 1 \(correct\), got 0.3"),
        (lambda sample: {"a": 1, "b": 0}, {}, "dps_outcome: .* got None for a reward of a, b"),
        (lambda sample: {"a": 1}, {"dps_outcome": "c"}, "dps_outcome: .* got 'c' for a reward of a"),
        (lambda sample: 1.0, {"dps_outcome": "c"}, "dps_outcome: .* got 'c' for a reward of 1.0"),
    ],
)
def test_bad_rewards_are_refused(grade, options, message, tmp_path):
    RUN.grade = grade
    with pytest.raises(ValueError, match=message):
        train(make_args(tmp_path, **options))


@pytest.mark.parametrize("options", [{}, {"dynamic_sampling_filter_path": "tests.integrations.slime_runs.keeps_mixed"}])
def test_resumed_runs_equal_uninterrupted_ones(options, tmp_path):
    whole, batches = train(make_args(tmp_path / "whole", rollout_shuffle=True, **options))
    args = make_args(tmp_path / "parts", rollout_shuffle=True, **options)
    _, first = train(args, last=3)
    args = make_args(tmp_path / "parts", rollout_shuffle=True, load=args.save, **options)
    resumed, second = train(args, first=3)
    assert [prompts_of(batch) for batch in first + second] == [prompts_of(batch) for batch in batches]
    indices = lambda batches: [sample.index for batch in batches for group in batch for sample in group]
    assert indices(first + second) == indices(batches)
    check_same(resumed.selector.state_dict(), whole.selector.state_dict())


def test_checkpoints_that_do_not_belong_are_refused(tmp_path):
    args = make_args(tmp_path)
    train(args, last=2)
    args.load = args.save
    make_source(args).load(7)  # slime saved nothing either: a start
    pathlib.Path(args.save, "rollout", "dps_jax_0", "dps_jax_selector.npz").unlink()
    with pytest.raises(ValueError, match=r"expected dps_jax_selector.npz and dps_jax_selector.json beside"):
        make_source(args).load(0)
    path = pathlib.Path(args.prompt_data)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match="other rows or in another order"):
        make_source(args).load(1)


def test_options_are_used(tmp_path):
    source = slime.DataSource(make_args(tmp_path, dps_method="dps", dps_options={"decay": 0.9}))
    assert source.selector.method == "dps"
    assert slime.DataSource(make_args(tmp_path, dps_method="uniform")).selector.method == "uniform"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dps_methd": "dps"}, "custom_config_path: expected options among dps_method, .*, got dps_methd"),
        ({"dps_method": "best"}, "method: expected"),
        ({"dps_options": {"speed": 3}}, "speed"),
        ({"dps_options": 3}, "dps_options: expected names of options"),
        ({"dps_threshold": "a"}, "threshold"),
        ({"prompt_data": None}, "prompt_data: expected a file of prompts"),
        ({"rollout_global_dataset": False}, "prompt_data: expected a file of prompts"),
        ({"rollout_all_samples_process_path": None}, "rollout_all_samples_process_path: expected dps_jax"),
        ({"over_sampling_batch_size": 41}, "over_sampling_batch_size: expected at most 40"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        slime.DataSource(make_args(tmp_path, **options))


def test_other_data_sources_and_lost_numbers_are_refused(tmp_path):
    args = make_args(tmp_path)
    with pytest.raises(ValueError, match="get_samples: expected the method of a DataSource"):
        slime.observe(args, [], [].append)
    source = slime.DataSource(args)
    groups = source.get_samples(1)
    groups[0][0].metadata = {}
    with pytest.raises(ValueError, match="metadata: expected the entry dps_jax_id"):
        slime.observe(args, groups, source.get_samples)


def test_other_releases_are_refused(tmp_path, monkeypatch):
    for found in ("0.2.4", "0.4.0"):
        monkeypatch.setattr(_versions.metadata, "version", lambda name, found=found: found)
        with pytest.raises(ValueError, match=f"slime: .* got {re.escape(found)}; install it from a clone"):
            slime.DataSource(make_args(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(slime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"slime: expected it to be installed .*; install it from a clone"):
        slime.DataSource(make_args(tmp_path))


def test_the_example_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    sys.modules.pop("slime_simulated", None)
    example = __import__("slime_simulated")
    for method in ("instructive", "uniform"):
        ratios = example.main(**vars(example.parsed(["--rollouts", "6", "--method", method])))
        assert len(ratios) == 6
    assert "partially solved" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        example.parsed(["--help"])


def test_the_options_of_the_documentation_are_those_that_are_read():
    assert all(name in slime.__doc__ for name in slime._OPTIONS)
