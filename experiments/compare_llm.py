"""Trains a pretrained model on sums with several selection methods, and compares how fast its accuracy rises.

experiments/get_smollm2.py downloads the model, and experiments/make_questions.py generates the sums. The options are
those of `make train-llm`, except for more rounds, more held-out sums, and a constant learning rate, so that the rounds
of a run are comparable. Finished runs are kept, so that an interrupted comparison can continue. Writes results.json,
table.md, accuracy.png and the folders of the runs to runs/compare_llm/.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _command
import _machine
import get_smollm2
import make_questions
import numpy as np
import train_llm
from matplotlib.figure import Figure
from rich.console import Console

from dps_jax import _checks, _files, _json, selectors, training, viz
from dps_jax.training import PromptsConfig, TextConfig, TextRolloutConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """The methods and runs to compare."""

    methods: tuple[str, ...] = ("uniform", "binomial_hmm")
    """Selection methods, names in dps_jax.selectors.SELECTORS."""
    seeds: tuple[int, ...] = (0, 1)
    """Random seeds; every method is run with each. The questions are the same for all seeds."""
    num_rounds: int = 60
    """Number of rounds of a run."""
    num_test: int = 96
    """Number of held-out sums for each evaluation."""
    model: Path = get_smollm2.Config().out
    """Folder of the model; if it does not exist, the model is downloaded."""
    out_dir: Path = Path("runs/compare_llm")
    """Folder of the results and of the runs."""

    def __post_init__(self):
        if not self.methods or not self.seeds:
            raise ValueError(f"methods: expected at least one method and one seed, got {self.methods} and {self.seeds}")
        for method in self.methods:
            _checks.check_choice("methods", method, selectors.SELECTORS)
        for field in ("num_rounds", "num_test"):
            _checks.check_int(field, getattr(self, field), at_least=1)


def sums_config(model: Path, questions: Path, **changes: Any) -> TextConfig:
    """Returns the config of `make train-llm` with some fields changed."""
    fields: dict[str, Any] = {
        "name": "train-llm",
        "model": model,
        "data": questions / "train.jsonl",
        "num_rounds": 40,
        "eval_every": 10,
        "checkpoint_every": 20,
        "prompts": PromptsConfig(test_data=questions / "test.jsonl", num_test=64, chat=False, num_buckets=1),
        "selector": training.SelectorConfig(method="binomial_hmm"),
        "rollout": TextRolloutConfig(batch_size=8, group_size=8, completion_length=6, stops=("\n",)),
        "learner": training.LearnerConfig(learning_rate=2e-5, schedule="linear", decay_rounds=40),
    }
    return TextConfig(**(fields | changes))


def _run_config(config: Config, questions: Path, method: str, seed: int) -> TextConfig:
    base = sums_config(config.model, questions)
    return dataclasses.replace(
        base,
        name=f"{method}-{seed}",
        out_dir=config.out_dir,
        seed=seed,
        num_rounds=config.num_rounds,
        eval_every=15,
        checkpoint_every=config.num_rounds,
        keep_last=1,
        prompts=dataclasses.replace(base.prompts, num_test=config.num_test),
        selector=dataclasses.replace(base.selector, method=method),
        learner=training.LearnerConfig(learning_rate=2e-5),
    )


def curve(folder: Path, summary: dict[str, Any]) -> dict[str, list[float]]:
    """Returns rounds, rollouts, seconds, accuracies and their standard errors at the evaluations of a run."""
    found: dict[str, list[Any]] = {"round": [0], "rollouts": [0], "seconds": [0.0], "error": [None]}
    found["accuracy"] = [summary["test_accuracies"]["0"]]
    seconds = 0.0
    for record in training.read_metrics(folder / "metrics.jsonl"):
        seconds += sum(record[name] for name in ("select_s", "rollout_s", "update_s", "observe_s"))
        if record.get("test_accuracy") is not None:
            found["round"].append(record["round"] + 1)
            found["rollouts"].append(record["total_rollouts"])
            found["seconds"].append(seconds)
            found["accuracy"].append(record["test_accuracy"])
            found["error"].append(record["test_accuracy_error"])
    return found


def _row(method: str, runs: Sequence[dict[str, Any]]) -> str:
    of = lambda name: [run["curve"][name] for run in runs if run["method"] == method]
    mean = lambda values: float(np.mean(values))
    ratio = mean([run["effective_sample_ratio"] for run in runs if run["method"] == method])
    accuracies = [
        f"{mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
        for values in zip(*of("accuracy"), strict=True)
    ]
    error = mean([row[-1] for row in of("error")])
    rollouts, seconds = (mean([row[-1] for row in of(name)]) for name in ("rollouts", "seconds"))
    return f"| `{method}` | {' | '.join(accuracies)} | {error:.3f} | {ratio:.0%} | {rollouts:,.0f} | {seconds:.0f} |"


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the table of a comparison."""
    runs, machine = results["runs"], results["machine"]
    methods = list(dict.fromkeys(run["method"] for run in runs))
    heads = ["before", *(f"after {count} rounds" for count in runs[0]["curve"]["round"][1:])]
    lines = [
        f"SmolLM2-135M-Instruct on sums of one and two digits at a constant learning rate, "
        f"{results['config']['num_test']} held-out sums with {results['eval_samples']} completions each, "
        f"{machine['cores']} CPU cores ({machine['cpu']}). Test accuracy, mean over seeds (each seed in brackets):",
        "",
        f"| method | {' | '.join(heads)} | standard error of one seed at the end | informative groups | rollouts | "
        "seconds of the rounds |",
        "|---|" + "---:|" * (len(heads) + 4),
        *(_row(method, runs) for method in methods),
    ]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any]) -> Figure:
    """Returns a figure of accuracy against rollouts, with one line per run and standard errors."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(run["method"] for run in results["runs"]))
    for run in results["runs"]:
        color = viz.COLORS[methods.index(run["method"])]
        is_first = run["seed"] == results["config"]["seeds"][0]
        found = run["curve"]
        errors = np.array([np.nan if error is None else error for error in found["error"]])
        axes.errorbar(
            found["rollouts"], found["accuracy"], errors, color=color, marker="o", capsize=3, alpha=0.8,
            label=run["method"] if is_first else None,
        )  # fmt: skip
    axes.set(xlabel="rollouts", ylabel="test accuracy", title="SmolLM2-135M on sums of one and two digits", ylim=(0, 1))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Carries out the missing runs, writes the comparison, and returns it."""
    get_smollm2.main(get_smollm2.Config(out=config.model))
    asked = make_questions.Config(style="equation", examples=3, out=config.out_dir / "questions")
    questions = make_questions.main(asked)
    runs, console = [], Console()
    for seed in config.seeds:
        for method in config.methods:
            run = _run_config(config, questions, method, seed)
            console.print(f"{method}, seed {seed}", markup=False)
            summary = train_llm.main(run)
            ratio = summary["effective_sample_ratio"]
            found = {"method": method, "seed": seed, "effective_sample_ratio": ratio}
            runs.append({**found, "curve": curve(run.folder, summary), "examples": summary["examples"]})
    results = {
        "config": {"methods": list(config.methods), "seeds": list(config.seeds), "num_rounds": config.num_rounds,
                   "num_test": config.num_test},
        "eval_samples": sums_config(config.model, questions).eval_samples,
        "machine": _machine.describe_machine(),
        "runs": runs,
    }  # fmt: skip
    _json.write(config.out_dir / "results.json", results, indent=1)
    _files.write_atomically(config.out_dir / "table.md", to_markdown(results))
    viz.save(draw(results), config.out_dir / "accuracy.png")
    return results


if __name__ == "__main__":
    _command.run(main, Config, __doc__)
