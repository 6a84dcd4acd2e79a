"""The command that trains a language model, as users run it; and `make train-llm`."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro

from dps_jax.training import _run_log
from dps_jax.training._text_config import TextConfig
from tests.training import runs, text_runs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module


def shell_of_make():
    """Returns the shell that runs the commands of the Makefile."""
    lines = subprocess.run(["make", "-pn", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return next(line.split()[-1] for line in lines.splitlines() if line.startswith("SHELL "))


def test_make_train_llm_has_the_options_of_the_comparison(experiment):
    lines = subprocess.run(["make", "-n", "train-llm"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = next(line for line in lines.replace("\\\n", " ").splitlines() if "train_llm.py" in line)
    # Split by the shell of make, as not every shell reads $'\n' as a newline.
    words = subprocess.run(
        [shell_of_make(), "-c", f"printf '%s\\0' {command[command.index('train_llm.py') :]}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[1:-1]
    config = tyro.cli(TextConfig, args=words)
    compare = experiment("compare_llm")
    assert config == compare.sums_config(Path("runs/smollm2-135m-instruct"), Path("runs/questions/sums"))


def test_answers_are_printed_before_and_after(experiment):
    train_llm = experiment("train_llm")
    row = {
        "prompt": "1+1=2\n7+8=",
        "before": " 16\n",
        "before_is_correct": False,
        "after": "15",
        "after_is_correct": True,
    }
    assert "  7+8=   before: '16' wrong   after: '15' right" in train_llm.answers({"examples": [row]})
    assert train_llm.answers({"examples": []}) == ""


def test_a_comparison_is_tabulated_and_drawn(experiment):
    compare = experiment("compare_llm")
    found = {"round": [0, 5, 10], "rollouts": [0, 320, 640], "seconds": [0.0, 30.0, 61.0]}
    make = lambda method, seed, last: {
        "method": method, "seed": seed, "effective_sample_ratio": 0.5, "examples": [],
        "curve": {**found, "accuracy": [0.1, 0.2, last], "error": [None, 0.02, 0.04]},
    }  # fmt: skip
    results = {
        "config": {"seeds": [0, 1], "num_test": 9}, "eval_samples": 8,
        "machine": {"cores": 2, "cpu": "some"},
        "runs": [make("uniform", 0, 0.3), make("dps", 0, 0.5), make("uniform", 1, 0.5), make("dps", 1, 0.6)],
    }  # fmt: skip
    table = compare.to_markdown(results)
    row = "| `{}` | 0.100 (0.100, 0.100) | 0.200 (0.200, 0.200) | {} | 0.040 | 50% | 640 | 61 |"
    assert row.format("uniform", "0.400 (0.300, 0.500)") in table
    assert row.format("dps", "0.550 (0.500, 0.600)") in table
    assert "| method | before | after 5 rounds | after 10 rounds |" in table
    (axes,) = compare.draw(results).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["uniform", "dps"]
    with pytest.raises(ValueError, match="methods: expected one of"):
        compare.Config(methods=("best",))


def command(model, data, out_dir, *more):
    options = {
        "out-dir": out_dir, "num-rounds": 5, "eval-every": 5, "eval-samples": 2, "checkpoint-every": 1,
        "prompts.num-test": 8, "grader.name": "reasoning-gym:chain_sum", "selector.method": "dps",
        "rollout.batch-size": 4, "rollout.group-size": 4, "rollout.completion-length": 4,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "experiments" / "train_llm.py"), str(model), str(data), *words, *more]


@pytest.mark.slow
def test_a_killed_run_on_reasoning_gym_goes_on_to_the_same_end(experiment, tmp_path):
    make_questions = experiment("make_questions")
    config = make_questions.Config(
        task="reasoning-gym:chain_sum", num=60, num_test=1, config='{"min_digits": 1, "max_digits": 1, "max_terms": 2}',
        out=tmp_path / "questions",
    )  # fmt: skip
    data = make_questions.main(config) / "train.jsonl"
    model = text_runs.make_model(tmp_path / "model")
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    run = lambda out_dir: subprocess.run(
        command(model, data, out_dir), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    whole = run(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert "answers to held-out prompts:" in whole.stdout
    process = subprocess.Popen(
        command(model, data, tmp_path / "killed"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "killed" / "train" / "checkpoints"
    deadline = time.monotonic() + 400
    while not (checkpoints / "round_0000000002").exists():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = run(tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert re.search(r"resuming .* after [2-5] rounds", again.stdout)
    paths = [tmp_path / name / "train" / "metrics.jsonl" for name in ("whole", "killed")]
    assert len(_run_log.read_metrics(paths[0])) == 5
    assert runs.timeless(paths[0]) == runs.timeless(paths[1])
    weights = [(path.parent / "policy" / "model.safetensors").read_bytes() for path in paths]
    assert weights[0] == weights[1]


def test_faults_are_a_line_that_names_the_file(tmp_path):
    model = text_runs.make_model(tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "1+1"}) + "\n")
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        command(model, data, tmp_path / "runs"), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"error: .*rows\.jsonl.*answer", done.stderr.replace("\n", " "))
    assert not (tmp_path / "runs").exists()
