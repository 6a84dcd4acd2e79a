import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dps_jax import hmm, models, tasks, traces
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.models import _weights
from dps_jax.training import _checkpoints, _run_log, _setup, _trainer
from dps_jax.training import _config as configs
from tests.training import runs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _shared(monkeypatch):
    runs.share_programs(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> configs.TrainConfig:
    config = runs.tiny(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        runs.share_programs(patch, has_figures=True)
        runs.run(config)
    return config


def test_run_writes_what_the_contract_says(whole):
    records = _run_log.read_metrics(whole.folder / "metrics.jsonl")
    assert [record["round"] for record in records] == list(range(6))
    expected = {"round", "rollouts", "completion_tokens", "effective_sample_ratio", "reward", "loss"}
    expected |= {"select_s", "rollout_s", "update_s"}
    assert all(expected <= record.keys() for record in records)
    assert all(record["rollouts"] == 16 for record in records)
    assert [record["round"] for record in records if "test_accuracy" in record] == [2, 5]
    trace = traces.read_trace(whole.folder / "trace.npz")
    assert trace.rounds.size == 6 * 4
    assert set(trace.counts) == {4}
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["rollouts"] == 6 * 16
    # Otherwise runs that go other ways would end alike.
    assert sum(record["grad_norm"] > 0 for record in records) > 2
    assert {"config.json", "training_curves.png", "checkpoints"} <= {path.name for path in whole.folder.iterdir()}


def spawn(folder: Path, num_rounds: int) -> subprocess.Popen:
    """Starts the script with the options of `runs.tiny`."""
    options = f"""--name run --num-rounds {num_rounds} --eval-every 3 --eval-samples 2 --checkpoint-every 2
        --task.num-train 50 --task.num-test 16 --task.broken 0 --selector.method dps --selector.pool-factor 4
        --rollout.batch-size 4 --rollout.group-size 4"""
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), "--out-dir", str(folder), *options.split()]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_rounds(process: subprocess.Popen, path: Path, num_rounds: int):
    for _ in range(1200):
        if path.exists() and path.read_bytes().count(b"\n") >= num_rounds:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError("no rounds were done")


def test_sigterm_saves_and_leaves_with_143(tmp_path):
    config = runs.tiny(tmp_path, num_rounds=100_000)
    process = spawn(tmp_path, 100_000)
    wait_for_rounds(process, config.folder / "metrics.jsonl", 3)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 143, text
    num_logged = len(_run_log.read_metrics(config.folder / "metrics.jsonl"))
    with _checkpoints.Checkpoints(config.folder / "checkpoints") as store:
        num_rounds = store.rounds()[-1]
    assert f"SIGTERM: saved after {num_rounds} rounds" in text
    # The record of a round that was stopped before its evaluation is in the checkpoint.
    assert num_logged in (num_rounds - 1, num_rounds)


def test_other_options_in_the_same_folder_are_refused(whole):
    changed = dataclasses.replace(whole, learner=configs.LearnerConfig(clip_low=0.1))
    with pytest.raises(ValueError, match=r"resume: .*learner\.clip_low = 0\.1 \(was 0\.2\).*--no-resume"):
        runs.run(changed)


