"""The prompts of the next epoch from a log: rounds as they were, names, states, files that are whole."""

import gzip
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from dps_jax import PromptSelector, traces
from dps_jax.next_prompts import _command, _memory
from dps_jax.next_prompts._command import Config

NUM_ROWS, BATCH, GROUP = 24, 6, 4
ROWS = [{"question": f"What is {row} + 7?", "answer": row + 7, "tags": [row % 3, None]} for row in range(NUM_ROWS)]


def write_lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def epoch(first, num_rounds=3, name=lambda row: row):
    """Returns a row per completion of some rounds."""
    rows = []
    for step in range(first, first + num_rounds):
        rng = np.random.default_rng(step)
        for row in rng.permutation(NUM_ROWS)[:BATCH].tolist():
            for score in rng.binomial(1, row / NUM_ROWS, GROUP).tolist():
                rows.append({"step": step, "input": name(row), "output": "x", "acc": score})
    return rows


def observed(selector, rows, places=None):
    """Lets a selector observe rows of a log, round by round."""
    for step in sorted({row["step"] for row in rows}):
        mine = [row for row in rows if row["step"] == step]
        ids = [row["input"] if places is None else places[row["input"]] for row in mine]
        selector.observe_rows(ids, [row["acc"] for row in mine])
        selector.commit()
    return selector


def assert_same_knowledge(one, other):
    for name, value in one.predict().items():
        np.testing.assert_array_equal(other.predict()[name], value)
    assert one.metrics()["num_rounds"] == other.metrics()["num_rounds"]


@pytest.fixture
def files(tmp_path):
    """Returns a function that makes a config with files of this test, and calls the command."""
    write_lines(tmp_path / "data.jsonl", ROWS)

    def call(rows=None, **options):
        options = {"prompts": tmp_path / "data.jsonl", "out": tmp_path / "next.jsonl"} | options
        if rows is not None:
            options["rollouts"] = (write_lines(tmp_path / "log.jsonl", rows),)
        return _command.main(Config(**options))

    call.folder = tmp_path
    return call


def test_an_epoch_is_observed_round_by_round(files):
    state = files.folder / "state.npz"
    report = files(epoch(0), method="binomial_hmm", seed=5, state=state, with_predictions=True, num_prompts=BATCH)
    expected = observed(PromptSelector(NUM_ROWS, "binomial_hmm", seed=5 + 3, group_size=GROUP), epoch(0))
    assert_same_knowledge(PromptSelector.load(state), expected)
    chosen, predicted = expected.select(BATCH), expected.predict()
    columns = {name: predicted[name].astype(float).round(6) for name in ("p_informative", "success_rate")}
    rows = [ROWS[row] | {name: column[row] for name, column in columns.items()} for row in chosen]
    assert read_lines(files.folder / "next.jsonl") == rows
    seen = {row["input"] for row in epoch(0)}
    assert (report.num_rounds, report.num_new_rounds, report.num_observed, report.group_size) == (
        3,
        3,
        len(seen),
        GROUP,
    )
    assert report.num_unseen == len(set(chosen.tolist()) - seen)


def test_the_first_epoch_is_chosen_by_the_prior(files):
    report = files()
    lines = (files.folder / "next.jsonl").read_bytes().splitlines()
    assert len(lines) == report.num_chosen == report.num_unseen == NUM_ROWS // 4
    assert set(lines) < set((files.folder / "data.jsonl").read_bytes().splitlines())
    assert (report.method, report.num_rounds, report.group_size) == ("instructive", 0, 8)
    assert files.folder.joinpath("next.jsonl").read_bytes() == b"".join(line + b"\n" for line in lines)


def test_what_was_chosen_first_does_not_bind_what_comes_with_rollouts(files):
    state = files.folder / "state.npz"
    files(state=state, method="dps")
    report = files(epoch(0, name=lambda row: f"What is {row} + 7?"), state=state, key="question")
    assert (report.method, report.group_size, report.num_rounds) == ("dps", GROUP, 3)


