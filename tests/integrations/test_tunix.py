"""Real runs of tunix's learners with a tiny model: who is called when, for which prompts, and what is left behind."""

import importlib
import itertools
import shutil
from functools import partial

import numpy as np
import pytest

from dps_jax import PromptSelector
from dps_jax.integrations import _versions
from dps_jax.integrations.tunix import IDS, PromptStream
from tests.integrations.tunix_learners import (
    GROUP_SIZE,
    is_even,
    make_learner,
    make_rows,
    make_selector,
    make_stream,
    of_kind,
    run,
)

# tunix, flax and orbax warn of their own deprecations.
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

HEARD, TRAINED, TRAINED_TWICE = ["rewards", "observe"], ["train", "update"], ["train", "train", "update"]
# Options of the learner, prompts of a batch, what happens between two selects, passes over a batch, batches.
CASES = {
    "GRPO": ({}, 2, HEARD + TRAINED, 1, 6),
    "DAPO": ({"kind": "DAPO"}, 2, HEARD + TRAINED, 1, 6),
    "Dr. GRPO": ({"kind": "DrGRPO"}, 2, HEARD + TRAINED, 1, 6),
    "micro-batches": ({"mini_batch_size": 4, "train_micro_batch_size": 2}, 4, HEARD * 2 + TRAINED_TWICE, 1, 6),
    "merged": (
        {"mini_batch_size": 4, "train_micro_batch_size": 2, "rollout_micro_batch_size": 4},
        *(4, HEARD + TRAINED_TWICE, 1, 6),
    ),
    "mini-batches": ({"mini_batch_size": 2}, 4, (HEARD + TRAINED) * 2, 1, 3),
    "iterations": ({"num_iterations": 2}, 2, HEARD + TRAINED * 2, 2, 3),
    "DAPO, all at once": (
        {"kind": "DAPO", "mini_batch_size": 4, "train_micro_batch_size": 2, "num_iterations": 2},
        *(4, HEARD * 2 + TRAINED_TWICE * 2, 2, 3),
    ),
    "apart": ({"is_apart": True}, 2, HEARD + TRAINED, 1, 6),
}


def flat(events):
    """Returns the prompts of events, one after another."""
    return [row for event in events for row in event[1]]


def check_batches(events, batch_size, happens, passes=1):
    """Checks every batch: the order of events, its prompts, and that no others were in flight."""
    starts = [position for position, event in enumerate(events) if event[0] == "select"] + [len(events)]
    assert starts[0] == 0
    for number, (first, last) in enumerate(itertools.pairwise(starts)):
        (_, ids, num_in_flight, num_rounds, _), *others = events[first:last]
        assert (len(ids), num_in_flight, num_rounds) == (batch_size, batch_size, number)
        assert [event[0] for event in others] == happens
        rows = np.repeat(ids, GROUP_SIZE).tolist()
        for kind in ("rewards", "observe"):
            assert flat(of_kind(others, kind)) == rows
        assert flat(of_kind(others, "train")) == rows * passes
    return len(starts) - 1


def ratios(events):
    """Returns the effective sample ratio of every batch of two prompts."""
    groups = [np.reshape(event[2], (-1, GROUP_SIZE)).mean(1) for event in of_kind(events, "observe")]
    return [np.mean((group > 0) & (group < 1)) for group in groups]


@pytest.mark.parametrize("case", CASES)
def test_prompts_are_chosen_observed_and_trained_on(case):
    options, batch_size, happens, passes, num_batches = CASES[case]
    events = []
    _, stream = run(events, make_stream(events, batch_size=batch_size), **options)
    assert check_batches(events, batch_size, happens, passes) == num_batches
    assert [event[1] for event in of_kind(events, "update")] == list(range(1, 7))
    assert stream.selector.metrics()["num_pending"] > 0  # of the last batch
    assert 0 < sum(sum(event[2]) for event in of_kind(events, "observe")) < 6 * 2 * GROUP_SIZE


def test_sampling_apart_with_micro_batches():
    events = []
    run(events, make_stream(events, batch_size=4), is_apart=True, mini_batch_size=4, train_micro_batch_size=2)
    for number, event in enumerate(of_kind(events, "select")):
        assert event[2:4] == (4, number)
    assert len(of_kind(events, "observe")) == 12
    assert flat(of_kind(events, "observe")) == np.repeat(flat(of_kind(events, "select")), GROUP_SIZE).tolist()


