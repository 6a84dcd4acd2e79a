import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dps_jax import grading

ROOT = Path(__file__).parents[2]
MODULE = "tests.grading.misbehaving"
# Graded, raised, invalid, timed out, died: what becomes of each action, and the reward of what is graded.
GRADED = {
    "right": (True, 1.0),
    "wrong": (False, 0.0),
    "half": (False, 0.5),
    "whole": (True, 1.0),
    "fraction": (False, 0.75),
    "pair": (False, 0.25),
    "scalar": (True, 1.0),
    "print": (True, 1.0),
    "fork": (True, 1.0),
    "chdir": (True, 1.0),
    "jax": (False, 0.0),
    "main": (True, 1.0),
    "nap": (True, 1.0),
}
RAISED = ["raise", "unprintable", "exit", "interrupt", "recursion", "memory"]
INVALID = ["nan", "infinite", "huge", "digits", "too large", "text", "none", "triple", "odd pair"]
TIMED_OUT = ["sleep", "hold", "ignore"]
DIED = ["_exit", "kill", "segfault", "close", "write"]


@pytest.fixture(scope="module")
def spec():
    return grading.resolve(f"{MODULE}:grade")


@pytest.fixture(scope="module")
def pool(spec):
    with grading.GraderPool(spec, num_processes=2, time_limit_s=1.5, memory_limit_gib=0.5) as pool:
        yield pool


def grade(pool, actions):
    return pool.submit(actions, [""] * len(actions)).result()


def num_failures(grades):
    return (grades.num_raised, grades.num_invalid, grades.num_timed_out, grades.num_died)


