"""Real runs of TRL's trainers with a tiny model: who is called when, for which prompts, and what is left behind."""

import importlib
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from dps_jax import PromptSelector
from dps_jax.integrations.trl import attach
from tests.integrations.trl_trainers import GROUP_SIZE, is_even, make_rows, make_selector, make_trainer, of_kind

# TRL and transformers warn of their own deprecations.
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]
ROOT = pathlib.Path(__file__).parents[2]


def run(folder, events, *, selector=None, resume=None, threshold=None, outcome=None, **options):
    trainer = make_trainer(folder, events, **options)
    selector = make_selector(events, len(trainer.train_dataset)) if selector is None else selector
    attach(trainer, selector, threshold=threshold, outcome=outcome)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, selector


def check_batches(events, num_prompts, micro_batches, updates, passes=1):
    """Checks every generation batch: the order of events, its prompts, and that nothing was in flight before."""
    starts = [position for position, event in enumerate(events) if event[0] == "select"] + [len(events)]
    assert starts[0] == 0
    for number, (first, last) in enumerate(itertools.pairwise(starts)):
        (_, ids, num_in_flight, num_rounds, _), *others = events[first:last]
        rows = np.repeat(ids, GROUP_SIZE).tolist()
        assert len(ids) == num_prompts
        assert (num_in_flight, num_rounds) == (0, number)
        assert [event[0] for event in others] == (
            ["rewards", "observe"] + (["train"] * (micro_batches // updates) + ["update"]) * updates
        )
        assert others[0][1] == rows
        assert others[1][1] == rows
        trained = [row for event in of_kind(others, "train") for row in event[1]]
        assert sorted(trained) == sorted(rows * passes)
    return len(starts) - 1


CASES = {
    "plain": ({}, (2, 1, 1), 6),
    "accumulation": ({"gradient_accumulation_steps": 2}, (4, 2, 1), 6),
    "iterations": ({"num_iterations": 2}, (2, 2, 2, 2), 3),
    "generation": ({"gradient_accumulation_steps": 2, "steps_per_generation": 4}, (8, 4, 2), 3),
    "workers": ({"dataloader_num_workers": 2}, (2, 1, 1), 6),
    "columns": ({"remove_unused_columns": False, "shuffle_dataset": False}, (2, 1, 1), 6),
    "rloo": ({"kind": "RLOOTrainer"}, (2, 1, 1), 6),
    "rloo-generation": ({"kind": "RLOOTrainer", "steps_per_generation": 2}, (4, 2, 2), 3),
}


@pytest.mark.parametrize("case", CASES)
def test_prompts_are_chosen_observed_and_trained_on(case, tmp_path):
    options, shape, num_batches = CASES[case]
    events = []
    trainer, selector = run(tmp_path, events, **options)
    assert check_batches(events, *shape) == num_batches
    log = [entry for entry in trainer.state.log_history if "dps/effective_sample_ratio" in entry]
    assert len(log) == num_batches
    groups = [np.reshape(event[2], (-1, GROUP_SIZE)).mean(1) for event in of_kind(events, "observe")]
    ratios = [np.mean((group > 0) & (group < 1)) for group in groups]
    np.testing.assert_allclose([entry["dps/effective_sample_ratio"] for entry in log], ratios, atol=1e-6)
    assert selector.metrics()["num_pending"] == 0
    assert type(trainer).__name__ == "Trainer"


def test_lora(tmp_path):
    events = []
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer, _ = run(tmp_path, events, peft_config=config)
    assert isinstance(trainer.model, peft.PeftModel)
    assert check_batches(events, 2, 1, 1) == 6


def test_the_selector_that_is_built(tmp_path):
    events = []
    trainer = make_trainer(tmp_path, events, seed=5)
    selector = attach(trainer)
    assert isinstance(selector, PromptSelector)
    assert selector.num_prompts == 100
    trainer.train()
    assert selector.state_dict()["num_selects"] == 6
    assert selector.metrics()["num_observed"] == 12
    others = []
    other = make_trainer(tmp_path, others, seed=6)
    attach(other)
    other.train()
    assert prompts_of(others)[0] != prompts_of(events)[0]


def test_rewards_may_be_missing(tmp_path):
    def partly_missing(completions, **kwargs):
        # All of the first prompt's, and one of the second's.
        rewards = [None, float("nan"), None, None, None, 1.0, 0.0, 1.0]
        return rewards[: len(completions)]

    events = []
    _, selector = run(tmp_path, events, reward_funcs=partly_missing)
    selects, observed = of_kind(events, "select"), of_kind(events, "observe")
    assert len(selects) == len(observed) == 6
    for (_, ids, num_in_flight, *_), (_, rows, is_correct) in zip(selects, observed, strict=True):
        assert num_in_flight == 0  # the first prompt was released
        assert rows == [ids[1]] * 3
        assert is_correct == [True, False, True]
    assert selector.metrics()["num_observed"] == 6


def test_shaped_rewards_with_a_threshold(tmp_path):
    def closeness(completions, **kwargs):
        return [0.7 if place % 2 else 0.69 for place in range(len(completions))]

    events = []
    run(tmp_path, events, reward_funcs=[is_even, closeness], outcome="closeness", threshold=0.7)
    assert [event[2] for event in of_kind(events, "observe")] == [[False, True] * GROUP_SIZE] * 6


def test_rewards_that_are_no_outcomes_end_the_run(tmp_path):
    def shaped(completions, **kwargs):
        return [0.5 for _ in completions]

    with pytest.raises(ValueError, match=r"shaped: expected rewards of 0 \(wrong\) and 1 \(correct\), got 0.5"):
        run(tmp_path, [], reward_funcs=shaped)


def test_evaluation_is_not_observed(tmp_path):
    events = []
    evaluated = make_rows(4).map(lambda row: {"index": row["index"] + 1000})
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2 * GROUP_SIZE}
    trainer, _ = run(tmp_path, events, eval_dataset=evaluated, **options)
    in_evaluation = [event for event in of_kind(events, "rewards") if event[1][0] >= 1000]
    assert len(in_evaluation) == 6
    assert check_batches([event for event in events if event not in in_evaluation], 2, 1, 1) == 6
    assert any("eval_reward" in entry for entry in trainer.state.log_history)


def prompts_of(events):
    return [event[1] for event in of_kind(events, "rewards")]


def of_selects(events):
    """Returns the prompts and the predictions of every select."""
    return [(event[1], event[4]) for event in of_kind(events, "select")]


@pytest.mark.parametrize("kind", ["GRPOTrainer", "RLOOTrainer"])
def test_three_steps_and_three_equal_six(tmp_path, kind):
    save = {"kind": kind, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    events, method = [], "instructive"
    trainer, selector = run(tmp_path / "whole", events, selector=make_selector(events, method=method), **save)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    shutil.copytree(checkpoint, tmp_path / "last" / "checkpoint-3")
    for folder, resume in (("other", str(checkpoint)), ("last", True)):
        later = []
        # Another seed, which the state replaces.
        fresh = make_selector(later, method=method, seed=9)
        resumed, _ = run(tmp_path / folder, later, selector=fresh, resume=resume, **save)
        assert of_selects(later) == of_selects(events)[3:]
        assert prompts_of(later) == prompts_of(events)[3:]
        for name, value in selector.predict().items():
            np.testing.assert_array_equal(fresh.predict()[name], value)
        assert fresh.state_dict()["num_selects"] == 6  # none while TRL skipped batches
        for mine, theirs in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
            np.testing.assert_array_equal(mine.detach().numpy(), theirs.detach().numpy())


def test_a_checkpoint_within_a_generation_batch_generates_anew(tmp_path):
    save = {"save_strategy": "steps", "save_steps": 3, "num_iterations": 2}
    run(tmp_path / "whole", [], **save)
    events = []
    _, selector = run(tmp_path / "other", events, resume=str(tmp_path / "whole" / "checkpoint-3"), **save)
    assert [event[0] for event in events[-3:]] == ["observe", "train", "update"]
    assert selector.state_dict()["num_selects"] == 2 + 2
    assert all(event[2] == 0 for event in of_kind(events, "select"))


def test_checkpoints_that_do_not_belong_are_refused(tmp_path):
    save = {"save_strategy": "steps", "save_steps": 6}
    trainer = make_trainer(tmp_path / "without", [], **save)
    trainer.train()
    run(tmp_path / "with", [], **save)

    def resumed(folder, message, resume=None, **options):
        with pytest.raises(ValueError, match=message):
            run(folder, [], resume=resume or str(folder / "checkpoint-6"), **options)

    nothing = r"checkpoint-6: expected dps_jax_selector.npz and dps_jax_selector.json beside"
    resumed(tmp_path / "without", nothing)
    resumed(tmp_path / "without", nothing, resume=True)
    resumed(tmp_path / "empty", "No valid checkpoint", resume=True)
    turned = make_rows().select(range(99, -1, -1))
    resumed(tmp_path / "with", "expected the data set that the run was started with", train_dataset=turned)
    other = make_rows().map(lambda row: {"answer": "0"})
    run(tmp_path / "with", [], resume=True, train_dataset=other)  # the prompts are the same


def test_two_ranks_share_a_selector(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.trl_ranks", str(tmp_path)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert (first["has_selector"], first["has_jax"]) == (True, True)
    assert (second["has_selector"], second["has_jax"]) == (False, False)
    assert first["weights"] == second["weights"]
    for number, (_, ids, num_in_flight, num_rounds, _) in enumerate(of_kind(first["events"], "select")):
        rows = np.repeat(ids, GROUP_SIZE).tolist()
        assert (len(ids), num_in_flight, num_rounds) == (3, 0, number)
        halves = [of_kind(found["events"], "rewards")[number][1] for found in (first, second)]
        assert halves == [rows[:6], rows[6:]]
        trained = [of_kind(found["events"], "train")[number][1] for found in (first, second)]
        assert [sorted(found) for found in trained] == [sorted(rows[:6]), sorted(rows[6:])]
        assert of_kind(first["events"], "observe")[number][1] == rows
    assert len(of_kind(first["events"], "select")) == 6
    for found in (first, second):
        assert "none: expected dps_jax_selector.npz" in found["refusals"][0]
        assert "attached to already" in found["refusals"][1]
    assert (tmp_path / "run" / "checkpoint-6" / "dps_jax_selector.npz").is_file()


def zero(completions, **kwargs):
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"num_rows": 3, "steps_per_generation": 2}, {}, "expected at most 3 prompts in a generation batch.*got 4"),
        ({}, {"selector": 99}, "selector: expected one over 100 prompts.*got one over 99"),
        ({}, {"selector": "dps"}, "selector: expected a PromptSelector"),
        ({}, {"threshold": float("nan")}, "threshold: expected a finite number"),
        ({"reward_funcs": [is_even, zero]}, {}, "outcome: expected the name .*one of is_even, zero, once; got None"),
        ({"reward_funcs": [is_even, zero]}, {"outcome": "one"}, "one of is_even, zero, once; got 'one'"),
        ({"reward_funcs": [zero, zero]}, {"outcome": "zero"}, "one of zero, zero, once; got 'zero'"),
        ({"stream": True}, {}, "expected a train_dataset with rows .*got the stream IterableDataset; make a table"),
    ],
)
def test_trainers_that_are_refused(tmp_path, options, arguments, message):
    is_stream = options.get("stream", False)
    if isinstance(arguments.get("selector"), int):
        arguments = {"selector": PromptSelector(arguments["selector"])}
    trainer = make_trainer(tmp_path, [], **{name: value for name, value in options.items() if name != "stream"})
    if is_stream:  # older releases of TRL refuse them themselves
        trainer.train_dataset = make_rows().to_iterable_dataset()
    kind, callbacks = type(trainer), list(trainer.callback_handler.callbacks)
    with pytest.raises(ValueError, match=message):
        attach(trainer, **arguments)
    assert type(trainer) is kind
    assert trainer.callback_handler.callbacks == callbacks


