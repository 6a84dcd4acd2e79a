import dataclasses
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import rl, text
from dps_jax.models import _attention
from dps_jax.training import _config as configs
from dps_jax.training import _host_rollout, _mesh, _run_log, _text_policy, _text_setup, _trainer
from dps_jax.training._phases import Phases
from dps_jax.training._round import make_round
from tests.training import runs, text_runs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return text_runs.make_model(folder / "model"), text_runs.make_sums(folder / "sums.jsonl")


@pytest.fixture(scope="module")
def parts(files, tmp_path_factory):
    found = _text_setup.build(text_runs.tiny(*files, tmp_path_factory.mktemp("unused")))
    yield found
    found.close()


class _Score(tuple):
    """What `rl.rollout` takes as a score."""

    is_correct = property(lambda self: self[0])
    rewards = property(lambda self: self[1])


def score_on_device(tokenizer, facts, completions):
    """Returns what the grader "exact" finds: one digit, the right one, then the end or nothing."""
    ends = jnp.array(tokenizer.end_ids)
    digit = facts[..., 0]
    is_end = jnp.isin(completions, ends)
    first, second = completions[..., 0], is_end[..., 1]
    is_correct = (first == digit) & second
    return _Score((is_correct, is_correct.astype(jnp.float32)))


@pytest.mark.parametrize("chunk_size", [4, 3])
def test_a_task_that_a_device_could_grade_gives_what_round_step_gives(files, tmp_path, chunk_size):
    config = text_runs.changed(text_runs.tiny(*files, tmp_path), "rollout", chunk_size=chunk_size)
    parts = _text_setup.build(config)
    tokenizer = text.load_tokenizer(files[0])
    how = parts.how
    sample = functools.partial(_text_policy.sample, parts.policy, group_size=4, temperature=1.0)
    log_probs = functools.partial(_text_policy.log_probs, parts.policy, 1.0)
    num_prompts = len(parts.prompts.tokens)
    selector = _text_setup.selectors.build("dps", num_prompts, prior=parts.prior, group_size=4)
    score = functools.partial(score_on_device, tokenizer)
    learner = config.learner.build(log_probs, num_prompts)
    whole = make_round(
        sample, score, log_probs, selector, learner, num_prompts=num_prompts, batch_size=4,
        pool_size=config.selector.pool_size(4, num_prompts),
    )  # fmt: skip
    digits = [tokenizer.encode(question.answer)[0] for question in parts.prompts.questions]
    problems = rl_problems(_host_rollout.padded(parts.prompts.tokens, how.buckets[-1]), digits)
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(0))
    expected = jax.tree.map(jnp.copy, state)
    phases, step = Phases(parts.round, parts.collect), jax.jit(whole.step)
    seen = 0
    for _ in range(3):
        picks = np.asarray(parts.round.select(expected).ids)
        state, collection, info, _ = phases.run(state)
        expected, expected_info = step(expected, problems)
        np.testing.assert_array_equal(np.sort(collection.ids), np.sort(picks))
        assert int(info.num_tokens) == int(expected_info.num_tokens)
        np.testing.assert_allclose(info.accuracy, expected_info.accuracy)
        np.testing.assert_allclose(info.update.loss, expected_info.update.loss, atol=1e-6)
        np.testing.assert_allclose(info.update.grad_norm, expected_info.update.grad_norm, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(info.confusion, expected_info.confusion)
        seen += int(collection.successes.sum())
    parts.close()
    assert seen > 0, "nothing was solved, so nothing was compared"
    # Adam turns rounding of a small gradient into more than that; chunks of another size round otherwise.
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if chunk_size == 4 else {"atol": 1e-4}
    compare = functools.partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(compare, state.params, expected.params)
    jax.tree.map(compare, state.selector, expected.selector)


def rl_problems(prompts, digits):
    class Problems(tuple):
        prompts = property(lambda self: self[0])
        facts = property(lambda self: self[1])

    jax.tree_util.register_pytree_node(Problems, lambda value: (tuple(value), None), lambda _, leaves: Problems(leaves))
    return Problems((jnp.asarray(prompts), jnp.asarray(digits, jnp.int32)[:, None]))


def test_completions_do_not_depend_on_chunks_and_buckets(parts):
    ids, key = np.array([3, 17, 5, 40, 9]), jax.random.key(3)
    roll_out = lambda **changes: jax.device_get(
        _host_rollout.roll_out(parts.how._replace(**changes), parts.params, ids, key)[0]
    )
    whole = roll_out(chunk_size=5, buckets=(40,))
    for changes in ({"chunk_size": 1}, {"chunk_size": 2, "buckets": (24, 40)}):
        found = roll_out(**changes)
        for name in ("ids", "completions", "mask", "is_correct", "rewards"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
        np.testing.assert_allclose(found.old_log_probs, whole.old_log_probs, atol=1e-5)
    assert np.all(whole.completions < parts.policy.num_tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_completions_are_sampled_in_stages(parts, dtype):
    policy = parts.policy._replace(completion_length=80, dtype=dtype, end_ids=(18,))
    prompts = _host_rollout.padded(parts.prompts.tokens[:3], parts.how.buckets[-1])
    keys = jax.random.split(jax.random.key(3), 3)
    found = _text_policy.sampler(policy, group_size=4, temperature=4.0)(parts.params, prompts, keys)
    one_program = jax.jit(functools.partial(_text_policy.sample, policy, group_size=4, temperature=4.0))
    expected = one_program(parts.params, prompts, keys)
    assert isinstance(found.tokens, np.ndarray)
    lengths = found.mask.sum(axis=-1)
    assert lengths.min() < 30
    assert lengths.max() > 40
    for one, other in zip(found[::2], expected[::2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_killed_run_goes_on_to_the_same_end_and_leaves_a_folder_of_a_model(files, tmp_path):
    config = text_runs.tiny(*files, tmp_path / "whole")
    console = runs.quiet()
    summary = _trainer.train(config, console)
    assert "52 prompts to train on, 8 held out" in console.file.getvalue()
    stopped = dataclasses.replace(config, out_dir=tmp_path / "stopped", num_rounds=3)
    _trainer.train(stopped, runs.quiet())
    _trainer.train(dataclasses.replace(stopped, num_rounds=4), runs.quiet())
    records = runs.timeless(config.folder / "metrics.jsonl")
    # Only the shorter run evaluates after its third round.
    once_more = runs.timeless(stopped.folder / "metrics.jsonl")
    names = [name for name in records[0] if not name.startswith(("test_", "predicted_success_rates"))]
    for one, other in zip(records, once_more, strict=True):
        assert {name: one[name] for name in names} == {name: other[name] for name in names}
    assert records[-1]["test_accuracy"] == once_more[-1]["test_accuracy"]
    assert {"grader_timed_out", "grader_raised", "grader_invalid", "grader_died"} <= records[0].keys()
    assert set(summary["test_accuracy_by_group"]) == {"large", "small"}
    again = text.load_tokenizer(config.folder / "policy")
    assert again.decode(again.encode("1+1")) == "1+1"
    loaded = _text_setup.models.load_pretrained(config.folder / "policy")
    other = _text_setup.models.load_pretrained(stopped.folder / "policy")
    np.testing.assert_array_equal(loaded(jnp.array([[1, 2, 3]])), other(jnp.array([[1, 2, 3]])))
    assert _run_log.read_metrics(config.folder / "metrics.jsonl")[0]["grade_wait_s"] >= 0


def test_dynamic_collection_grades_on_the_host_too(files, tmp_path):
    config = text_runs.changed(text_runs.tiny(*files, tmp_path), "rollout", collection="dynamic", max_batches=3)
    parts = _text_setup.build(config)
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(1))
    _, collection, info, more = Phases(parts.round, parts.collect).run(state)
    parts.close()
    num_batches = int(info.num_rollouts) // 16
    assert 1 <= num_batches <= 3
    tried = np.asarray(collection.ids)[: 4 * num_batches]
    assert np.unique(tried).size == tried.size
    is_used = np.asarray(collection.batch.is_used)
    assert num_batches == 3 or is_used.all()
    successes = np.asarray(collection.successes)
    kept = np.asarray(collection.batch.ids)[is_used]
    informative = tried[(successes[: tried.size] > 0) & (successes[: tried.size] < 4)]
    assert set(kept) <= set(informative)
    assert len(kept) == min(4, len(informative))
    assert more["grader_raised"] == 0


def test_a_grader_that_hangs_and_raises_is_counted_and_never_fatal(files, tmp_path):
    config = text_runs.tiny(*files, tmp_path, num_rounds=1)
    fields = {"name": "tests.training.bad_grader:grade", "time_limit_s": 0.3, "batch_limit_s": 3.0}
    parts = _text_setup.build(text_runs.changed(config, "grader", **fields, threshold=0.5))
    answers = [question.answer for question in parts.prompts.questions]
    ids = np.array([answers.index("4"), answers.index("2"), *np.flatnonzero(np.array(answers) == "3")[:2]])
    roll_out = functools.partial(_host_rollout.roll_out, parts.how, parts.params, ids, jax.random.key(0))
    roll_out()
    start = time.monotonic()
    batch, facts = roll_out()
    assert time.monotonic() - start < 3.0 + 2.0 + 3.0  # and sampling
    parts.close()
    batch = jax.device_get(batch)
    is_long = batch.mask.sum(axis=2)[2:] > 2
    assert (facts["grader_timed_out"], facts["grader_raised"], facts["grader_died"]) == (4, 4, 0)
    assert 0 < facts["grader_invalid"] < 8
    np.testing.assert_array_equal(batch.rewards[:2], 0)
    assert np.all(batch.rewards[2:][is_long] == 0)
    assert np.sum(batch.rewards == 0.5) == 8 - facts["grader_invalid"]
    np.testing.assert_array_equal(batch.is_correct, batch.rewards == 0.5)


def test_features_are_what_the_config_names(files, tmp_path):
    rows = [json.loads(line) for line in files[1].read_text().splitlines()]
    for index, row in enumerate(rows):
        row["data_source"] = ("one", "two")[index % 2]
    data = text_runs.write_rows(tmp_path / "two.jsonl", rows)
    np.save(tmp_path / "features.npy", np.arange(2.0 * len(rows)).reshape(-1, 2))
    config = text_runs.tiny(files[0], data, tmp_path)
    fields = {"features": ("length", "source", "log-prob"), "feature_file": tmp_path / "features.npy"}
    config = text_runs.changed(config, "prompts", **fields)
    parts = _text_setup.build(config)
    parts.close()
    numbers = [rows.index(next(row for row in rows if row["prompt"] == question.messages[-1]["content"]))
               for question in parts.prompts.questions]  # fmt: skip
    np.testing.assert_allclose(parts.features[:, 0], np.log(parts.prompts.lengths), rtol=1e-6)
    np.testing.assert_array_equal(parts.features[:, 1], np.array(numbers) % 2)
    model = _text_setup.models.load_pretrained(files[0])
    for row in (0, 7):
        tokens = parts.prompts.tokens[row]
        log_probs = jax.nn.log_softmax(model(tokens[None])[0, :-1, : parts.policy.num_tokens])
        expected = np.mean([log_probs[place, token] for place, token in enumerate(tokens[1:])])
        np.testing.assert_allclose(parts.features[row, 2], expected, atol=1e-4)
    np.testing.assert_array_equal(parts.features[:, 3:], np.arange(2.0 * len(rows)).reshape(-1, 2)[numbers])
    short = text_runs.changed(config, "prompts", feature_file=tmp_path / "short.npy")
    np.save(tmp_path / "short.npy", np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"short\.npy: expected a row of features for each of the rows .* got 3"):
        _text_setup.build(short)
    (tmp_path / "short.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"short\.npy: expected a \.npy file with features"):
        _text_setup.build(short)


def test_held_out_prompts_are_the_same_for_all_seeds_and_never_trained_on(files, tmp_path):
    first, second = (_text_setup.build(text_runs.tiny(*files, tmp_path, seed=seed)) for seed in (0, 1))
    for parts in (first, second):
        parts.close()
        of = lambda prompts: {tokens.tobytes() for tokens in prompts.tokens}
        assert not of(parts.prompts) & of(parts.test_prompts)
    assert of(first.test_prompts) == of(second.test_prompts)
    assert first.fingerprint == second.fingerprint


def test_other_data_under_a_checkpoint_is_refused(files, tmp_path):
    data = text_runs.write_rows(
        tmp_path / "sums.jsonl", [json.loads(line) for line in files[1].read_text().splitlines()]
    )
    config = text_runs.tiny(files[0], data, tmp_path, num_rounds=1)
    _trainer.train(config, runs.quiet())
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["answer"] = "9"
    text_runs.write_rows(data, rows)
    with pytest.raises(ValueError, match=r"data: expected the training prompts that .* was started with, got others"):
        _trainer.train(dataclasses.replace(config, num_rounds=2), runs.quiet())


BAD = [
    ("prompts", {"num_test": 0}, r"prompts\.num_test: expected an integer >= 1, got 0"),
    ("prompts", {"features": ("size",)}, r"prompts\.features: expected one of .*, got 'size'"),
    ("prompts", {"columns": ("prompt",)}, r"prompts\.columns: expected words NAME=VALUE, got 'prompt'"),
    ("prompts", {"too_long": "cut"}, r"prompts\.too_long: expected"),
    ("grader", {"time_limit_s": 0}, r"grader\.time_limit_s: expected a finite number > 0, got 0"),
    ("grader", {"options": ("a=1", "a=2")}, r"grader\.options: expected every option once, got 'a' twice"),
    ("rollout", {"completion_length": 0}, r"rollout\.completion_length: expected an integer >= 1, got 0"),
    ("rollout", {"chunk_size": 0}, r"rollout\.chunk_size: expected an integer >= 1, got 0"),
    ("rollout", {"stops": ("",)}, r"stops\[0\]: expected a text, got an empty one"),
]


@pytest.mark.parametrize(("part", "fields", "message"), BAD)
def test_bad_fields_are_refused(files, tmp_path, part, fields, message):
    config = text_runs.tiny(*files, tmp_path)
    with pytest.raises(ValueError, match=message):
        text_runs.changed(config, part, **fields)


def test_attention_is_checked_and_reaches_the_update(files, tmp_path, monkeypatch):
    config = text_runs.tiny(*files, tmp_path, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"attention: expected one of 'plain', .*, got 'flash'"):
        dataclasses.replace(config, attention="flash")
    with pytest.raises(ValueError, match=r"attention: expected 'blockwise' or 'plain' in float32, got 'cudnn'"):
        dataclasses.replace(config, attention="cudnn", dtype="float32")
    with pytest.raises(ValueError, match=r"attention: expected .* over 2 devices, got 'splash'"):
        dataclasses.replace(config, attention="splash", mesh=_mesh.MeshConfig(data=2))
    with pytest.raises(ValueError, match=r"attention: expected .* on the backend 'cpu', got 'cudnn', which needs"):
        _text_setup.build(dataclasses.replace(config, attention="cudnn"))
    called = []

    def noted(queries, seen, *, num_devices):
        called.append(queries.shape)
        return _attention.plain(queries, seen)

    monkeypatch.setitem(_attention.ATTENTIONS, "noted", noted)
    parts = _text_setup.build(dataclasses.replace(config, attention="noted"))
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(0))
    assert not called
    _, _, info, _ = Phases(parts.round, parts.collect).run(state)
    parts.close()
    assert bool(info.update.is_finite)
    # Two layers of the prompts and of the rest of their completions.
    assert {shape[1] for shape in called} == {1, 4}


def test_files_that_do_not_fit_are_named(files, tmp_path):
    config = text_runs.tiny(*files, tmp_path)
    build = lambda **changes: _text_setup.build(dataclasses.replace(config, **changes))
    with pytest.raises(ValueError, match=r"nowhere.*expected"):
        build(data=tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r"nowhere"):
        build(model=tmp_path / "nowhere")
    few = text_runs.make_sums(tmp_path / "few.jsonl", 6)
    with pytest.raises(ValueError, match=r"few\.jsonl: expected prompts to train on beside 6 that are held out"):
        build(data=few)
    with pytest.raises(ValueError, match=r"rollout\.batch_size: expected at most the number of prompts = 2, got 4"):
        _text_setup.build(text_runs.changed(dataclasses.replace(config, data=few), "prompts", num_test=4))
    with pytest.raises(ValueError, match="grader: expected one of"):
        _text_setup.build(text_runs.changed(config, "grader", name="math"))
    grown = text_runs.make_model(tmp_path / "grown")
    tokenizer = text_runs.make_tokenizer()
    tokenizer.add_special_tokens([f"<|more {index}|>" for index in range(text_runs.NUM_UNUSED + 1)])
    tokenizer.save(str(grown / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"grown.*expected"):
        build(model=grown)


def test_a_schedule_and_bfloat16_reach_the_update(files, tmp_path):
    config = text_runs.tiny(*files, tmp_path, dtype="bfloat16")
    learner = configs.LearnerConfig(learning_rate=1e-3, schedule="linear", warmup_rounds=2, decay_rounds=4)
    config = dataclasses.replace(config, learner=learner)
    rates = [float(learner.rate()(step)) for step in range(6)]
    np.testing.assert_allclose(rates, [5e-4, 1e-3, 1e-3, 5e-4, 0, 0], atol=1e-9)
    parts = _text_setup.build(config)
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(0))
    before = jax.tree.map(jnp.copy, state.params)
    state, collection, info, _ = Phases(parts.round, parts.collect).run(state)
    parts.close()
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert bool(info.update.is_finite)
    # Sampled and scored in the same type, the ratios are 1.
    scored, _ = _text_policy.log_probs(
        parts.policy, 1.0, before, collection.batch.prompts, collection.batch.completions
    )
    mask = np.asarray(collection.batch.mask)
    np.testing.assert_allclose(np.asarray(scored)[mask], np.asarray(collection.batch.old_log_probs)[mask], atol=0.05)


def test_plain_rewards_reach_the_learner(parts):
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(2))
    _, collection, _, _ = Phases(parts.round, parts.collect).run(state)
    batch = collection.batch
    assert isinstance(batch, rl.Batch)
    tokens = np.asarray(batch.completions)
    tokenizer = text.load_tokenizer(parts.policies.write.args[1])
    for row, index in enumerate(np.asarray(batch.ids)):
        for member in range(tokens.shape[1]):
            said = tokenizer.decode(tokens[row, member][np.asarray(batch.mask)[row, member]]).strip()
            is_right = said == parts.prompts.questions[int(index)].answer
            assert bool(batch.is_correct[row, member]) == is_right