def test_steps_that_are_not_finite_stop_the_run_and_another_rate_goes_on(tmp_path, monkeypatch):
    learner = lambda rate: configs.LearnerConfig(learning_rate=rate, max_skipped=3)
    config = runs.tiny(tmp_path, learner=learner(3e-4), checkpoint_every=1)
    parts = _setup.build(config)
    phases = copy.copy(_trainer.Phases(parts.round, parts.collect))
    compiled = phases._update

    def update(state, collection):
        is_bad, before = int(state.round_index) >= 2, jax.tree.map(jnp.copy, state.params)
        after, info = compiled(state, collection)
        if not is_bad:
            return after, info
        return after._replace(params=before), info._replace(num_skipped=jnp.int32(1), loss=jnp.float32(jnp.nan))

    phases._update = update
    with monkeypatch.context() as patch:
        patch.setattr(_trainer, "Phases", lambda *_: phases)
        message = r"round 4: expected finite .* the last 3 rounds.* loss nan.*after 2 rounds is kept.*learning-rate"
        with pytest.raises(_trainer.TrainingError, match=message):
            runs.run(config)
        # The same again comes to the same.
        with pytest.raises(_trainer.TrainingError, match=message):
            runs.run(config)
    records = _run_log.read_metrics(config.folder / "metrics.jsonl")
    assert [record["skipped_steps"] for record in records] == [0, 0, 1, 1]
    assert records[3]["loss"] is None
    # What led to it is not saved: it would be walked into again and again.
    with _checkpoints.Checkpoints(config.folder / "checkpoints") as store:
        assert store.rounds()[-1] == 2
    summary, text = runs.run(dataclasses.replace(config, learner=learner(1e-5)))
    assert "learner.learning_rate: 0.0003 until now, 1e-05 from here on" in text
    change = {"round": 2, "option": "learner.learning_rate", "was": 3e-4, "is": 1e-5}
    assert summary["changes"] == [change]
    assert json.loads((config.folder / "config.json").read_text())["changes"] == [change]
    assert summary["skipped_steps"] == 0


def test_run_without_reward_variance_warns_in_words(tmp_path):
    model = configs.ModelConfig(size="0.1m")
    _, text = runs.run(runs.tiny(tmp_path, num_rounds=12, eval_every=12, checkpoint_every=12, model=model))
    assert "no prompt was partially solved in the last 10 rounds" in text
    assert text.count("warning") == 1