def test_trainers_of_other_kinds_are_refused(tmp_path):
    trl = importlib.import_module("trl")
    expected = "trainer: expected a GRPOTrainer or RLOOTrainer of TRL or a subclass"
    for kind in (trl.SFTTrainer, trl.DPOTrainer):
        with pytest.raises(ValueError, match=f"{expected}, got {kind.__name__}"):
            attach(kind.__new__(kind))
    for other in (None, "trainer"):
        with pytest.raises(ValueError, match=expected):
            attach(other)
    stand_in = type("AsyncGRPOTrainer", (), {})
    with pytest.raises(ValueError, match=r"got an AsyncGRPOTrainer, which .* use GRPOTrainer"):
        attach(stand_in())
    old = type("GRPOTrainer", (), {})
    with pytest.raises(ValueError, match=r"with _generate_and_score_completions.* install trl"):
        attach(old())


def test_environments_without_rows_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, [])
    trainer.environment_factories = {"default": object}
    trainer.train_dataset = importlib.import_module("datasets").Dataset.from_list([{"prompt": ""}] * 4)
    with pytest.raises(ValueError, match="expected a train_dataset whose rows differ, got an environment"):
        attach(trainer)


def test_once_and_before_training(tmp_path):
    trainer = make_trainer(tmp_path, [])
    transformers = importlib.import_module("transformers")

    class Late(transformers.TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            attach(trainer)

    trainer.add_callback(Late())
    with pytest.raises(ValueError, match=r"got one in train\(\); attach before it"):
        trainer.train()
    trainer = make_trainer(tmp_path, [])
    trainer.train_dataset = None
    with pytest.raises(ValueError, match="expected a train_dataset to choose prompts from, got None"):
        attach(trainer)
    trainer = make_trainer(tmp_path, [])
    attach(trainer)
    with pytest.raises(ValueError, match="attached to already"):
        attach(trainer)


def test_the_example(monkeypatch, capsys):
    example = importlib.import_module("trl_grpo")
    log = example.main(**vars(example.parsed(["--steps", "6", "--method", "dps"])))
    assert len(log) == 6
    written = capsys.readouterr().out
    assert written.count("batch ") == 6
    assert "second half: effective sample ratio" in written
    with pytest.raises(SystemExit):
        example.parsed(["--help"])
    assert example.__doc__.splitlines()[0] in capsys.readouterr().out


def test_the_overhead_is_measured(tmp_path):
    overhead = importlib.import_module("overhead")
    case = {"num_prompts": 200, "batch_size": 8, "method": "dps", "rounds": 2}
    command = [sys.executable, overhead.__file__, "--case", json.dumps(case)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert {name: found[name] for name in ("num_prompts", "batch_size", "method")} == {
        name: case[name] for name in ("num_prompts", "batch_size", "method")
    }
    assert 0 < found["least_round_s"] <= found["round_s"]
    assert "| dps | 200 | 8 |" in overhead.table([found], step_s=1.0)
