"""verl's trainers on a CPU, see experiments/integrations/_verl_cpu.py: who is called when, for which prompts."""

import functools
import importlib
import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dps_jax import PromptSelector
from dps_jax.integrations import _states, _versions
from dps_jax.integrations import verl as ours

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]
ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / "experiments" / "integrations"))
GROUP_SIZE, BATCH_SIZE = 4, 4
METHOD = "+data.dps_jax.method=dps"


@functools.cache
def cpu():
    pytest.importorskip("verl")
    return importlib.import_module("_verl_cpu")


def is_at_least(*numbers):
    cpu()
    return _versions._numbers(_versions.metadata.version("verl")) >= numbers


has_v1 = functools.partial(is_at_least, 0, 9)
has_callback = functools.partial(is_at_least, 0, 9, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    cpu().make_files(folder)
    return folder


@pytest.fixture(scope="module")
def queue():
    if not has_v1():
        pytest.skip("verl before 0.9 has no V1 trainer")
    ray, transfer_queue = importlib.import_module("ray"), importlib.import_module("transfer_queue")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    options = {"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}
    transfer_queue.init(importlib.import_module("omegaconf").OmegaConf.create(options))
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


@pytest.fixture(params=["legacy", "v1"])
def kind(request):
    if request.param == "v1":
        request.getfixturevalue("queue")
    return request.param


@pytest.fixture
def events(monkeypatch):
    """What selectors select and observe, and what runs note."""
    found = []

    class Selector(PromptSelector):
        def select(self, *args, **kwargs):
            before = self.metrics()
            facts = [before["num_in_flight"], before["num_rounds"], self.predict()["p_informative"].tolist()]
            ids = super().select(*args, **kwargs)
            found.append(("select", ids.tolist(), *facts))
            return ids

        def observe_rows(self, row_ids, row_is_correct):
            super().observe_rows(row_ids, row_is_correct)
            found.append(("observe", np.asarray(row_ids).tolist(), np.asarray(row_is_correct).tolist()))

    monkeypatch.setattr("dps_jax.prompt_selector.PromptSelector", Selector)
    return found


def run(kind, files, events, *options, folder=None, grade=None, ours=True):
    legacy = ["trainer.use_v1=False"] if has_v1() else []
    v1 = [*cpu().OUR_V1_OPTIONS, *([cpu().OUR_CALLBACK] if has_callback() else [])] if ours else []
    fixed = [*cpu().OUR_OPTIONS, *(legacy if kind == "legacy" else v1)]
    place = [f"trainer.default_local_dir={folder}"] if folder else []
    config = cpu().composed(files, [*fixed, METHOD, *place, *options])
    train = cpu().train_legacy if kind == "legacy" else cpu().train_v1
    return train(config, lambda *event: events.append(event), grade or cpu().of_the_reward)


def of_kind(events, kind):
    return [event for event in events if event[0] == kind]


def of_selects(events):
    """Returns the prompts of every select, and the predictions before it."""
    return [(event[1], event[4]) for event in of_kind(events, "select")]


def test_prompts_are_chosen_rolled_out_trained_on_and_observed(kind, files, events, tmp_path):
    graded = {}

    def grade(row, session, is_correct):
        if of_kind(events, "select"):
            graded.setdefault((len(of_kind(events, "select")), row), []).append(is_correct)
        return cpu().of_the_reward(row, session, is_correct)

    options = ["trainer.save_freq=3", "trainer.test_freq=2", "trainer.val_before_train=True"]
    trainer = run(kind, files, events, *options, folder=tmp_path, grade=grade)
    graded = {key: outcomes[:GROUP_SIZE] for key, outcomes in graded.items()}  # validation comes after
    starts = [position for position, event in enumerate(events) if event[0] == "select"] + [len(events)]
    assert [event[0] for event in events[: starts[0]]] == ["validate"]
    assert len(starts) == 6 + 1
    for step, (first, last) in enumerate(itertools.pairwise(starts), 1):
        (_, ids, num_in_flight, num_rounds, _), *others = events[first:last]
        between = (["save"] if step % 3 == 0 else []) + (["validate"] if step % 2 == 0 else [])
        between = between if is_at_least(0, 7, 1) else between[::-1]
        told = ["observe"] if kind == "v1" or step < 6 else []  # the legacy trainer ends before it tells
        expected = ["rollout", *told, "update", *between] if kind == "v1" else ["rollout", "update", *between, *told]
        assert [event[0] for event in others] == expected
        assert len(ids) == BATCH_SIZE
        assert (num_in_flight, num_rounds) == (0, step - 1)
        [rollout], [update] = of_kind(others, "rollout"), of_kind(others, "update")
        assert sorted(rollout[1]) == sorted(np.repeat(ids, GROUP_SIZE).tolist())
        assert sorted(update[1]) == sorted(rollout[1])
        if told:
            [(_, rows, is_correct)] = of_kind(others, "observe")
            for prompt in ids:
                outcomes = [right for row, right in zip(rows, is_correct, strict=True) if row == prompt]
                assert sorted(outcomes) == sorted(graded[step, prompt])
    updates, rollouts = of_kind(events, "update"), of_kind(events, "rollout")
    assert [event[1] for event in updates] != [event[1] for event in rollouts]  # balance_batch
    if kind == "legacy":
        assert [event[1] for event in of_kind(events, "observe")] == [event[1] for event in updates[:5]]
    assert trainer.val_dataset.selector is None
    assert trainer.val_dataset.state_dict() == {}


@pytest.mark.parametrize("num_rows", [100, 12])
def test_three_steps_and_three_equal_six_on_v1(queue, events, tmp_path, num_rows):
    # With 12 rows the checkpoint is at the end of an epoch.
    cpu().make_files(tmp_path, num_rows)
    save = ["trainer.save_freq=3", "+data.dps_jax.seed=4"]
    whole = run("v1", tmp_path, events, *save, folder=tmp_path / "whole")
    before = list(events)
    step_3 = tmp_path / "whole" / "global_step_3"
    events.clear()
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={step_3}"]
    resumed = run("v1", tmp_path, events, *save[:1], *resume, folder=tmp_path / "resumed")
    assert of_selects(events) == of_selects(before)[3:]
    assert [event[1] for event in of_kind(events, "update")] == [event[1] for event in of_kind(before, "update")][3:]
    for name, value in whole.train_dataset.selector.predict().items():
        np.testing.assert_array_equal(resumed.train_dataset.selector.predict()[name], value)
    if not has_callback():
        return
    # What the callback wrote is the same.
    other = PromptSelector(num_rows, "dps", seed=9, group_size=GROUP_SIZE)
    facts = _states.restore(tmp_path / "whole" / "global_step_6", other, whole.train_dataset._fingerprint)
    assert facts == {"step": 6}
    np.testing.assert_array_equal(other.select(4), whole.train_dataset.selector.select(4))
    fourth = PromptSelector.load(step_3 / "dps_jax_selector.npz")
    np.testing.assert_array_equal(fourth.predict()["p_informative"], of_selects(before)[3][1])
    np.testing.assert_array_equal(fourth.select(4), of_selects(before)[3][0])


def test_a_checkpoint_of_the_legacy_trainer_lacks_its_last_batch(files, events, tmp_path):
    run("legacy", files, events, "trainer.save_freq=3", folder=tmp_path / "whole")
    before = list(events)
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/whole/global_step_3"]
    found = []
    for name in ("first", "second"):
        events.clear()
        run("legacy", files, events, *resume, folder=tmp_path / name)
        assert [event[2:4] for event in of_kind(events, "select")] == [(0, 2), (0, 3), (0, 4)]
        # As if step 3 had not been.
        assert of_selects(events)[0][1] == of_selects(before)[2][1]
        found.append(list(events))
    assert found[0] == found[1]
    assert of_kind(before, "select")[3][3] == 3


def test_an_epoch_of_the_legacy_trainer_ends_what_is_known(events, tmp_path):
    cpu().make_files(tmp_path, 12)
    run("legacy", tmp_path, events, "trainer.save_freq=3", folder=tmp_path / "whole")
    events.clear()
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/whole/global_step_3"]
    run("legacy", tmp_path, events, *resume, folder=tmp_path / "other")
    assert of_kind(events, "select")[0][3] == (0 if is_at_least(0, 8) else 2)


def test_outcomes_may_be_missing(kind, files, events):
    def grade(row, session, is_correct):
        if kind == "v1" and row % 5 == 1:
            return None, {}  # no rollout of the prompt
        acc = [None, float("nan"), is_correct, is_correct][session]
        return 0.3, {} if kind == "v1" and session == 0 else {"acc": acc, "other": 1}

    run(kind, files, events, "+data.dps_jax.outcome=acc", grade=grade)
    selects, observed = of_kind(events, "select"), of_kind(events, "observe")
    for (_, ids, num_in_flight, *_), (_, rows, _) in zip(selects, observed, strict=kind == "v1"):
        assert num_in_flight == 0
        graded = [prompt for prompt in ids if kind == "legacy" or prompt % 5 != 1]
        assert sorted(rows) == sorted(graded * 2)
    assert kind == "legacy" or sum(len(event[1]) for event in observed) < 6 * 2 * BATCH_SIZE


def test_shaped_rewards_with_a_threshold(kind, files, events):
    def grade(row, session, is_correct):
        return [0.7, 0.69][session % 2], {"acc": is_correct}

    run(kind, files, events, "+data.dps_jax.threshold=0.7", "trainer.total_training_steps=2", grade=grade)
    _, rows, is_correct = of_kind(events, "observe")[0]
    for prompt in set(rows):
        assert sum(right for row, right in zip(rows, is_correct, strict=True) if row == prompt) == GROUP_SIZE // 2


def test_outcomes_that_are_refused(kind, files, events):
    def grade(row, session, is_correct):
        return 0.5, {"acc": is_correct, "format": 1}

    with pytest.raises(ValueError, match=r"reward: expected rewards of 0 \(wrong\) and 1 \(correct\), got 0.5"):
        run(kind, files, events, grade=grade)
    message = "outcome: expected an entry of reward_extra_info, one of acc, format, got 'accuracy'"
    with pytest.raises(ValueError, match=message):
        run(kind, files, events, "+data.dps_jax.outcome=accuracy", grade=grade)
    assert of_kind(events, "observe") == []


def test_a_changed_data_set_is_refused(kind, files, events, tmp_path):
    run(kind, files, events, "trainer.save_freq=2", "trainer.total_training_steps=2", folder=tmp_path / "run")
    datasets = importlib.import_module("datasets")
    rows = datasets.Dataset.from_parquet(str(files / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    rows.select(range(len(rows) - 1, -1, -1)).to_parquet(str(tmp_path / "turned.parquet"))
    with pytest.raises(ValueError, match="expected the data set that the run was started with"):
        run(kind, files, events, f"data.train_files={tmp_path}/turned.parquet", folder=tmp_path / "run")


def test_an_answer_in_parts_counts_once(queue, files, events):
    trainer = run("v1", files, events, "trainer.total_training_steps=1")
    fields = importlib.import_module("verl.utils.tensordict_utils").list_of_dict_to_tensordict
    torch = importlib.import_module("torch")
    keys = ["a_0_9", "a_0_10", "a_1_0"]
    rewards = [0.0, 1.0, 0.0]
    rows = [{"extra_info": {ours.PROMPT_KEY: 3}, "rm_scores": torch.tensor([0.0, reward])} for reward in rewards]
    queue.kv_batch_put(keys=keys, partition_id="train", fields=fields(rows), tags=[{}] * 3)
    batch = type("Batch", (), {"keys": keys, "partition_id": "train"})
    ours._observe_stored(trainer.train_dataset, batch)
    assert events[-1] == ("observe", [3, 3], [True, False])
    rows = [{"extra_info": {"index": 3}, "rm_scores": torch.tensor([1.0])}]
    queue.kv_batch_put(keys=["b_0_0"], partition_id="train", fields=fields(rows), tags=[{}])
    batch.keys = ["b_0_0"]
    with pytest.raises(ValueError, match="extra_info: expected the entry dps_jax_prompt"):
        ours._observe_stored(trainer.train_dataset, batch)
    queue.kv_batch_put(keys=["c_0_0"], partition_id="train", fields=fields([{"extra_info": {}}]), tags=[{}])
    batch.keys = ["c_0_0"]
    with pytest.raises(
        ValueError, match="rewards: expected extra_info and rm_scores with the rollouts, got none of rm_scores"
    ):
        ours._observe_stored(trainer.train_dataset, batch)
    queue.kv_clear(keys=[*keys, "b_0_0", "c_0_0"], partition_id="train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.dataloader_num_workers=2"], "data.dataloader_num_workers: expected 0, got 2; other processes"),
        (["data.val_files=${data.train_files}"], "data.val_files: expected other files than train_files"),
        (["~data.dps_jax.group_size"], r"group_size: expected .* add '\+data.dps_jax.group_size=\$"),
        (["+data.dps_jax.decays=0.5"], "data.dps_jax: options of method 'dps': expected .*decay.* got decays"),
        (["data.dps_jax.method=best"], "method: expected one of 'arcsine'.* got 'best'"),
        (["+data.dps_jax.outcome=1"], "data.dps_jax.outcome: expected the name of an entry or null, got 1"),
        (["+data.dps_jax.threshold=nan"], "threshold: expected a finite number"),
    ],
)
def test_data_options_that_are_refused(files, events, options, message):
    with pytest.raises(ValueError, match=message):
        run("legacy", files, events, *options)


def test_data_sets_of_other_files_are_refused(files, events):
    config = cpu().composed(files, cpu().OUR_OPTIONS)
    with pytest.raises(ValueError, match=r"data_files: expected data.train_files or data.val_files, got other.parquet"):
        ours.SelectedDataset("other.parquet", None, config.data)


def test_methods_without_a_group_size(files, events):
    run("legacy", files, events, "data.dps_jax.method=uniform", "trainer.total_training_steps=2")
    assert len(of_kind(events, "select")) == 2


SAMPLER = "trainer.v1.sampler.custom_sampler"
NO_CALLBACK = "trainer.checkpoint_callback_class=null"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.v1.trainer_mode=colocate_async"], "trainer_mode: expected sync, got colocate_async"),
        (["data.custom_cls.path=null"], "data.custom_cls: expected SelectedDataset, got another class"),
        (["data.gen_batch_size=2"], "data.gen_batch_size: expected a batch of train_batch_size=4 .* got 2"),
        (["algorithm.filter_groups.enable=True"], "data.gen_batch_size: .* got 1; leave it at null, and algorithm"),
    ],
)
def test_v1_options_that_are_refused(queue, files, events, monkeypatch, options, message):
    monkeypatch.setattr(ours, "_training_set", None)
    options = [*options, NO_CALLBACK] if has_callback() else options
    with pytest.raises(ValueError, match=message):
        run("v1", files, events, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.v1.trainer_mode=separate_async"], "trainer_mode: expected sync, got separate_async"),
        (["algorithm.filter_groups.enable=True"], "algorithm.filter_groups.enable: expected False, got True"),
        (["trainer.v1.sampler.sync_refill_failed_groups=True"], "sync_refill_failed_groups: expected False"),
        ([f"{SAMPLER}.path=null", f"{SAMPLER}.name=null"], "custom_sampler: expected ObservedReplayBuffer; set"),
    ],
)
def test_the_callback_looks_at_all_options(files, options, message):
    if not has_callback():
        pytest.skip("verl before 0.9.1 has no checkpoint callback")
    config = cpu().composed(files, [*cpu().OUR_OPTIONS, *cpu().OUR_V1_OPTIONS, *options])
    with pytest.raises(ValueError, match=message):
        ours.SelectorCheckpoint(config)