def test_the_log_has_figures_of_the_selector():
    events = []
    learner, _ = run(events)
    name = "dps/effective_sample_ratio"
    found = [value for log in learner.logged for value in log.metrics.get(name, ([],))[0]]
    np.testing.assert_allclose(found, [0, *ratios(events)[:-1]])
    assert sum("rewards/is_even" in log.metrics for log in learner.logged) == 6  # by the name of the function


def test_rewards_may_be_missing():
    def partly_missing(prompts, **kwargs):
        # All of the first prompt's, and one of the second's.
        return [None, float("nan"), None, None, None, 1.0, 0.0, 1.0]

    events = []
    _, stream = run(events, reward_fn=partly_missing)
    selects, observed = of_kind(events, "select"), of_kind(events, "observe")
    assert len(selects) == len(observed) == 6
    for (_, ids, num_in_flight, *_), (_, rows, is_correct) in zip(selects, observed, strict=True):
        assert num_in_flight == 2  # the first prompt of the batch before was released
        assert rows == [ids[1]] * 3
        assert is_correct == [True, False, True]
    stream.selector.commit()
    assert stream.selector.metrics()["num_observed"] == 6
    assert stream.selector.metrics()["num_in_flight"] == 0


def test_shaped_rewards_with_a_threshold():
    def closeness(completions, **kwargs):
        return np.array([0.7 if place % 2 else 0.69 for place in range(len(completions))])

    events = []
    run(events, reward_fn=closeness, threshold=0.7, others=[is_even])
    assert [event[2] for event in of_kind(events, "observe")] == [[False, True] * GROUP_SIZE] * 6


def test_rewards_that_are_no_outcomes_end_the_run():
    def shaped(completions, **kwargs):
        return [0.5 for _ in completions]

    with pytest.raises(ValueError, match=r"shaped: expected rewards of 0 \(wrong\) and 1 \(correct\), got 0.5"):
        run([], reward_fn=shaped)


def test_evaluation_is_not_observed():
    events, rows = [], make_rows()[:4]
    columns = {name: np.array([row[name] for row in rows]) for name in ("prompts", "answer", "index")}
    columns["index"] += 1000
    learner, _ = run(events, eval_ds=[columns], eval_every_n_steps=2)
    in_evaluation = [event for event in events if event[0] == "rewards" and event[2] == "eval"]
    assert [event[1] for event in in_evaluation] == [np.repeat(columns["index"], GROUP_SIZE).tolist()] * 3
    assert check_batches([event for event in events if event not in in_evaluation], 2, HEARD + TRAINED) == 6
    assert any("rewards/is_even" in log.metrics for log in learner.logged if log.mode == "eval")
    assert not any("dps/num_rounds" in log.metrics for log in learner.logged if log.mode == "eval")


def of_selects(events):
    """Returns the prompts and the predictions of every select."""
    return [(event[1], event[4]) for event in of_kind(events, "select")]