def is_alive(pid):
    """Returns whether a process runs; one that has ended and was not waited for does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return shown.returncode == 0 and not shown.stdout.strip().startswith("Z")


def wait_until(is_true, limit_s):
    deadline = time.monotonic() + limit_s
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_true()


@pytest.mark.parametrize("action", [*GRADED, *RAISED, *INVALID, *TIMED_OUT, *DIED])
def test_one_misbehaving_answer_harms_no_other(pool, action):
    actions = ["right", "half", action, "right", "wrong", "half"]
    grades = grade(pool, actions)
    is_correct, reward = GRADED.get(action, (False, 0.0))
    assert grades.is_correct.dtype == bool
    assert grades.rewards.dtype == np.float32
    np.testing.assert_array_equal(grades.is_correct, [True, False, is_correct, True, False, False])
    np.testing.assert_array_equal(grades.rewards, np.float32([1, 0.5, reward, 1, 0, 0.5]))
    assert num_failures(grades) == tuple(int(action in kind) for kind in (RAISED, INVALID, TIMED_OUT, DIED))
    assert len(grades.messages) == (action not in GRADED)


def test_all_at_once_in_any_order_with_any_number_of_processes(spec):
    actions = [*GRADED, *RAISED, *INVALID, *DIED, "sleep", "hold"] + ["right"] * 100
    rng = np.random.default_rng(5)
    results = []
    for num_processes in (1, 3):
        order = rng.permutation(len(actions))
        with grading.GraderPool(spec, num_processes=num_processes, time_limit_s=1.5, memory_limit_gib=0.5) as pool:
            grades = grade(pool, [actions[index] for index in order])
        is_correct, rewards = np.empty(len(actions), bool), np.empty(len(actions), np.float32)
        is_correct[order], rewards[order] = grades.is_correct, grades.rewards
        results.append((is_correct.tolist(), rewards.tolist(), num_failures(grades)))
    assert results[0] == results[1]
    assert results[0][0] == [GRADED.get(action, (False, 0))[0] for action in actions]
    assert results[0][1] == [GRADED.get(action, (False, 0))[1] for action in actions]
    assert results[0][2] == (len(RAISED), len(INVALID), 2, len(DIED))


def test_a_hanging_answer_takes_its_limit_and_a_batch_its_own(spec):
    with grading.GraderPool(spec, num_processes=1, time_limit_s=1.0, batch_limit_s=30.0) as pool:
        start = time.monotonic()
        assert num_failures(grade(pool, ["hold"])) == (0, 0, 1, 0)
        assert time.monotonic() - start < 1.0 + 2.0
    with grading.GraderPool(spec, num_processes=2, time_limit_s=20.0, batch_limit_s=1.5) as pool:
        start = time.monotonic()
        grades = grade(pool, ["right", "ignore"] * 20)
        assert time.monotonic() - start < 1.5 + 2.0
        assert grades.is_correct[0]
        assert grades.num_timed_out == 40 - grades.is_correct.sum()
        assert "1.5 s of its batch" in grades.messages[0]
        # The processes are free for the next batch at once.
        assert grade(pool, ["right"] * 3).is_correct.all()


def test_submissions_overlap(pool):
    pending = [pool.submit(["right", action, "half"], [""] * 3) for action in ("sleep", "right", "kill", "wrong")]
    grades = [one.result() for one in reversed(pending)][::-1]
    assert [one.is_correct.tolist() for one in grades] == [[True, middle, False] for middle in (0, 1, 0, 0)]
    assert [num_failures(one) for one in grades] == [(0, 0, 1, 0), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
    assert pending[0].result() is not None


def test_threads_submit_at_the_same_time(pool):
    results = {}

    def submit(index):
        results[index] = grade(pool, ["right"] * index + ["wrong"] * 20)

    threads = [threading.Thread(target=submit, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {index: int(grades.is_correct.sum()) for index, grades in results.items()} == {n: n for n in range(12)}


def test_no_answers(pool):
    grades = pool.submit([], []).result()
    assert grades.is_correct.shape == grades.rewards.shape == (0,)
    assert grades.is_correct.dtype == bool


def test_large_answers_and_any_picklable_type():
    with grading.GraderPool(grading.resolve("exact"), num_processes=2) as pool:
        texts = [str(index) * 300_000 for index in range(10)]
        assert pool.submit(texts, texts).result().is_correct.all()
    with grading.GraderPool(grading.resolve("countdown"), num_processes=1) as pool:
        truth = {"numbers": np.array([2, 3]), "target": np.int64(6)}
        assert pool.submit(["2 * 3", "2 + 3"], [truth] * 2).result().is_correct.tolist() == [True, False]


def test_messages_name_the_first_failures(pool):
    grades = grade(pool, ["right", "raise", "nan", "kill", "text", "none", "triple"])
    raised, nan, died, *_ = grades.messages
    assert len(grades.messages) == 5
    assert raised.startswith("answer 1: KeyError: 'gone' (misbehaving.py, line ")
    assert nan.startswith("answer 2: ") and "expected a finite reward, got float nan" in nan  # noqa: PT018
    assert died == "answer 3: the process of the grader ended by signal 9"


def test_threshold_decides_what_number_is_correct(spec):
    with grading.GraderPool(spec, num_processes=1, threshold=0.5) as pool:
        grades = grade(pool, ["half", "fraction", "pair", "wrong", "right"])
    assert grades.is_correct.tolist() == [True, True, False, False, True]


def test_options_and_infos_reach_the_function():
    spec = grading.resolve(f"{MODULE}:with_option", suffix="!")
    with grading.GraderPool(spec, num_processes=1) as pool:
        grades = pool.submit(["a!", "a", "a!"], ["a"] * 3, [{}, {"level": 0}, {"level": 1}]).result()
    assert grades.is_correct.tolist() == [True, False, False]


def test_what_a_grader_started_ends_with_it(pool, tmp_path):
    path = tmp_path / "pids"
    grades = pool.submit(["child sleep"], [str(path)]).result()
    assert grades.num_timed_out == 1
    assert wait_until(lambda: not any(is_alive(pid) for pid in path.read_text().split()), 5.0)


PARENT = """
import os, sys, time
from dps_jax import grading

if __name__ != "__main__":
    sys.exit("the script ran again")
spec = grading.resolve("tests.grading.misbehaving:grade")
pool = grading.GraderPool(spec, num_processes=3, time_limit_s=4.0)
pending = pool.submit(["child sleep", "child hold", "child ignore"], sys.argv[1:])
if os.fork() == 0:  # holds the ends of all pipes
    time.sleep(60)
    os._exit(0)
