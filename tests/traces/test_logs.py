"""What trainers write: a row per completion, under their names, in their files and folders."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from dps_jax.traces import ColumnNames, read_named_trace, read_trace, write_trace
from dps_jax.traces.replay import visits_of
from tests.traces.test_format import random_trace, save

# Steps 10 and 20; "a?" was solved 1 of 2 and then 2 of 2, "b?" 0 of 2.
STEPS = [10, 10, 10, 10, 20, 20]
PROMPTS = ["a?", "a?", "b?", "b?", "a?", "a?"]
CORRECT = [1, 0, 0, 0, 1, 1]
SEEN = [(0, 0, 1, 2), (0, 1, 0, 2), (1, 0, 2, 2)]


def seen(path, columns=None, **options):
    """Returns (round, position of the prompt, successes, count) of every visit."""
    visits = visits_of(read_trace(path, columns, **options))
    return list(zip(*(column.tolist() for column in visits[:4]), strict=True))


def write_lines(path, rows):
    text = "\n".join(map(json.dumps, rows)) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def verl_rows(rounds=STEPS):
    """Returns what verl writes, the score shaped."""
    columns = zip(rounds, PROMPTS, CORRECT, strict=True)
    return [
        {"input": prompt, "output": "x", "gts": "1", "score": 0.1 + right, "step": step, "acc": bool(right)}
        for step, prompt, right in columns
    ]


def trl_columns(**more):
    return {"step": STEPS, "prompt": PROMPTS, "completion": ["x"] * 6} | more | {"advantage": [0.5] * 6}


@pytest.mark.parametrize("name", ["rollouts.jsonl", "rollouts.jsonl.gz"])
def test_a_log_of_verl(tmp_path, name):
    assert seen(write_lines(tmp_path / name, verl_rows())) == SEEN


def test_a_folder_of_verl_with_numbers_for_steps(tmp_path):
    rows = verl_rows()
    for row in rows:
        del row["step"]
    # In the order of numbers: 9 comes before 10.
    write_lines(tmp_path / "10.jsonl", rows[4:])
    write_lines(tmp_path / "9.jsonl", rows[:4])
    (tmp_path / "notes.txt").write_text("not a log")
    assert seen(tmp_path) == SEEN
    assert read_trace(tmp_path).rounds.tolist() == [9] * 4 + [10] * 2


@pytest.mark.parametrize("prompt", [lambda text: text, lambda text: [{"role": "user", "content": text}]])
def test_a_folder_of_trl(tmp_path, prompt):
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = trl_columns(accuracy_reward=[float(right) for right in CORRECT])
    columns |= {"step": [str(step) for step in STEPS], "prompt": [prompt(text) for text in PROMPTS]}
    table = pytest.importorskip("pyarrow").table(columns)
    for step, rows in ((10, table.slice(0, 4)), (20, table.slice(4))):
        parquet.write_table(rows, tmp_path / f"completions_{step:05d}.parquet")
    assert seen(tmp_path) == SEEN


def test_what_trl_itself_wrote():
    """Two steps of its GRPOTrainer with log_completions, two rewards, and a model with random weights."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = Path(__file__).parent / "data" / "trl-1.16.0"
    rows = [row for file in sorted(folder.iterdir()) for row in parquet.read_table(file).to_pylist()]
    assert len(rows) == 16
    trace = read_trace(folder)
    assert trace.rounds.tolist() == [row["step"] for row in rows]
    assert trace.successes.tolist() == [row["correct"] for row in rows]
    texts = list(dict.fromkeys(row["prompt"] for row in rows))
    assert trace.prompt_ids.tolist() == [texts.index(row["prompt"]) for row in rows]
    assert set(trace.counts.tolist()) == {1}
    by_length = read_trace(folder, ColumnNames(success="length"), threshold=0.4)
    assert by_length.successes.tolist() == [row["length"] >= 0.4 for row in rows]


def test_names_of_columns_are_column_names(tmp_path):
    save(tmp_path / "log.csv", trl_columns(accuracy=CORRECT))
    with pytest.raises(ValueError, match=r"columns: expected a ColumnNames, got \{'success': 'accuracy'\}"):
        read_trace(tmp_path / "log.csv", {"success": "accuracy"})


def test_one_of_several_rewards_is_named(tmp_path):
    path = tmp_path / "completions.csv"
    save(path, trl_columns(accuracy=CORRECT, format=[0.5] * 6))
    with pytest.raises(
        ValueError, match=r"completions.csv: expected one column with .*, got 'accuracy', 'format'; name the column"
    ):
        read_trace(path)
    assert seen(path, ColumnNames(success="accuracy")) == SEEN


def test_columns_of_other_names(tmp_path):
    path = tmp_path / "log.csv.gz"
    rows = ["epoch,uid,won,of", "3,77,1,2", "3,99,0,2", "8,77,2,2"]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    assert seen(path, ColumnNames(round="epoch", prompt="uid", successes="won", count="of")) == SEEN
    with pytest.raises(ValueError, match=r"log.csv.gz: columns.prompt: expected one of 'epoch', .*, got 'id'; use the"):
        read_trace(path, ColumnNames(prompt="id"))


