import pathlib
import re

import numpy as np

from dps_jax import grading

DOCUMENT = (pathlib.Path(__file__).parents[2] / "docs" / "grading.md").read_text()
FIRST, BIOMEDICAL, RESOLVE = re.findall(r"```python[^\n]*\n(.*?)```", DOCUMENT, re.DOTALL)


def test_the_first_example_runs():
    names = {}
    exec(compile(FIRST, "docs/grading.md", "exec"), names)
    assert names["grades"].is_correct.tolist() == [True, False]
    assert names["grades"].rewards.tolist() == [1.0, 0.0]


def test_the_grader_of_the_document_can_be_used(tmp_path, monkeypatch):
    (tmp_path / "biomedical.py").write_text(BIOMEDICAL)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"grading": grading}
    exec(compile(RESOLVE, "docs/grading.md", "exec"), names)
    assert names["spec"].rules.startswith("Choose one of the options.")
    completions = [
        "The answer is (B).",
        "Is it A? The answer is c",
        "answer: D",
        "B",
        "The answer is A. No, answer: (B)",
    ]
    with grading.GraderPool(names["spec"], num_processes=1) as pool:
        grades = pool.submit(completions, ["B"] * 5, [{"near_misses": ["C"]}] * 5).result()
    assert grades.is_correct.tolist() == [True, False, False, False, True]
    np.testing.assert_array_equal(grades.rewards, np.float32([1.0, 0.2, 0.0, 0.0, 1.0]))


def test_the_table_has_every_grader():
    table = DOCUMENT.partition("## Built-in graders")[2].partition("\n\n`reasoning-gym:TASK`")[0]
    names = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert names == ["exact", "numeric", "countdown", "math-verify", "reasoning-gym", "module:function"]
