import datetime
import decimal
import gzip
import json
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from dps_jax import text
from tests.test_damaged_files import LOSSES, refusal

VERL = [
    {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{row} + {{x}}?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(row)},
        "extra_info": {"index": row, "split": "train", "level": row % 2},
    }
    for row in range(3)
]
PLAIN = [{"prompt": f"{row} + {{x}}?", "answer": row, "group": f"level {row}", "note": None} for row in range(3)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, rows):
    """Writes rows in the format that the name of the file asks for."""
    if path.name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, write_page_checksum=True)
    else:
        content = json.dumps(rows, indent=1).encode() if ".json" in path.suffixes else jsonl(rows)
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_both_forms_in_every_format(name, tmp_path):
    found = text.read_questions(write(tmp_path / name, VERL))
    assert found == [
        text.Question(
            messages=tuple(row["prompt"]),
            answer=row["reward_model"]["ground_truth"],
            source="openai/gsm8k",
            group=None,
            info={name: row[name] for name in ("ability", "reward_model", "extra_info")},
        )
        for row in VERL
    ]
    found = text.read_questions(write(tmp_path / name, PLAIN))
    assert found == [
        text.Question(({"role": "user", "content": f"{row} + {{x}}?"},), row, "", f"level {row}", {"note": None})
        for row in range(3)
    ]


def test_a_json_file_may_have_lines_and_blank_ones(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + jsonl(PLAIN[:1]) + b"\n  \n" + jsonl(PLAIN[1:]))
    assert [question.answer for question in text.read_questions(tmp_path / "a.json")] == [0, 1, 2]