def test_rewards_need_a_threshold_and_those_that_are_missing_are_left_out(tmp_path):
    columns = ColumnNames(success="score")
    path = write_lines(tmp_path / "log.jsonl", verl_rows())
    with pytest.raises(ValueError, match=r"log.jsonl: score: expected 0 or 1, got 1.1 in line 1; set a threshold"):
        read_trace(path, columns)
    assert seen(path, columns, threshold=1.1) == SEEN
    assert seen(path, columns, threshold=0.1) == [(0, 0, 2, 2), (0, 1, 2, 2), (1, 0, 2, 2)]
    rows = verl_rows()
    rows[1]["score"], rows[5]["score"] = None, float("nan")
    path = write_lines(tmp_path / "log.jsonl", rows)
    assert seen(path, columns, threshold=1) == [(0, 0, 1, 1), (0, 1, 0, 2), (1, 0, 1, 1)]
    with pytest.raises(ValueError, match=r"threshold: expected a finite number .*nan"):
        read_trace(path, columns, threshold=float("nan"))
    write_trace(tmp_path / "groups.npz", random_trace(3))
    with pytest.raises(
        ValueError, match=r"groups.npz: threshold: expected None for a row per completion group, got 0.5"
    ):
        read_trace(tmp_path / "groups.npz", threshold=0.5)


def test_a_blank_reward_of_a_text_file_is_none(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,prompt,reward\n1,a?,1\n1,a?,\n1,b?,0\n")
    assert seen(path) == [(0, 0, 1, 1), (0, 1, 0, 1)]


def test_places_are_those_in_the_file(tmp_path):
    path = tmp_path / "log.npz"
    np.savez(path, round=[0, 0, -1], prompt_id=[1, 2, 3], success=[np.nan, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"log\.npz: round: expected values in .*, got -1 at position 2"):
        read_trace(path)


def test_prompts_are_texts_where_groups_are_rows_too(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("round,prompt,successes,count\n0,a?,1,2\n0,b?,2,2\n1,a?,0,2\n")
    assert seen(path) == [(0, 0, 1, 2), (0, 1, 2, 2), (1, 0, 0, 2)]


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_prompt_ids_may_be_texts(tmp_path, suffix):
    columns = {"round": [0, 0, 1], "successes": [3, 0, 8], "count": [8, 8, 8]}
    path = tmp_path / f"trace{suffix}"
    save(path, columns | {"prompt_id": ["gsm8k/17", "math-2", "gsm8k/17"]})
    trace, names = read_named_trace(path)
    assert [names[number] for number in trace.prompt_ids] == ["gsm8k/17", "math-2", "gsm8k/17"]
    assert trace.successes.tolist() == [3, 0, 8]
    # A text among numbers is taken for a mistake.
    save(path, columns | {"prompt_id": ["17", "math-2", "17"]})
    with pytest.raises(ValueError, match=rf"{path.name}: prompt_id: expected integers"):
        read_trace(path)


def test_texts_of_digits_are_numbers_only_where_they_are_written_alike(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,prompt,reward\n1,007,1\n1,7,0\n")
    assert seen(path) == [(0, 0, 1, 1), (0, 1, 0, 1)]


def test_one_file_of_a_folder_has_its_round_in_its_name(tmp_path):
    rows = [{"input": "a?", "acc": 1}, {"input": "b?", "acc": 0}]
    write_lines(tmp_path / "17.jsonl", rows)
    assert read_trace(tmp_path).rounds.tolist() == [17, 17]


def test_hashes_beyond_63_bits_and_below_0_are_names(tmp_path):
    rows = [{"step": 0, "input": prompt, "acc": 1} for prompt in (2**64 - 1, -5, 2**64 - 1)]
    assert seen(write_lines(tmp_path / "log.jsonl", rows)) == [(0, 0, 2, 2), (0, 1, 1, 1)]


def test_the_folder_of_a_run_is_its_trace(tmp_path):
    write_trace(tmp_path / "trace.npz", random_trace(9))
    write_lines(tmp_path / "metrics.jsonl", [{"round": 0}])
    np.testing.assert_array_equal(read_trace(tmp_path).successes, random_trace(9).successes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"expected a JSON object, got b'{' .* in line 2; correct it"),
        ("[" * 100_000, r"expected a JSON object, got b'\[+' .* in line 2; correct it"),
        ("[]", r"expected a JSON object, got b'\[\]' in line 2"),
        ('{"step": 1, "input": "a?"}', r"expected the keys of the first line, got no 'acc' in line 2"),
        ('{"step": 1.5, "input": "a?", "acc": 1}', r"round: expected whole numbers, got 1.5 in line 2"),
        (
            '{"step": ' + "9" * 400 + ', "input": "a?", "acc": 1}',
            r"round: expected values in .*, got 1.07.*e\+301 in line 2",
        ),
        ('{"step": 1, "input": null, "acc": 1}', r"input: expected a prompt as .*, got None in line 2"),
        ('{"step": 1, "input": 1.5, "acc": 1}', r"input: expected a prompt as .*, got 1.5 in line 2"),
        ('{"step": 1, "input": "a?", "acc": [1]}', r"acc: expected numbers, got \[1\] in line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "input": "a?", "acc": 1}\n' + row + "\n")
    with pytest.raises(ValueError, match=rf"log\.jsonl: {message}"):
        read_trace(path)


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected a folder with trace.npz, or with files .* got none; name the folder"
    ):
        read_trace(tmp_path)
    (tmp_path / "log.csv.gz").write_bytes(b"round,prompt_id\n")
    with pytest.raises(ValueError, match=r"log.csv.gz: .* damaged or not .csv.gz"):
        read_trace(tmp_path / "log.csv.gz")
    with pytest.raises(ValueError, match=r"log.jsonl: .* got no 'round' among 'input'.* ColumnNames\(round=.NAME.\)$"):
        read_trace(write_lines(tmp_path / "log.jsonl", [{"input": "a?"}]))