BAD = {
    "rollout.batch_size: expected at most task.num_train = 3": {"task": configs.TaskConfig(num_train=3)},
    "rollout.group_size: expected at least 2": {"rollout": configs.RolloutConfig(batch_size=4, group_size=1)},
    "learner.num_minibatches: expected a divisor": {"learner": configs.LearnerConfig(num_minibatches=3)},
    r"learner.inclusion_weights: expected None with greedy selection by 'dps'.*--selector.temperature": {
        "learner": configs.LearnerConfig(inclusion_weights="self-normalised")
    },
    "learner.inclusion_weights: expected None with rollout.collection 'dynamic'": {
        "learner": configs.LearnerConfig(inclusion_weights="self-normalised"),
        "selector": configs.SelectorConfig(method="uniform"),
        "rollout": configs.RolloutConfig(batch_size=4, group_size=4, collection="dynamic"),
    },
    "name: expected the name of a folder": {"name": "a/b"},
    "num_rounds: expected an integer >= 1": {"num_rounds": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_config_is_refused(message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.tiny(tmp_path, **BAD[message])


def test_bad_parts_of_a_config_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"task\.name: expected one of .*countdown"):
        configs.TaskConfig(name="chess")
    with pytest.raises(ValueError, match=r"selector\.method: expected one of .*dps"):
        configs.SelectorConfig(method="best")
    with pytest.raises(ValueError, match=r"model\.weights: .* does not exist"):
        configs.ModelConfig(weights=tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"rollout\.temperature"):
        configs.RolloutConfig(temperature=0.0)
    with pytest.raises(ValueError, match=r"learner\.advantage: expected one of"):
        configs.LearnerConfig(advantage="ppo")
    with pytest.raises(ValueError, match=r"learner\.inclusion_weights: expected one of 'self-normalised', 'unbiased'"):
        configs.LearnerConfig(inclusion_weights="on")
    with pytest.raises(ValueError, match=r"learner\.inclusion_weights: .* with loss 'token-mean', got 'unbiased'"):
        configs.LearnerConfig(inclusion_weights="unbiased")
    message = r"selector\.temperature: expected none with selector\.method 'uniform', got 0\.5; .*'binomial_hmm', 'dps'"
    with pytest.raises(ValueError, match=message):
        configs.SelectorConfig(method="uniform", temperature=0.5)
    with pytest.raises(
        ValueError, match=r"selector\.prior: expected none with selector\.method 'history', got 'local'"
    ):
        configs.SelectorConfig(method="history", prior="local")
    with pytest.raises(ValueError, match="temperature: expected a finite number >= 0, got -1"):
        configs.SelectorConfig(method="dps", temperature=-1.0)
    with pytest.raises(ValueError, match=r"selector\.optimism: expected none with selector\.method 'dps', got 1\.0"):
        configs.SelectorConfig(method="dps", optimism=1.0)
    with pytest.raises(
        ValueError, match=r"selector\.thompson: expected none with selector\.method 'uniform', got True"
    ):
        configs.SelectorConfig(method="uniform", thompson=True)
    with pytest.raises(ValueError, match="value: expected one of 'informative', 'variance', got 'best'"):
        configs.SelectorConfig(method="dps", value="best")
    with pytest.raises(ValueError, match=r"selector\.pool_share: expected a number in \[0\.0, 1\.0\], got 1\.5"):
        configs.SelectorConfig(pool_share=1.5)
    with pytest.raises(
        ValueError, match=r"selector\.pool_factor: expected 0 along with selector\.max_wait = 9.*got 32"
    ):
        configs.SelectorConfig(method="dps", max_wait=9)
    with pytest.raises(ValueError, match=r"max_wait: expected at least num_prompts / batch_size = 13 rounds .* got 12"):
        runs.tiny(tmp_path, selector=configs.SelectorConfig(method="dps", max_wait=12, pool_factor=0))


def test_weights_of_another_vocabulary_are_refused(tmp_path):
    countdown = _setup.build(runs.tiny(tmp_path, task=configs.TaskConfig(name="countdown", num_train=50, num_test=16)))
    model = _setup.load_policy(
        runs.tiny(tmp_path, task=configs.TaskConfig(name="countdown", num_train=50)), countdown.task
    )
    _weights.save(model, tmp_path / "countdown.safetensors", {"task": "countdown"})
    config = runs.tiny(tmp_path, model=configs.ModelConfig(weights=tmp_path / "countdown.safetensors"))
    with pytest.raises(ValueError, match=r"model\.weights: expected the vocabulary of task 'chain_sum'"):
        _setup.build(config)


def test_weights_for_other_patches_are_refused(tmp_path):
    task = tasks.build("geometry")
    path = tmp_path / "text.safetensors"
    shape = models.DecoderConfig(vocab_size=len(task.vocabulary), **models.SIZES["0.1m"])
    _weights.save(models.Decoder(shape, rngs=nnx.Rngs(0)), path)
    options = {"task": configs.TaskConfig(name="geometry", num_train=50, num_test=16)}
    config = runs.tiny(tmp_path, model=configs.ModelConfig(weights=path), **options)
    with pytest.raises(
        ValueError, match=r"model\.weights: expected a model for patches of 28 bits.* of 0; make weights"
    ):
        _setup.build(config)
    policy = _setup.load_policy(runs.tiny(tmp_path, **options), task)
    assert policy.config.patch_bits == task.patch_bits == 28


def test_weighted_run_resumes_to_the_same_end_and_its_trace_has_probabilities(whole, tmp_path):
    config = runs.tiny(
        tmp_path / "weighted",
        num_rounds=4,
        selector=configs.SelectorConfig(method="binomial_hmm", temperature=0.5, pool_factor=4),
        learner=configs.LearnerConfig(inclusion_weights="unbiased", loss="fixed-length"),
    )
    runs.run(config)
    probs = traces.read_trace(config.folder / "trace.npz").inclusion_prob
    assert probs.shape == (4 * 4,)
    assert 0 < probs.min() <= probs.max() <= 16 / 50 + 1e-6
    halved = dataclasses.replace(config, out_dir=tmp_path / "halved")
    runs.run(runs.extended(halved, 3))
    runs.run(halved)
    runs.assert_same_end(config, halved)
    # Greedy selection has no inclusion probabilities.
    assert traces.read_trace(whole.folder / "trace.npz").inclusion_prob is None


@pytest.fixture(scope="module")
def refitted(tmp_path_factory) -> configs.TrainConfig:
    selector = configs.SelectorConfig(method="dps", pool_factor=4, refit_every=2, refit_window=4)
    config = runs.tiny(tmp_path_factory.mktemp("refitted"), selector=selector)
    with pytest.MonkeyPatch.context() as patch:
        runs.share_programs(patch)
        runs.run(config)
    return config


def test_refits_change_the_prior_and_are_timed(refitted):
    records = _run_log.read_metrics(refitted.folder / "metrics.jsonl")
    assert [record["round"] for record in records if "refit_s" in record] == [1, 3, 5]
    prior = TransitionPrior.load(refitted.folder / "prior.json")
    assert np.abs(prior.concentration - 1).max() > 0.1
    assert prior.decay != 0.7
    state = runs.final_state(refitted)
    np.testing.assert_allclose(state.selector.prior_counts[:, :, 0, 0], prior.concentration, rtol=1e-6)
    summary = json.loads((refitted.folder / "summary.json").read_text())
    assert summary["refit_seconds"] == pytest.approx(sum(record.get("refit_s", 0) for record in records))


def test_refitted_run_resumes_to_the_same_end(refitted, tmp_path):
    config = dataclasses.replace(refitted, out_dir=tmp_path)
    runs.run(runs.extended(config, 3))
    runs.run(config)
    runs.assert_same_end(config, refitted)
    one, other = (TransitionPrior.load(run.folder / "prior.json") for run in (config, refitted))
    np.testing.assert_array_equal(one.concentration, other.concentration)


@pytest.mark.parametrize("precision", [None, 6.0], ids=["binomial", "beta-binomial"])
def test_run_with_success_rates_in_its_prior_resumes_to_the_same_end(tmp_path, precision):
    path = tmp_path / "prior.json"
    emission = hmm.binomial([0.1, 0.4, 0.9], precision)
    TransitionPrior(np.array([0.5, 0.3, 0.2]), np.eye(3) + 0.5, emission=emission).save(path)
    config = runs.tiny(
        tmp_path / "whole",
        num_rounds=4,
        selector=configs.SelectorConfig(method="dps", pool_factor=4, prior=str(path), refit_every=2),
    )
    runs.run(config)
    halved = dataclasses.replace(config, out_dir=tmp_path / "halved")
    runs.run(runs.extended(halved, 3))
    runs.run(halved)
    runs.assert_same_end(config, halved)


def test_run_takes_a_prior_with_a_group_per_level(tmp_path):
    names = _setup.tasks.build("chain_sum").group_names
    groups = tuple(TransitionPrior(np.full(3, 1 / 3), np.eye(3) + 0.1 * (1 + index)) for index in range(len(names)))
    path = tmp_path / "prior.json"
    TransitionPrior(np.full(3, 1 / 3), np.eye(3) + 0.5, groups=groups).save(path)
    config = runs.tiny(
        tmp_path, num_rounds=2, selector=configs.SelectorConfig(method="dps", pool_factor=4, prior=str(path))
    )
    runs.run(config)
    with np.load(config.folder / "prompts.npz") as known:
        np.testing.assert_array_equal(runs.final_state(config).selector.group_ids, known["groups"])
    other = tmp_path / "other.json"
    TransitionPrior(np.full(3, 1 / 3), np.eye(3) + 0.5, groups=groups[:1]).save(other)
    selector = configs.SelectorConfig(method="dps", pool_factor=4, prior=str(other))
    if len(names) > 1:
        with pytest.raises(ValueError, match=r"selector\.prior: expected a prior with a group for each of the"):
            _setup.build(dataclasses.replace(config, selector=selector))
    with pytest.raises(ValueError, match=r"selector\.refit_every: expected 0 with a prior of 1 groups"):
        configs.SelectorConfig(method="dps", prior=str(other), refit_every=5)
    with pytest.raises(ValueError, match=r"selector\.refit_every: expected none with selector.method 'uniform'"):
        configs.SelectorConfig(method="uniform", refit_every=5)
