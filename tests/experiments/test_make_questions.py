import importlib
import json
import re

import pytest

from dps_jax import grading


@pytest.fixture
def make_questions(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    return importlib.import_module("make_questions")


def read(folder):
    return [
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test")
    ]


def test_sums_are_right_and_the_splits_have_none_in_common(make_questions, tmp_path):
    config = make_questions.Config(num=300, num_test=100, seed=3, out=tmp_path / "sums")
    train, test = read(make_questions.main(config))
    assert (len(train), len(test)) == (300, 100)
    pairs = []
    for row in train + test:
        first, second = map(int, re.fullmatch(r"What is (\d+) \+ (\d+)\?", row["prompt"]).groups())
        assert row["answer"] == str(first + second)
        digits = sorted(len(str(number)) for number in (first, second))
        assert row["group"] == f"digits {digits[0]} and {digits[1]}"
        pairs.append((min(first, second), max(first, second)))
    assert len(set(pairs)) == 400
    assert {row["group"] for row in test} == {"digits 1 and 1", "digits 1 and 2", "digits 2 and 2"}
    again = make_questions.main(make_questions.Config(num=300, num_test=100, seed=3, out=tmp_path / "again"))
    assert read(again) == [train, test]
    other = make_questions.main(make_questions.Config(num=300, num_test=100, seed=4, out=tmp_path / "other"))
    assert read(other) != [train, test]


def test_solved_sums_stand_in_front_and_are_not_asked(make_questions, tmp_path):
    config = make_questions.Config(num=40, num_test=5, style="equation", examples=3, out=tmp_path)
    train, test = read(make_questions.main(config))
    examples = {tuple(row["prompt"].split("\n")[:3]) for row in train + test}
    assert len(examples) == 1
    solved = [re.fullmatch(r"(\d+)\+(\d+)=(\d+)", line).groups() for line in examples.pop()]
    assert all(int(one) + int(other) == int(total) for one, other, total in solved)
    asked = []
    for row in train + test:
        one, other = map(int, re.fullmatch(r"(\d+)\+(\d+)=", row["prompt"].split("\n")[3]).groups())
        assert row["answer"] == str(one + other)
        asked.append((min(one, other), max(one, other)))
    assert not {(min(int(a), int(b)), max(int(a), int(b))) for a, b, _ in solved} & set(asked)
    with pytest.raises(ValueError, match=r"examples: expected an integer >= 0 and <= 20, got -1"):
        make_questions.Config(examples=-1)
    with pytest.raises(ValueError, match="style: expected"):
        make_questions.Config(style="plain")


def test_all_sums_of_one_digit_can_be_had(make_questions, tmp_path):
    train, test = read(make_questions.main(make_questions.Config(num=50, num_test=5, digits=1, out=tmp_path)))
    assert len({row["prompt"] for row in train + test}) == 55  # 10 * 11 / 2
    with pytest.raises(ValueError, match="num: expected at most 55 distinct questions in all, got 56; ask for fewer"):
        make_questions.main(make_questions.Config(num=50, num_test=6, digits=1, out=tmp_path))


def test_entries_of_reasoning_gym_are_graded_from_the_file(make_questions, tmp_path):
    options = '{"min_terms": 2, "max_terms": 3}'
    config = make_questions.Config(
        task="reasoning-gym:chain_sum", num=20, num_test=10, config=options, group_by="num_terms", out=tmp_path
    )
    train, test = read(make_questions.main(config))
    rows = train + test
    assert len({row["prompt"] for row in rows}) == 30
    assert {row["group"] for row in rows} == {"num_terms 2", "num_terms 3"}
    assert {row["data_source"] for row in rows} == {"reasoning_gym/chain_sum"}
    with grading.GraderPool(grading.resolve("reasoning-gym"), num_processes=1) as pool:
        answers = [row["answer"] for row in rows]
        right = pool.submit(answers, answers, rows).result()
        wrong = pool.submit([answer + "1" for answer in answers], answers, rows).result()
    assert right.is_correct.all()
    assert not wrong.is_correct.any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": "products"}, "task: expected 'sums' or 'reasoning-gym:TASK', got 'products'"),
        ({"num": 0}, "num: expected an integer >= 1, got 0"),
        ({"num_test": -1}, "num_test: expected an integer >= 0, got -1"),
        ({"digits": 10}, "digits: expected an integer >= 1 and <= 9, got 10"),
        ({"task": "reasoning-gym:nope"}, "task: expected one of .*chain_sum.*, got 'nope'"),
        ({"config": "{"}, "config: expected a JSON object, got '{'"),
        ({"config": '{"seed": 3}'}, "config: expected a JSON object without seed and size, got"),
        ({"config": '{"terms": 3}'}, "config: expected options of 'chain_sum', got .*terms"),
        ({"config": '{"min_terms": -3}'}, "config: expected options of 'chain_sum', got .*min_terms"),
        ({"group_by": "level"}, "group_by: expected one of difficulty, expression, .*, got 'level'"),
    ],
)
def test_bad_options_are_refused(make_questions, tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        make_questions.main(
            make_questions.Config(**{"task": "reasoning-gym:chain_sum", "num": 3, "out": tmp_path, **options})
        )
