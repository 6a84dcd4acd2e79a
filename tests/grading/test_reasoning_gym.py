"""Every task of reasoning-gym through the pool, with entries that went through JSON."""

import gc
import json

import pytest

from dps_jax import grading

reasoning_gym = pytest.importorskip("reasoning_gym")
from reasoning_gym.factory import DATASETS  # noqa: E402

# Where any answer that fits is right, an entry has none, but most have an example.
EXAMPLES = {
    "graph_color": lambda metadata: json.dumps(metadata["possible_answer"]),
    "propositional_logic": lambda metadata: metadata["example_answer"],
    "rubiks_cube": lambda metadata: metadata["example_correct_answer"],
}
NO_EXAMPLE = {"boxnet", "rush_hour"}
# Any text is right, or any that is not empty, by `score_answer` of version 0.1.25.
WRONG = {"game_of_life_halting": ""}
FAST = ("chain_sum", "rearc", "spell_backward", "rubiks_cube", "time_intervals", "boxnet", "n_queens", "puzzle24")


@pytest.fixture(scope="module")
def pool():
    # The first entry of a task may take seconds, in which its data are read.
    spec = grading.resolve("reasoning-gym")
    assert spec.rules.startswith("Put your final answer")
    with grading.GraderPool(spec, num_processes=1, time_limit_s=30.0, batch_limit_s=300.0) as pool:
        yield pool


def grade_tasks(pool, tasks):
    """Returns the grades of the own answer of an entry of each task, and those of a wrong text."""
    answers, infos, own, wrong = [], [], [], []
    for task in tasks:
        entry = json.loads(json.dumps(reasoning_gym.create_dataset(task, seed=11, size=1)[0]))
        example = EXAMPLES.get(task, lambda metadata: None)(entry["metadata"])
        own.append(entry["answer"] if example is None else example)
        wrong.append(WRONG.get(task, "<answer>zzz</answer>"))
        answers.append(entry["answer"])
        infos.append({"question": entry["question"], "task": task, "metadata": entry["metadata"]})
    own = [answer if answer is not None else "" for answer in own]
    tagged = [f"I think.\n<answer>{answer}</answer>" for answer in own]
    return [pool.submit(texts, answers, infos).result() for texts in (own, tagged, wrong)]


def check_tasks(pool, tasks):
    own, tagged, wrong = grade_tasks(pool, tasks)
    expected = [task not in NO_EXAMPLE for task in tasks]
    assert dict(zip(tasks, own.is_correct.tolist(), strict=True)) == dict(zip(tasks, expected, strict=True))
    for grades in (own, tagged, wrong):
        assert grades.num_timed_out == grades.num_died == grades.num_invalid == 0
    assert tagged.is_correct.tolist() == expected
    assert dict(zip(tasks, wrong.is_correct.tolist(), strict=True)) == dict.fromkeys(tasks, False)


def test_some_tasks_grade_their_own_answer_as_correct(pool):
    check_tasks(pool, FAST)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a library leaves files open
def test_all_tasks_grade_their_own_answer_as_correct(pool):
    tasks = sorted(set(DATASETS) - {"composite"})
    assert len(tasks) > 100
    check_tasks(pool, tasks)
    gc.collect()


def test_the_task_is_found(pool):
    entry = reasoning_gym.create_dataset("decimal_arithmetic", seed=5, size=1)[0]
    metadata = json.dumps(entry["metadata"])
    infos = [
        {"task": "decimal_arithmetic", "metadata": entry["metadata"]},
        {"data_source": "reasoning_gym/decimal_arithmetic", "metadata": metadata, "task_config": "{}"},
        {"metadata": metadata},
        {"task": "no_task", "metadata": {}},
        {},
        {"task": "decimal_arithmetic", "metadata": "[]"},
    ]
    grades = pool.submit([entry["answer"]] * 6, [entry["answer"]] * 6, infos).result()
    assert grades.is_correct.tolist() == [True] * 3 + [False] * 3
    assert grades.num_raised == 3
    unknown, missing, odd = grades.messages
    assert "task: expected one of ab, acre" in unknown
    assert "task: expected a name in the column `task`, got none in []" in missing
    assert "metadata: expected an object, got []" in odd


def test_the_name_may_have_the_task_and_options_of_the_task_decide_on_its_score():
    entry = reasoning_gym.create_dataset("puzzle24", seed=5, size=1)[0]
    assert max(entry["metadata"]["numbers"]) > 6
    infos = [
        {"metadata": entry["metadata"], "task_config": config} for config in ({}, {"max_value": 6}, '{"max_value": 6}')
    ]
    spec = grading.resolve("reasoning-gym:puzzle24")
    assert spec.options == {"task": "puzzle24"}
    with grading.GraderPool(spec, num_processes=1) as pool:
        grades = pool.submit([entry["answer"]] * 3, [entry["answer"]] * 3, infos).result()
    # Larger numbers than the option allows are not of the task.
    assert grades.is_correct.tolist() == [True, False, False]