def test_several_files_and_folders_in_order(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in (10, 9):
        write(folder / f"part-{number}.jsonl", [{"prompt": "What?", "answer": number}])
    (folder / "notes.txt").write_text("no rows")
    (folder / ".hidden.jsonl").write_text("no rows")
    first = write(tmp_path / "first.parquet", [{"prompt": "What?", "answer": 1}])
    found = text.read_questions([str(first), folder])
    assert [question.answer for question in found] == [1, 9, 10]


def test_columns_of_other_names(tmp_path):
    rows = [{"q": "1 + 1?", "meta.x": "flat", "key": {"value": [2, {"two": 2}]}, "prompt": "no", "answer": "no"}]
    columns = {"prompt": "q", "answer": "key.value", "source": "meta.x", "group": "answer"}
    (found,) = text.read_questions(write(tmp_path / "a.jsonl", rows), columns=columns)
    assert found.messages[0]["content"] == "1 + 1?"
    assert (found.answer, found.source, found.group) == ([2, {"two": 2}], "flat", "no")
    assert found.info == {"key": {"value": [2, {"two": 2}]}, "prompt": "no"}


def test_groups_are_texts(tmp_path):
    groups = [3, 3.0, 2.5, " a ", "", None, float("nan"), True]
    rows = [{"prompt": "What?", "answer": 1, "group": group} for group in groups]
    found = text.read_questions(write(tmp_path / "a.jsonl", [*rows, {"prompt": "What?", "answer": 1}]))
    assert [question.group for question in found] == ["3", "3", "2.5", "a", None, None, None, "True", None]


def test_what_json_does_not_have_is_converted(tmp_path):
    row = {
        "prompt": "What?",
        "answer": decimal.Decimal("1.50"),
        "day": datetime.date(2026, 1, 2),
        "image": b"\x00",
        "scores": [0.5, float("inf")],
    }
    (found,) = text.read_questions(write(tmp_path / "a.parquet", [row]))
    assert found.answer == "1.50"
    assert found.info == {"day": "2026-01-02", "image": None, "scores": [0.5, None]}
    json.dumps(found.info, allow_nan=False)


def test_template_goes_to_the_last_message_of_the_user(tmp_path):
    path = write(tmp_path / "a.jsonl", PLAIN[:1])
    template = "{reward_rules}: {prompt} \\boxed{} {{prompt}} {{ x }} {0} {prompt}"
    (found,) = text.read_questions(path, prompt_template=template, rules="Be {right}")
    assert found.messages == (
        {"role": "user", "content": "Be {right}: 0 + {x}? \\boxed{} {prompt} {{ x }} {0} 0 + {x}?"},
    )
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = write(tmp_path / "a.jsonl", [{"prompt": messages, "answer": 1}])
    (found,) = text.read_questions(path, prompt_template="<{prompt}>")
    assert [message["content"] for message in found.messages] == ["one", "two", "<three>", "four"]


def test_a_system_prompt_comes_first_and_replaces_one(tmp_path):
    for rows in (PLAIN, VERL):
        path = write(tmp_path / "a.parquet", rows)
        found = text.read_questions(path, system_prompt="Graded so: {reward_rules} {}", rules="1 if right")
        for row, question in enumerate(found):
            assert question.messages == (
                {"role": "system", "content": "Graded so: 1 if right {}"},
                {"role": "user", "content": f"{row} + {{x}}?"},
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt_template": "{prompt} {answer}"},
            r"prompt_template: .* among \{prompt\}, \{reward_rules\}, got \{ans",
        ),
        ({"prompt_template": "{prompt} {answer}"}, r"got \{answer\}; correct it, or write \{\{answer\}\} for the text"),
        ({"prompt_template": "Solve it."}, r"prompt_template: expected \{prompt\} in it, got 'Solve it.'; add it"),
        ({"prompt_template": None}, "prompt_template: expected a text, got None"),
        (
            {"prompt_template": "{prompt} {reward_rules}"},
            r"rules: expected a text, as prompt_template has \{reward_rul",
        ),
        ({"system_prompt": "{reward_rules}", "rules": " "}, r"rules: expected a text, as system_prompt has .*; state"),
        ({"system_prompt": "{prompt}"}, r"system_prompt: expected placeholders among \{reward_rules\}, got \{prompt\}"),
        ({"rules": 3}, "rules: expected a text, got 3"),
        ({"columns": {"question": "q"}}, "columns: expected options among answer, group, prompt, source, got question"),
        ({"columns": {"prompt": 3}}, r"columns\['prompt'\]: expected a text, got 3"),
        ({"columns": ["prompt"]}, "columns: expected a Mapping"),
        (
            {"columns": {"prompt": "question"}},
            r"a.jsonl: prompt: expected a column question, got data_source, prompt, ability, reward_model.style, "
            r"reward_model.ground_truth, extra_info.index, .*; name the one to take, columns=\{\"prompt\": ...\}",
        ),
        ({"columns": {"group": "extra_info.topic"}}, "a.jsonl: group: expected a column extra_info.topic, got"),
        ({"columns": {"group": "extra_info"}}, r"a.jsonl: line 1: extra_info: expected a text or a number, got \{'ind"),
        ({"columns": {"prompt": "extra_info"}}, r"a.jsonl: line 1: extra_info: expected a text or a list of messages"),
    ],
)
def test_bad_arguments_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        text.read_questions(write(tmp_path / "a.jsonl", VERL), **options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": 1}, "prompt: expected a text or a list of messages, got none; convert it"),
        ({"prompt": 3, "answer": 1}, "prompt: expected a text or a list of messages, got 3"),
        ({"prompt": " \n", "answer": 1}, "prompt: expected a message of the user that is not blank, got none; leave"),
        ({"prompt": "a\ud800", "answer": 1}, "prompt: expected Unicode text"),
        ({"prompt": [], "answer": 1}, r"prompt: expected messages .*, got \[\]"),
        ({"prompt": ["What?"], "answer": 1}, r"prompt\[0\]: expected a mapping, got 'What\?'"),
        ({"prompt": [{"role": "user", "content": ["?"]}], "answer": 1}, r"prompt\[0\].content: expected a text, got"),
        ({"prompt": [{"role": "system", "content": "?"}], "answer": 1}, "prompt: expected a message of the user"),
        (
            {"prompt": [{"role": "user", "content": "?", "image": "a.png"}], "answer": 1},
            r"prompt\[0\]: expected a role and a content, got 'image' as well; remove it",
        ),
        ({"prompt": "What?"}, "answer: expected the right answer, got none; add it or leave the row out"),
        ({"prompt": "What?", "answer": None}, "answer: expected the right answer, got none"),
        ({"prompt": "What?", "answer": "  "}, "answer: expected the right answer, got none"),
        ({"prompt": "What?", "answer": float("nan")}, "answer: expected the right answer, got none"),
    ],
)
def test_bad_rows_are_refused_with_their_place(row, message, tmp_path):
    path = write(tmp_path / "a.jsonl", [PLAIN[0], row])
    with pytest.raises(ValueError, match=rf"a\.jsonl: line 2: {message}"):
        text.read_questions([path, path])
    path = write(tmp_path / "a.json", [PLAIN[0], row])
    with pytest.raises(ValueError, match=rf"a\.json: row 1 \(the first is 0\): {message}"):
        text.read_questions(path)