def test_rounds_are_observed_once(files):
    state, out = files.folder / "state.npz", files.folder / "next.jsonl"
    options = {"method": "binomial_hmm", "state": state}
    files(epoch(0), **options)
    before, rows = PromptSelector.load(state), out.read_bytes()
    assert files(epoch(0), **options).is_repeated
    assert_same_knowledge(PromptSelector.load(state), before)
    assert out.read_bytes() == rows
    # A log that grows, and one that begins with step 0 anew.
    later = [row | {"step": row["step"] - 3} for row in epoch(3)]
    assert files([*epoch(0), *epoch(3)], **options).num_new_rounds == 3
    assert files(later, **options).num_new_rounds == 3
    expected = observed(PromptSelector(NUM_ROWS, "binomial_hmm", group_size=GROUP), epoch(0, 6))
    assert_same_knowledge(PromptSelector.load(state), observed(expected, later))


def test_epochs_without_a_state_differ_in_their_draws(files):
    files(num_prompts=NUM_ROWS)
    first = (files.folder / "next.jsonl").read_bytes()
    files([row | {"acc": 0} for row in epoch(0, 1)], num_prompts=NUM_ROWS)
    assert (files.folder / "next.jsonl").read_bytes() != first


@pytest.mark.parametrize(
    "name",
    [
        lambda row: f"What is {row} + 7?",
        lambda row: f"<|user|>\nWhat is {row} + 7?\n<|assistant|>\n",
        lambda row: f"system\nBe brief.\nuser\nWhat is {row} + 7?\nassistant\n",
    ],
    ids=["as it is", "in a template", "with a system prompt"],
)
@pytest.mark.parametrize("is_chat", [False, True], ids=["text", "messages"])
def test_prompts_named_by_their_text(files, name, is_chat):
    if is_chat:
        chat = lambda row: [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["question"]}]
        write_lines(files.folder / "data.jsonl", [row | {"question": chat(row)} for row in ROWS])
    report = files(epoch(0, name=name), key="question", state=files.folder / "state.npz", method="binomial_hmm")
    assert report.num_unknown == 0
    places = {name(row): row for row in range(NUM_ROWS)}
    expected = PromptSelector(NUM_ROWS, "binomial_hmm", seed=3, group_size=GROUP)
    expected = observed(expected, epoch(0, name=name), places)
    assert_same_knowledge(PromptSelector.load(files.folder / "state.npz"), expected)


def test_numbers_are_not_looked_for_within_others(files):
    write_lines(files.folder / "data.jsonl", [row | {"uid": number} for number, row in enumerate(ROWS)])
    rows = epoch(0, name=lambda row: row if row < 12 else 100 + row)
    report = files(rows, key="uid")
    assert report.num_observed == len({row["input"] for row in rows if row["input"] < 12})
    assert report.num_unknown == len({row["input"] for row in rows if row["input"] > 12})