print(flush=True)
pending.result()
time.sleep(60)
"""


def test_a_killed_parent_leaves_no_workers(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = [tmp_path / str(index) for index in range(3)]
    with subprocess.Popen(
        [sys.executable, script, *paths],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as parent:
        assert wait_until(lambda: all(path.exists() and path.read_text() for path in paths), 60.0)
        pids = [path.read_text().split()[0] for path in paths]
        assert all(is_alive(pid) for pid in pids)
        parent.kill()
        parent.wait()
        assert wait_until(lambda: not any(is_alive(pid) for pid in pids), 10.0)
        subprocess.run(["kill", "-9", "--", f"-{parent.pid}"], check=True)
    for path in paths:
        subprocess.run(["kill", "-9", path.read_text().split()[1]], stderr=subprocess.DEVNULL)


def test_a_closed_pool_refuses(spec):
    pool = grading.GraderPool(spec, num_processes=1)
    pending = pool.submit(["sleep"], [""])
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="pool: expected an open pool, got one that was closed"):
        pending.result()
    with pytest.raises(RuntimeError, match="pool: expected an open pool, got one that was closed"):
        pool.submit(["right"], [""])


def test_a_dropped_pool_is_closed_but_not_before_its_results(spec):
    pending = grading.GraderPool(spec, num_processes=1).submit(["nap"], [""])
    assert pending.result().is_correct.all()
    dispatcher = pending._pool._dispatcher
    del pending
    assert not dispatcher._thread.is_alive()


FRAGILE = """
import os, pathlib
flag = pathlib.Path(__file__).with_name("flag")
if flag.exists():
    raise OSError("the file of the grader is broken")
def grade(completion, answer, info):
    flag.touch()
    os._exit(3)
"""


def test_a_grader_that_can_be_loaded_no_more_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "fragile_grader.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    with grading.GraderPool(grading.resolve("fragile_grader:grade"), num_processes=2) as pool:
        pending = pool.submit(["right"] * 4, [""] * 4)
        match = "grader: expected to be loaded in another process, got OSError: the file of the grader is broken"
        with pytest.raises(ValueError, match=match):
            pending.result()
        with pytest.raises(ValueError, match=match):
            pool.submit(["right"], [""])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def grade(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "the process of the grader ended with exit status 3 while it was loaded"),
    ],
)
def test_a_pool_that_cannot_start_is_an_error(tmp_path, monkeypatch, content, cause):
    (tmp_path / "broken_grader.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    spec = grading.GraderSpec("broken_grader:grade", "broken_grader:grade", {}, "")
    with pytest.raises(ValueError, match=f"grader: expected to be loaded in another process, got .*{cause}"):
        grading.GraderPool(spec, num_processes=2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_processes": 0}, "num_processes: expected an integer >= 1, got 0"),
        ({"time_limit_s": 0.0}, "time_limit_s: expected a finite number > 0, got 0.0"),
        ({"batch_limit_s": -1.0}, "batch_limit_s: expected a finite number > 0, got -1.0"),
        ({"threshold": float("nan")}, "threshold: expected a finite number"),
        ({"memory_limit_gib": 0}, "memory_limit_gib: expected a finite number > 0, got 0"),
    ],
)
def test_bad_options_are_refused(spec, options, match):
    with pytest.raises(ValueError, match=match):
        grading.GraderPool(spec, **options)


def test_bad_arguments_are_refused(pool):
    with pytest.raises(ValueError, match="spec: expected a GraderSpec, got 'exact'"):
        grading.GraderPool("exact")
    with pytest.raises(ValueError, match="answers: expected 2 values, one per completion, got 1"):
        pool.submit(["right"] * 2, [""])
    with pytest.raises(ValueError, match="infos: expected 1 values, one per completion, got 2"):
        pool.submit(["right"], [""], [{}, {}])
    with pytest.raises(ValueError, match="completions: expected texts, got 3 at position 1"):
        pool.submit(["right", 3], ["", ""])
    with pytest.raises(ValueError, match="infos: expected mappings, got 3 at position 0"):
        pool.submit(["right"], [""], [3])
    with pytest.raises(ValueError, match=r"answers: expected answers and infos that can be pickled, .* at position 0"):
        pool.submit(["right"], [lambda: 3])
