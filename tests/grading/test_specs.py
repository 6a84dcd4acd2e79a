import dataclasses
import pickle

import pytest

from dps_jax import grading

MODULE = "tests.grading.misbehaving"


@pytest.mark.parametrize(
    ("name", "options", "import_path"),
    [
        ("exact", {"ignore_case": True}, "dps_jax.grading.graders.exact:make"),
        ("numeric", {"relative_tolerance": 0.01}, "dps_jax.grading.graders.numeric:make"),
        ("countdown", {"format_reward": 0.1}, "dps_jax.grading.graders.countdown:make"),
        ("math-verify", {}, "dps_jax.grading.graders.math_verify:make"),
        (f"{MODULE}:Graders.nested", {}, f"{MODULE}:Graders.nested"),
    ],
)
def test_a_spec_is_frozen_and_pickles(name, options, import_path):
    spec = grading.resolve(name, **options)
    assert (spec.name, spec.import_path, spec.options) == (name, import_path, options)
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_rules_state_what_is_graded():
    for name in ("exact", "numeric", "countdown"):
        rules = grading.resolve(name).rules
        assert rules.endswith(".")
        assert 1 <= rules.count(". ") + 1 <= 3
    assert "letters" in grading.resolve("exact", ignore_case=True).rules
    assert grading.resolve(f"{MODULE}:grade").rules == "Do as the completion says."
    assert grading.resolve(f"{MODULE}:Graders.nested").rules == ""


def test_the_current_folder_is_importable(tmp_path, monkeypatch):
    (tmp_path / "grader_here.py").write_text("def grade(completion, answer, info):\n    return completion == answer\n")
    monkeypatch.chdir(tmp_path)
    with grading.GraderPool(grading.resolve("grader_here:grade"), num_processes=1) as pool:
        assert pool.submit(["a", "b"], ["a", "a"]).result().is_correct.tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        (3, {}, "grader: expected a name, got 3"),
        (
            "exakt",
            {},
            "grader: expected one of 'exact', 'numeric', 'math-verify', 'countdown', 'reasoning-gym', .*'exakt'",
        ),
        ("a b:c", {}, "an import path 'module:function', got 'a b:c'"),
        ("module:", {}, "an import path 'module:function', got 'module:'"),
        ("reasoning-gym:", {}, "expected 'reasoning-gym:TASK', got 'reasoning-gym:'; name a task"),
        ("reasoning-gym:no_task", {}, "task: expected one of .*chain_sum.*, got 'no_task'"),
        ("__main__:grade", {}, "other processes can import, got '__main__:grade'; put it into a file of its own"),
        ("exact", {"case": True}, "grader 'exact': expected options among ignore_case, got case"),
        ("exact", {"ignore_case": 1}, "ignore_case: expected True or False, got 1"),
        ("numeric", {"relative_tolerance": 1.0}, r"relative_tolerance: expected a number in \[0, 1\), got 1.0"),
        ("countdown", {"format_reward": True}, r"format_reward: expected a number in \[0, 1\], got True"),
        (
            "no_such_module_here:grade",
            {},
            "to be importable, got ModuleNotFoundError: No module named 'no_such_module_here'",
        ),
        (f"{MODULE}:missing", {}, f"got ValueError: no function 'missing' in module '{MODULE}'"),
        (f"{MODULE}:no_function", {}, "'no_function' in module .* is not a function but int"),
        (f"{MODULE}:wrong_rules", {}, "wrong_rules.rules: expected a text, got 3"),
        (f"{MODULE}:grade", {"option": lambda: 3}, "options: expected values that can be pickled"),
    ],
)
def test_what_cannot_be_resolved_is_refused(name, options, match):
    with pytest.raises(ValueError, match=match):
        grading.resolve(name, **options)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("import os; os._exit(3)", "the process ended while the grader was loaded"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import math; math.no_such_name", "AttributeError: module 'math' has no attribute 'no_such_name'"),
    ],
)
def test_a_module_that_misbehaves_when_imported_is_refused(tmp_path, monkeypatch, content, cause):
    (tmp_path / "odd_module.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"grader: expected 'odd_module:grade' to be importable, got {cause}"):
        grading.resolve("odd_module:grade")


@pytest.mark.parametrize(("name", "library", "extra"), [("math-verify", "math_verify", "math"), ("reasoning-gym",) * 3])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, library, extra):
    library = library.replace("-", "_")
    (tmp_path / f"{library}.py").write_text(f"raise ImportError('no {library} here')")
    monkeypatch.syspath_prepend(tmp_path)
    match = rf"expected {library} to be installed, .*; install the extra `{extra}`: pip install -e '.\[{extra}\]'"
    with pytest.raises(ValueError, match=match):
        grading.resolve(name)