def test_what_is_known_goes_with_the_key(files):
    state, name = files.folder / "state.npz", lambda row: f"What is {row} + 7?"
    options = {"key": "question", "state": state, "method": "binomial_hmm"}
    files(epoch(0, name=name), **options)
    old = PromptSelector.load(state).predict()["p_informative"]
    added = {"question": "q" * 200, "answer": 1, "tags": []}
    write_lines(files.folder / "data.jsonl", [added, *ROWS[::-1][:20]])
    report = files(epoch(0, name=name), **options)
    assert not report.is_repeated
    found = PromptSelector.load(state).predict()["p_informative"]
    np.testing.assert_array_equal(found[1:], old[::-1][:20])
    seen = {row["input"] for row in epoch(0, name=name)} & {row["question"] for row in ROWS[::-1][:20]}
    assert (report.num_rows, report.num_new_rounds, report.num_observed) == (21, 0, len(seen))
    # Prompts that are gone are left out of later rounds.
    later = files(epoch(3, name=name), **options)
    gone = {row["input"] for row in epoch(3, name=name)} & {row["question"] for row in ROWS[::-1][20:]}
    assert later.num_unknown == len(gone)
    assert later.num_rounds == 6


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.gz"])
def test_columns_stay_as_they_are(files, suffix):
    data, out = files.folder / f"data{suffix}", files.folder / f"next{suffix}"
    if suffix == ".jsonl.gz":
        write_lines(data, ROWS)
        files(epoch(0), prompts=data, out=out)
        found = [json.loads(line) for line in gzip.decompress(out.read_bytes()).splitlines()]
        assert all(row in ROWS for row in found)
        return
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(ROWS).append_column("raw", pyarrow.array([b"\x00"] * NUM_ROWS))
    table = table.replace_schema_metadata({"huggingface": "{}"})
    parquet.write_table(table, data)
    table = parquet.read_table(data)
    files(epoch(0), prompts=data, out=out, num_prompts=NUM_ROWS)
    found = parquet.read_table(out)
    assert found.schema.equals(table.schema, check_metadata=True)
    order = [row["answer"] - 7 for row in found.to_pylist()]
    assert sorted(order) == list(range(NUM_ROWS))
    assert found.equals(table.take(order))
    files(epoch(0), prompts=data, out=out, with_predictions=True)
    assert parquet.read_table(out).column_names == [*table.column_names, "p_informative", "success_rate"]


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_logs_of_other_formats(files, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rows = epoch(0)
    columns = [[row[name] for row in rows] for name in ("step", "input", "acc")]
    path = files.folder / f"trace{suffix}"
    traces.write_trace(path, traces.Trace(*map(np.array, columns), counts=np.ones(len(rows), int)))
    files(rollouts=(path,), state=files.folder / "state.npz", method="binomial_hmm")
    expected = observed(PromptSelector(NUM_ROWS, "binomial_hmm", seed=3, group_size=GROUP), rows)
    assert_same_knowledge(PromptSelector.load(files.folder / "state.npz"), expected)


def test_a_folder_of_trl_and_rewards_with_a_threshold(files, request):
    pytest.importorskip("pyarrow")
    log = request.config.rootpath / "tests" / "traces" / "data" / "trl-1.16.0"
    trace, texts = traces.read_named_trace(log)
    write_lines(files.folder / "data.jsonl", [{"prompt": text} for text in reversed(texts)])
    columns = traces.ColumnNames(success="length")
    report = files(rollouts=(log,), key="prompt", columns=columns, threshold=0.4)
    assert (report.num_rounds, report.num_observed) == (len(set(trace.rounds.tolist())), len(texts))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (epoch(0, name=lambda row: f"q{row}"), {}, r"log.jsonl: expected prompts as row numbers .*as --key"),
        (epoch(0, name=lambda row: 100 + row), {}, r"log.jsonl: expected row numbers .*in \[0, 24\), got prompt 12"),
        (
            epoch(0, name=lambda row: f"q{row}"),
            {"key": "question"},
            "log.jsonl: expected prompts as in the column 'que",
        ),
        ([{"step": 0, "input": None, "acc": 1}], {}, r"log.jsonl: input: expected a prompt .*, got None in line 1"),
        ([{"step": 0, "input": 1, "acc": 0.5}], {}, "log.jsonl: acc: expected 0 or 1, got 0.5 in line 1; set a thresh"),
        (None, {"key": "uid"}, "data.jsonl: key: expected a column of the file, one of 'question', 'answer', .*'uid'"),
        (None, {"num_prompts": 0}, "num_prompts: expected an integer >= 1 and <= 24, got 0"),
        (None, {"num_prompts": 25}, "num_prompts: expected an integer >= 1 and <= 24, got 25"),
        (None, {"method": "best"}, "method: expected one of .*'dps'.*, got 'best'"),
        (None, {"group_size": 0}, "group_size: expected an integer >= 1"),
        (None, {"seed": -1}, "seed: expected an integer >= 0"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(files, rows, options, message):
    (files.folder / "next.jsonl").write_text("old\n")
    with pytest.raises(ValueError, match=message):
        files(rows, state=files.folder / "state.npz", **options)
    assert (files.folder / "next.jsonl").read_text() == "old\n"
    assert not (files.folder / "state.npz").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"out": "next.parquet"}, "out: expected a file that ends in .jsonl, as --prompts does, got .*next.parquet"),
        ({"prompts": "data.txt"}, r"data.txt: expected a file that ends in one of .parquet, .jsonl, .*, got '.txt'"),
        ({"out": "data.jsonl"}, "out: expected another file than --prompts"),
        ({"out": "gone/next.jsonl"}, "out: expected an existing folder .*gone, got none; create it"),
        ({"state": "state.bin"}, "state: expected a file that ends in .npz, got"),
    ],
)
def test_bad_paths_are_refused(files, names, message):
    with pytest.raises(ValueError, match=message):
        files(**{name: files.folder / value for name, value in names.items()})
    assert (files.folder / "data.jsonl").read_text().count("\n") == NUM_ROWS


