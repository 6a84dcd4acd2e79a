"""A torch data set of chosen prompts: what comes when, outcomes in any form, states, loaders."""

import io
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from dps_jax import PromptSelector
from dps_jax.integrations.torch import SelectedPrompts

NUM_PROMPTS, BATCH, GROUP = 24, 4, 8
ROWS = [{"prompt": f"question {index}", "level": index % 3} for index in range(NUM_PROMPTS)]
RATES = np.linspace(0, 1, NUM_PROMPTS)


def selector_of(seed=0, **options):
    return PromptSelector(NUM_PROMPTS, "binomial_hmm", seed=seed, group_size=GROUP, **options)


def prompts_of(seed=0, **options):
    return SelectedPrompts(selector_of(seed), ROWS, BATCH, **options)


def rewards_of(ids, round_index):
    """Returns rewards of a simulated rollout, [P, G]."""
    rng = np.random.default_rng([round_index, *np.asarray(ids)])
    return rng.binomial(1, RATES[np.asarray(ids)][:, None], (len(ids), GROUP)).astype(float)


def test_rows_are_those_that_the_selector_chooses():
    prompts, selector = prompts_of(), selector_of()
    assert len(prompts) == NUM_PROMPTS
    for round_index in range(5):
        rows = [prompts[7] for _ in range(BATCH)]  # whichever row it is asked for
        expected = selector.select(BATCH)
        assert [row.pop("prompt_id") for row in rows] == expected.tolist()
        assert rows == [ROWS[place] for place in expected]
        rewards = rewards_of(expected, round_index)
        prompts.observe(expected, rewards)
        selector.observe(expected, rewards.sum(axis=1).astype(int), GROUP)
    for name, value in selector.predict().items():
        np.testing.assert_array_equal(prompts.selector.predict()[name], value)


def test_rows_are_copies_and_the_key_has_the_name_that_was_given():
    prompts = prompts_of(key="uid")
    row = prompts[0]
    row["prompt"] = "another"
    assert ROWS[row["uid"]]["prompt"] == f"question {row['uid']}"
    assert "uid" not in ROWS[row["uid"]]


@pytest.mark.parametrize("form", ["rows", "groups", "ragged", "tensors", "half"])
def test_outcomes_in_any_form(form):
    ids, rewards = [3, 5], [[1.0, 0.0], [1.0, 1.0]]
    if form == "rows":
        ids, rewards = [3, 5, 5, 3], np.array([1.0, 1.0, 1.0, 0.0])
    elif form == "ragged":
        rewards = [[1, 0, None], np.array([1.0, 1.0])]
    elif form in ("tensors", "half"):
        torch = pytest.importorskip("torch")
        kind = torch.bfloat16 if form == "half" else torch.float32
        ids, rewards = torch.tensor(ids), torch.tensor(rewards, dtype=kind)
        if form == "half":
            rewards = list(rewards)
    prompts = prompts_of()
    prompts.observe(ids, rewards)
    prompts.selector.commit()
    expected = selector_of()
    expected.observe([3, 5], [1, 2], 2)
    expected.commit()
    for name, value in expected.predict().items():
        np.testing.assert_array_equal(prompts.selector.predict()[name], value)


def test_shaped_rewards_need_a_threshold():
    prompts = prompts_of()
    with pytest.raises(ValueError, match=r"rewards: expected rewards of 0 .*, got 0.3 for prompt 3; .*threshold="):
        prompts.observe([3], [0.3])
    prompts.observe([3, 3], [0.3, 0.6], threshold=0.5)
    np.testing.assert_array_equal(prompts.selector.state_dict()["pending"][1], [0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3], [[1.0], [0.0]]), "rewards: expected 1 rows, one per prompt id, got 2"),
        (([3, 4], [1.0]), "rewards: expected 2 rewards"),
        (([3, NUM_PROMPTS], [1.0, 1.0]), r"row_ids: expected ids in \[0, 24\), got 24"),
        ((3, 1.0), "prompt_ids: expected a list, an array or a tensor"),
        (([3], [1.0], float("nan")), "threshold: expected a finite number"),
    ],
)
def test_bad_outcomes_change_nothing(arguments, message):
    prompts = prompts_of()
    with pytest.raises(ValueError, match=message):
        prompts.observe(*arguments)
    assert prompts.selector.state_dict()["pending"].size == 0


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (iter(ROWS), {}, r"rows: expected a sequence of mappings, got a list_iterator; .*rows = list\(stream\)"),
        (ROWS[:5], {}, r"selector: expected one over 5 prompts, .*PromptSelector\(5, \.\.\.\)"),
        (["text"] * NUM_PROMPTS, {}, "rows: expected mappings without the key 'prompt_id', got <class 'str'>"),
        (ROWS, {"key": "level"}, "rows: expected mappings without the key 'level', got one with 'level'; give another"),
        (ROWS, {"batch_size": NUM_PROMPTS + 1}, "batch_size: expected an integer >= 1 and <= 24, got 25"),
    ],
)
def test_bad_rows_are_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        SelectedPrompts(selector_of(), rows, **({"batch_size": BATCH} | options))


def loop(prompts, first, last, batch=BATCH):
    """Returns the ids of each round of a loop without a loader."""
    found = []
    for round_index in range(first, last):
        ids = [prompts[0]["prompt_id"] for _ in range(batch)]
        prompts.observe(ids, rewards_of(ids, round_index))
        found.append(ids)
    return found