def weights(learner):
    nnx, jax = importlib.import_module("flax.nnx"), importlib.import_module("jax")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(learner.rl_cluster.actor_trainer.model))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of a run of six steps with micro-batches, its events, learner and selector."""
    folder, events = tmp_path_factory.mktemp("whole"), []
    learner, stream = run(events, make_stream(events, batch_size=4, num_batches=6), folder=folder, **MICRO)
    return folder, events, learner, stream


MICRO = {"mini_batch_size": 4, "train_micro_batch_size": 2}


def up_to_step_3(whole, folder):
    """Returns a copy of the folder of a run, as it was after its checkpoint at step 3."""
    for name in ("actor", "dps_jax"):
        shutil.copytree(whole[0] / name / "3", folder / name / "3")
    return folder


def test_three_steps_and_three_equal_six(whole, tmp_path):
    folder, events, learner, stream = whole
    assert sorted(path.name for path in (folder / "dps_jax").iterdir()) == ["1", "3", "6"]  # orbax saves the first step
    # A run of three steps, then another learner, stream and selector.
    first, later = [], []
    run(first, make_stream(first, batch_size=4), folder=tmp_path, max_steps=3, **MICRO)
    assert of_selects(first) == of_selects(events)[:3]
    # Another seed, which the state replaces; as many batches are left as the whole run has.
    fresh = make_stream(later, make_selector(later, seed=9), batch_size=4, num_batches=6)
    resumed, _ = run(later, fresh, folder=tmp_path, max_steps=100, **MICRO)
    assert of_selects(later) == of_selects(events)[3:]
    assert later[1:] == events[-len(later) + 1 :]  # the first one has the number of prompts in flight, too
    for selector in (stream.selector, fresh.selector):
        selector.commit()
    for name, value in stream.selector.predict().items():
        np.testing.assert_array_equal(fresh.selector.predict()[name], value)
    assert fresh.selector.state_dict()["num_selects"] == 6  # none while tunix skipped batches
    for mine, theirs in zip(weights(learner), weights(resumed), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_killed_run_goes_on_from_its_last_checkpoint(whole, tmp_path):
    later = []
    fresh = make_stream(later, make_selector(later, seed=9), batch_size=4)
    run(later, fresh, folder=up_to_step_3(whole, tmp_path), **MICRO)
    assert of_selects(later) == of_selects(whole[1])[3:]


@pytest.mark.parametrize("options", [{"num_iterations": 2}, {"mini_batch_size": 2}], ids=str)
def test_a_checkpoint_within_a_batch_continues_with_a_new_one(options, tmp_path):
    batch_size = 2 if "num_iterations" in options else 4
    first, later = [], []
    run(first, make_stream(first, batch_size=batch_size), folder=tmp_path, max_steps=4, **options)
    shutil.rmtree(tmp_path / "actor" / "4")
    _, stream = run(later, make_stream(later, batch_size=batch_size), folder=tmp_path, **options)
    assert [event[1] for event in of_kind(later, "update")] == [4, 5, 6, 7]
    assert stream.selector.state_dict()["num_selects"] == 2 + 2
    assert {event[2] for event in of_kind(later, "select")} == {batch_size}


def test_states_go_with_their_checkpoints(tmp_path):
    run([], folder=tmp_path, save_every=1, max_to_keep=2)
    kept = {path.name for path in (tmp_path / "actor").iterdir()}
    assert kept == {"5", "6"}
    assert kept <= {path.name for path in (tmp_path / "dps_jax").iterdir()} <= kept | {"4"}


def resumed(folder, stream=None, is_attached=True):
    events = []
    stream = stream or make_stream(events, batch_size=4)
    learner = make_learner(events, [stream.outcome(is_even)], folder=folder, **MICRO)
    before = stream.selector.state_dict()["num_selects"], learner._iter_steps
    assert learner.rl_cluster.actor_trainer.train_steps == 3
    try:
        if is_attached:
            stream.attach(learner)
        else:
            learner.train(stream)
    finally:
        if is_attached:
            assert (stream.selector.state_dict()["num_selects"], learner._iter_steps) == before


def test_checkpoints_that_do_not_belong_are_refused(whole, tmp_path):
    up_to_step_3(whole, tmp_path)
    rows = make_rows()
    for changed in (rows[::-1], [row | {"answer": "0"} for row in rows]):
        with pytest.raises(ValueError, match="expected the data set that the run was started with"):
            resumed(tmp_path, make_stream([], rows=changed, batch_size=4))
    with pytest.raises(ValueError, match=r"dps_jax_selector.npz: .*method"):
        resumed(tmp_path, make_stream([], make_selector([], method="dps"), batch_size=4))
    with pytest.raises(ValueError, match=r"got none; give the learner .* call stream.attach\(learner\) before train"):
        resumed(tmp_path, is_attached=False)
    shutil.rmtree(tmp_path / "dps_jax")
    with pytest.raises(ValueError, match=r"3: expected dps_jax_selector.npz and dps_jax_selector.json beside"):
        resumed(tmp_path)


def test_learners_that_are_refused(tmp_path, monkeypatch):
    stream = make_stream([])
    outcome = stream.outcome(is_even)
    expected = "learner: expected a GRPOLearner or DAPOLearner of tunix"
    agentic = importlib.import_module("tunix.rl.agentic.agentic_grpo_learner").GRPOLearner
    with pytest.raises(ValueError, match=f"{expected}, got the agentic GRPOLearner, which asks"):
        stream.attach(agentic.__new__(agentic))
    other = importlib.import_module("tunix.rl.ppo.ppo_learner").PPOLearner
    for learner, name in ((other.__new__(other), "PPOLearner"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"{expected}, got {name}"):
            stream.attach(learner)
    for reward_fns, number in (([is_even], 0), ([make_stream([]).outcome(is_even)], 0), ([outcome, outcome], 2)):
        with pytest.raises(ValueError, match=f"one outcome of this stream among its reward functions, got {number}"):
            stream.attach(make_learner([], reward_fns))
    learner = make_learner([], [outcome], folder=tmp_path)
    manager = learner.rl_cluster.actor_trainer.checkpoint_manager
    save, config = manager.save, learner.rl_cluster.actor_trainer.config
    monkeypatch.setattr(config, "checkpoint_root_directory", "gs://bucket/run/actor")
    with pytest.raises(ValueError, match="expected checkpoints in a folder of this machine, got gs://bucket"):
        stream.attach(learner)
    monkeypatch.undo()
    with monkeypatch.context() as patched:
        patched.setattr(importlib.import_module("jax"), "process_count", lambda: 2)
        with pytest.raises(ValueError, match="expected one process, got 2"):
            stream.attach(learner)
    assert manager.save is save
    stream.attach(learner)
    with pytest.raises(ValueError, match="neither trained nor a stream attached"):
        stream.attach(learner)
    learner = make_learner([], [outcome], max_steps=1)
    learner.train(stream)
    with pytest.raises(ValueError, match="neither trained nor a stream attached"):
        stream.attach(learner)


def test_an_outcome_that_is_not_among_the_reward_functions():
    stream = make_stream([])
    learner = make_learner([], [is_even])
    with pytest.raises(ValueError, match=r"outcome: expected rewards of a batch .* got none; give the learner"):
        learner.train(stream)
    batch = next(iter(make_stream([])))
    del batch[IDS]
    learner = make_learner([], [stream.outcome(is_even)])
    with pytest.raises(ValueError, match=r"train_ds: expected a PromptStream, got batches without dps_prompt_ids"):
        learner.train([batch, batch])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (iter([]), "rows: expected a sequence of mappings.*got a list_iterator; make a table"),
        ({"prompts": ["1 + 1 ="]}, "rows: expected a sequence of mappings.*got a dict"),
        ([], "rows: expected at least one, got none"),
        ([{"prompt": "1"}], 'rows: expected mappings with the text "prompts", got .* in row 0'),
        ([{"prompts": ["1"]}], 'rows: expected mappings with the text "prompts"'),
        (["1"], 'rows: expected mappings with the text "prompts"'),
        ([{"prompts": "1", "mode": "a"}, {}], "rows: expected no column 'mode'"),
        ([{"prompts": "1", "choices": [1, 2]}, {}], "got a list in column 'choices' of row 0.*json.dumps"),
        ([{"prompts": "1"}, {"prompts": "1", "other": 1}], "rows: expected the columns prompts.* got prompts, other"),
    ],
)
def test_rows_that_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        next(iter(PromptStream(PromptSelector(2, "uniform"), rows, 2)))


def test_arguments_that_are_refused(monkeypatch):
    rows = make_rows()
    stream = partial(PromptStream, PromptSelector(100, "uniform"), rows)
    for arguments, message in (
        ((0,), "batch_size: expected an integer >= 1"),
        ((101,), "batch_size: expected an integer >= 1 and <= 100, got 101"),
        ((2, 0), "num_batches: expected an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(*arguments)
    for selector, message in ((PromptSelector(99, "uniform"), "one over 100 prompts"), ("dps", "a PromptSelector")):
        with pytest.raises(ValueError, match=f"selector: expected {message}"):
            PromptStream(selector, rows, 2)
    with pytest.raises(ValueError, match="threshold: expected a finite number"):
        stream(2).outcome(is_even, float("nan"))
    with pytest.raises(ValueError, match="reward_fn: expected a function"):
        stream(2).outcome("accuracy")
    for found in ("0.1.6", "0.2.0"):
        monkeypatch.setattr(_versions.metadata, "version", lambda name, found=found: found)
        with pytest.raises(ValueError, match=f"google-tunix: expected a release from 0.1.7 .* got {found}"):
            stream(2)


def test_columns_have_one_dimension():
    rows = [{"prompts": f"{i} =", "level": i, "share": 0.5 * i, "source": None, "facts": {"i": i}} for i in range(9)]
    batch = next(iter(PromptStream(PromptSelector(9, "uniform"), rows, 3)))
    assert {name: column.shape for name, column in batch.items()} == dict.fromkeys((*rows[0], IDS), (3,))
    assert [column.dtype.kind for column in batch.values()] == ["O", "i", "f", "O", "O", "i"]
    assert batch["prompts"].tolist() == [rows[index]["prompts"] for index in batch[IDS]]
    assert len(list(zip(range(5), PromptStream(PromptSelector(9, "uniform"), rows, 3, 1), strict=False))) == 1


def test_functions_without_a_name():
    outcome = make_stream([]).outcome(partial(is_even, mode="eval"))
    assert outcome.__name__ == "partial"


def test_the_example(capsys):
    example = importlib.import_module("tunix_grpo")
    ratios = example.main(**vars(example.parsed(["--steps", "10", "--method", "dps"])))
    assert len(ratios) == 10
    written = capsys.readouterr().out
    assert written.count("batch ") == 10
    assert "second half: effective sample ratio" in written
    with pytest.raises(SystemExit):
        example.parsed(["--help"])
    assert "stream in main()" in capsys.readouterr().out