def test_a_batch_without_outcomes_ends_the_run(queue, files, events):
    with pytest.raises(
        ValueError, match=r"data.custom_cls: expected the outcomes of a batch .* set trainer.v1.sampler"
    ):
        run("v1", files, events, ours=False)
    assert len(of_kind(events, "rollout")) == 1


def test_versions(monkeypatch):
    cpu()
    monkeypatch.delitem(vars(ours), "SelectedDataset", raising=False)
    for found in ("0.6.1", "0.10.0"):
        monkeypatch.setattr(_versions.metadata, "version", lambda name, found=found: found)
        with pytest.raises(ValueError, match=f"verl: expected a release from 0.7 on and before 0.10, got {found}"):
            _ = ours.SelectedDataset
    with pytest.raises(AttributeError, match="has no attribute 'Dataset'"):
        _ = ours.Dataset


def test_agent_loops_read_the_class_without_jax():
    cpu()
    program = "import sys; from dps_jax.integrations.verl import SelectedDataset; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=os.environ, timeout=120)


def test_the_example(capsys):
    cpu()
    example = importlib.import_module("verl_run")
    events = example.main(**vars(example.parsed(["--legacy", "--steps", "2", "--method", "dps"])))
    assert [kind for kind, _ in events] == ["rollout", "update"] * 2
    written = capsys.readouterr().out
    assert "verl.trainer.main_ppo" in written
    assert "'+data.dps_jax.group_size=${actor_rollout_ref.rollout.n}'" in written
    with pytest.raises(SystemExit):
        example.parsed(["--help"])
    assert "verl's trainer, data set" in capsys.readouterr().out


def test_the_options_at_the_top_are_those_that_run():
    for option in (*cpu().OUR_OPTIONS, *cpu().OUR_V1_OPTIONS, cpu().OUR_CALLBACK):
        assert option in ours.__doc__