@pytest.mark.parametrize(
    ("rows", "key", "message"),
    [
        ([*ROWS, ROWS[3]], "question", r"question: expected a name of its own .*'What is 3 \+ 7\?' in rows 3 and 24"),
        ([*ROWS, {"question": None}], "question", "question: expected a prompt .*, got None in line 25"),
        ([*ROWS, {"answer": 1}], "question", "expected the keys of the first line, got no 'question' in line 25"),
        ([], None, "data.jsonl: expected a row per prompt, got an empty file"),
        ([ROWS[0], 5], None, "data.jsonl: expected a JSON object, got b'5' in line 2"),
    ],
)
def test_bad_data_files_are_refused(files, rows, key, message):
    write_lines(files.folder / "data.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        files(key=key)


def test_predictions_do_not_replace_columns(files):
    write_lines(files.folder / "data.jsonl", [row | {"success_rate": 1} for row in ROWS])
    with pytest.raises(ValueError, match="with_predictions: expected a file without a column 'success_rate'"):
        files(with_predictions=True)
    files()


def test_states_that_do_not_belong_are_refused(files):
    state = files.folder / "state.npz"
    files(epoch(0), state=state, method="binomial_hmm")
    content, rows = state.read_bytes(), (files.folder / "next.jsonl").read_bytes()
    for options, message in (
        (
            {"method": "dps"},
            r"state.npz: method: expected that of the state, 'binomial_hmm', got 'dps'; restore it, or",
        ),
        ({"group_size": 8}, r"state.npz: group_size: expected that of the state, 4, got 8"),
        ({"key": "question"}, r"state.npz: key: expected that of the state, None, got 'question'"),
    ):
        with pytest.raises(ValueError, match=message):
            files(state=state, **options)
    write_lines(files.folder / "data.jsonl", ROWS[::-1])
    with pytest.raises(
        ValueError, match=r"state.npz: expected .*data.jsonl with the rows .* in another order; .*--key"
    ):
        files(state=state)
    assert (state.read_bytes(), (files.folder / "next.jsonl").read_bytes()) == (content, rows)
    PromptSelector(NUM_ROWS).save(state)
    for damaged in (state.read_bytes(), content[: len(content) // 2], b"text"):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state.npz: expected a state that dps_jax.next_prompts wrote, got"):
            files(state=state)


@pytest.mark.parametrize("name", ["next.jsonl", "state.npz"])
def test_a_kill_while_a_file_is_written(files, name):
    """The old files stay whole, and the same call ends as if nothing had been."""
    state, out = files.folder / "state.npz", files.folder / "next.jsonl"
    options = {"state": state, "method": "binomial_hmm"}
    files(epoch(0), **options)
    old = state.read_bytes(), out.read_bytes()
    write_lines(files.folder / "log.jsonl", epoch(3))
    program = f"""
import os, signal, sys
sync, replace = os.fsync, os.replace
def killed(source, target):
    if str(target).endswith({name!r}):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
from dps_jax.next_prompts.__main__ import run
run()
"""
    arguments = ["--prompts", files.folder / "data.jsonl", "--out", out, "--state", state]
    arguments += ["--rollouts", files.folder / "log.jsonl"]
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert state.read_bytes() == old[0]
    if name == "next.jsonl":
        assert out.read_bytes() == old[1]
    files(epoch(3), **options)
    rows = out.read_bytes()
    state.write_bytes(old[0])
    files(epoch(3), **options)
    assert out.read_bytes() == rows
    assert len(_memory.read(state).digests) == 6
    assert not list(files.folder.glob(".*.partial"))
    expected = observed(PromptSelector(NUM_ROWS, "binomial_hmm", group_size=GROUP), epoch(0, 6))
    assert_same_knowledge(PromptSelector.load(state), expected)


def test_the_command_prints_what_it_did_or_what_is_wrong(files):
    log = write_lines(files.folder / "log.jsonl", epoch(0))
    call = [sys.executable, "-m", "dps_jax.next_prompts", "--prompts", str(files.folder / "data.jsonl")]
    call += ["--out", str(files.folder / "next.jsonl"), "--rollouts", str(log), "--method", "binomial_hmm"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert "3 rounds, 3 of them new; groups of 4" in done.stdout
    assert "6 rows by 'binomial_hmm'" in done.stdout
    assert done.stderr == ""
    wrong = subprocess.run([*call, "--columns.prompt", "uid"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")
    assert "columns.prompt: expected one of" in wrong.stderr