@pytest.mark.parametrize("batch", [BATCH, 3], ids=["whole", "with a queue"])
def test_a_state_resumes_exactly(batch):
    whole, part, other = prompts_of(), prompts_of(), prompts_of(seed=9)
    expected = loop(whole, 0, 6, batch)
    found = loop(part, 0, 3, batch)
    state = part.state_dict()
    assert len(state["queue"]) == (-3 * batch) % BATCH
    other.load_state_dict(state)
    assert found + loop(other, 3, 6, batch) == expected
    for name, value in whole.selector.predict().items():
        np.testing.assert_array_equal(other.selector.predict()[name], value)


def test_torch_reads_a_state_without_allowing_objects():
    torch = pytest.importorskip("torch")
    prompts, other = prompts_of(), prompts_of(seed=3)
    loop(prompts, 0, 2, batch=3)
    file = io.BytesIO()
    torch.save(prompts.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert loop(other, 2, 4) == loop(prompts, 2, 4)


def test_states_that_do_not_belong_change_nothing():
    prompts = prompts_of()
    loop(prompts, 0, 2, batch=3)
    state, before = prompts.state_dict(), prompts.state_dict()
    others = SelectedPrompts(selector_of(), ROWS[::-1], BATCH)
    with pytest.raises(ValueError, match=r"fingerprint.*another order.*start anew"):
        others.load_state_dict(state)
    for change, message in (
        ({"version": 2}, r"version.*: expected 1, got 2"),
        ({"queue": [NUM_PROMPTS]}, r"queue.*: expected ids in \[0, 24\)"),
        ({"selector": {"key": {"npy": b"x"}}}, "damaged"),
        ({"selector": {}}, "expected"),
        ({"more": 1}, "state_dict: expected the entries version, .*, got .*more"),
    ):
        with pytest.raises(ValueError, match=message):
            prompts.load_state_dict(state | change)
    with pytest.raises(ValueError, match=r"state_dict: expected the entries .*, got list"):
        prompts.load_state_dict([])
    with pytest.raises(ValueError, match="method"):
        SelectedPrompts(PromptSelector(NUM_PROMPTS, "uniform"), ROWS, BATCH).load_state_dict(state)
    assert prompts.state_dict() == before


@pytest.mark.parametrize("loader_batch", [BATCH, 2], ids=["batches", "micro-batches"])
def test_a_loader_asks_for_a_batch_when_the_loop_does(loader_batch):
    data = pytest.importorskip("torch.utils.data")
    prompts, selector = prompts_of(), selector_of()
    waiting, round_index = [], 0
    for batch in data.DataLoader(prompts, batch_size=loader_batch, shuffle=True, drop_last=True):
        ids = batch["prompt_id"].tolist()
        assert list(batch["prompt"]) == [f"question {place}" for place in ids]
        if not waiting:
            waiting = selector.select(BATCH).tolist()  # with the outcomes of all batches before
        assert ids == waiting[:loader_batch]
        waiting = waiting[loader_batch:]
        rewards = rewards_of(ids, round_index)
        prompts.observe(batch["prompt_id"], rewards)
        selector.observe(ids, rewards.sum(axis=1).astype(int), GROUP)
        round_index += 1
    assert round_index == NUM_PROMPTS // loader_batch


def test_workers_are_refused():
    pytest.importorskip("torch")
    # In a process of its own: a fork of one with JAX's threads may hang.
    program = """
from torch.utils import data
from dps_jax import PromptSelector
from dps_jax.integrations.torch import SelectedPrompts
prompts = SelectedPrompts(PromptSelector(4, "uniform"), [{"prompt": str(n)} for n in range(4)], 2)
try:
    next(iter(data.DataLoader(prompts, batch_size=2, num_workers=1)))
except ValueError as error:
    print(str(error).splitlines()[-1], flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert "num_workers: expected 0" in done.stdout
    assert "build the DataLoader with num_workers=0" in done.stdout


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")
@pytest.mark.parametrize("stop", [2, 6, 8], ids=["in an epoch", "after an epoch", "in the second"])
def test_a_stateful_loader_of_torchdata_resumes_exactly(stop):
    module = pytest.importorskip("torchdata.stateful_dataloader")
    make = lambda seed: module.StatefulDataLoader(prompts_of(seed), batch_size=BATCH, drop_last=True)

    def rounds(loader, first, last):
        while first < last:
            for batch in loader:
                yield batch["prompt_id"].tolist()
                loader.dataset.observe(batch["prompt_id"], rewards_of(batch["prompt_id"].tolist(), first))
                first += 1
                if first == last:
                    return

    expected = list(rounds(make(0), 0, 10))
    loader, other = make(0), make(5)
    found = list(rounds(loader, 0, stop))
    other.load_state_dict(loader.state_dict())
    assert found + list(rounds(other, stop, 10)) == expected


def test_the_module_needs_no_torch():
    program = """
import sys
sys.modules["torch"] = None
from dps_jax import PromptSelector
from dps_jax.integrations.torch import SelectedPrompts
prompts = SelectedPrompts(PromptSelector(4, "uniform"), [{"prompt": str(n)} for n in range(4)], 2)
prompts.observe([prompts[0]["prompt_id"]], [[1, 0]])
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_snippet_of_the_guide_runs():
    torch = pytest.importorskip("torch")
    text = (pathlib.Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
    (snippet,) = [part for part in re.findall(r"```py\n(.*?)```", text, re.DOTALL) if "integrations.torch" in part]
    names = {"rows": [{"prompt": str(n)} for n in range(128)], "torch": torch, "train_on": lambda _: torch.ones(64, 8)}
    exec(compile(snippet, "snippet of trainers.md", "exec"), names)
    assert names["prompts"].selector.metrics()["num_rounds"] == 1