def test_a_row_without_a_ground_truth_in_verls_form(tmp_path):
    rows = [*VERL, VERL[0] | {"reward_model": {"style": "rule", "ground_truth": None}}]
    path = write(tmp_path / "a.parquet", rows)
    with pytest.raises(ValueError, match=r"a.parquet: row 3 .*: reward_model.ground_truth: expected the right answer"):
        text.read_questions(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: expected rows of questions, got an empty file; write it again, or leave it out"),
        ("a.json", b"[]", "a.json: expected rows of questions, got an empty file"),
        (
            "a.jsonl",
            jsonl(PLAIN) + b'{"prompt": ',
            r"line 4: expected a JSON object, got b'\{\"prompt\": ' \(.*; correct",
        ),
        ("a.jsonl", jsonl(PLAIN) + b"[1]\n", r"line 4: expected a JSON object, got b'\[1\]'; correct the line or"),
        ("a.json", b"[{}, 3]", r"a.json: row 1 \(the first is 0\): expected a JSON object, got 3"),
        ("a.json", b"[{}, ", "a.json: expected rows of questions, got a file that is damaged"),
        ("a.txt", b"x", r"a.txt: expected a file that ends in one of .parquet, .jsonl, .*, got '.txt'; rename"),
    ],
)
def test_bad_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text.read_questions(tmp_path / name)


def test_missing_files_and_columns_of_one_name_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.jsonl: expected a file or folder of questions, got none; is the"):
        text.read_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r": expected a folder with files that end in .*, got none; name the folder"):
        text.read_questions(tmp_path)
    with pytest.raises(ValueError, match="paths: expected at least one file or folder, got none"):
        text.read_questions([])
    with pytest.raises(ValueError, match="paths: expected a path, got 3"):
        text.read_questions([3])
    table = pyarrow.table([["a"], ["b"], [1]], names=["prompt", "prompt", "answer"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: prompt: expected one column of this name, got several; rename"):
        text.read_questions(tmp_path / "a.parquet")


def test_pyarrow_is_asked_for_by_its_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", PLAIN)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a.parquet: expected pyarrow to be installed, .* extra `text`: pip install"):
        text.read_questions(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.jsonl.gz"])
def test_damaged_files_are_named(name, tmp_path):
    whole = write(tmp_path / name, VERL * 5).read_bytes()
    for damage, change in LOSSES.items():
        message = refusal(tmp_path / name, text.read_questions, change(whole))
        assert message is not None, damage
        assert name in message, (damage, message)
        assert "; " in message, (damage, message)  # a remedy
        assert len(message) < 1000, damage
    rng = np.random.default_rng(1)
    for _ in range(40):
        content = bytearray(whole)
        content[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        # Another letter is as good as the one that was there.
        message = refusal(tmp_path / name, text.read_questions, bytes(content))
        assert message is None or name in message, message
