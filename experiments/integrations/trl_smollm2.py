"""Compares uniform selection with binomial_hmm in TRL's GRPOTrainer, on SmolLM2-135M-Instruct and sums.

    pip install '.[trl,reasoning-gym]' matplotlib
    python experiments/get_smollm2.py --out runs/smollm2-135m-instruct
    python experiments/integrations/trl_smollm2.py

Both methods train the same model on the same questions of reasoning-gym, with the same number of rollouts;
binomial_hmm also receives the kind of each sum as its prompt group. The script compares their effective sample ratios:
the share of prompts in a batch with some correct and some wrong completions, which alone have a gradient. It takes
about 20 minutes on 2 CPU cores, and writes results.json, table.md and effective_sample_ratio.png.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import reasoning_gym
import torch
import trl
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from dps_jax import PromptSelector
from dps_jax.integrations.trl import attach

METHODS = ("uniform", "binomial_hmm")
TERMS, DIGITS = (2, 3, 4), (1, 2)
NUM_EXAMPLES = 2


def make_rows(num_rows: int, seed: int) -> tuple[Dataset, np.ndarray]:
    """Returns questions with answers, each question after two solved ones, and the prompt group of each."""
    kinds = [(terms, digits) for terms in TERMS for digits in DIGITS]
    size = -(-num_rows // len(kinds))
    rows, groups = [], []
    for group, (terms, digits) in enumerate(kinds):
        options = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
        found = reasoning_gym.create_dataset("chain_sum", size=size + NUM_EXAMPLES, seed=seed + group, **options)
        entries = [found[index] for index in range(size + NUM_EXAMPLES)]
        solved = "".join(f"{entry['question']} {entry['answer']}\n" for entry in entries[:NUM_EXAMPLES])
        rows += [{"prompt": solved + entry["question"], "answer": entry["answer"]} for entry in entries[NUM_EXAMPLES:]]
        groups += [group] * size
    order = np.random.default_rng(seed).permutation(len(rows))[:num_rows]
    return Dataset.from_list([rows[index] for index in order]), np.array(groups)[order]


def accuracy(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Returns 1 for completions whose first line is the answer, 0 for others."""
    lines = [(text.strip().splitlines() or [""])[0].strip() for text in completions]
    return [float(line == right) for line, right in zip(lines, answer, strict=True)]


def train(folder: Path, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains with a method; returns the ratio, its prediction and the accuracy of each step, and the total seconds."""
    rows, groups = make_rows(options.rows, options.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size * options.group_size,
            num_generations=options.group_size,
            max_completion_length=6,
            learning_rate=options.learning_rate,
            seed=options.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(model, accuracy, config, rows, processing_class=tokenizer)
        grouped = {} if method == "uniform" else {"groups": groups, "group_size": options.group_size}
        selector = PromptSelector(len(rows), method, seed=options.seed, device="cpu", **grouped)
        attach(trainer, selector)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    log = [entry for entry in trainer.state.log_history if "dps/effective_sample_ratio" in entry]
    return {
        "effective_sample_ratio": [entry["dps/effective_sample_ratio"] for entry in log],
        "predicted": [entry["dps/predicted_informative"] for entry in log],
        "accuracy": [entry["reward"] for entry in log],
        "seconds": seconds,
    }


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Writes the figure: the effective sample ratio of each step (dots), and the mean of all steps so far (lines)."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (method, one) in enumerate(found.items()):
        ratios = np.array(one["effective_sample_ratio"])
        steps = np.arange(1, ratios.size + 1)
        axes.plot(steps, ratios, ".", color=f"C{number}", alpha=0.5)
        axes.plot(steps, np.cumsum(ratios) / steps, color=f"C{number}", label=f"{method}, mean {ratios.mean():.2f}")
    axes.set(xlabel="step", ylabel="share of prompts partially solved", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the results as a Markdown table."""
    options = results["options"]
    batch_size, group_size = int(options["batch_size"]), int(options["group_size"])
    lines = [
        "| method | effective sample ratio | standard error | second half | rollouts | seconds per step |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for method, one in results["methods"].items():
        ratios = np.array(one["effective_sample_ratio"])
        mean, num_prompts = ratios.mean(), ratios.size * batch_size
        error = np.sqrt(mean * (1 - mean) / num_prompts)
        cells = f"{mean:.2f} | {error:.2f} | {ratios[ratios.size // 2 :].mean():.2f} | {num_prompts * group_size:,}"
        lines.append(f"| `{method}` | {cells} | {one['seconds'] / ratios.size:.1f} |")
    lines += [
        "",
        f"SmolLM2-135M-Instruct with TRL {results['trl']}, {options['steps']} steps of {batch_size} prompts with "
        f"{group_size} completions each, {options['rows']} sums of {TERMS[0]} to {TERMS[-1]} numbers, one seed; "
        f"{results['cores']} CPU cores. The effective sample ratio is the share of partially solved prompts, over all "
        "steps (with its binomial standard error) and over the second half of the steps.",
    ]
    return "\n".join(lines)


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Trains with both methods, and writes the comparison."""
    found = {}
    for method in METHODS:
        print(f"training with {method}")
        found[method] = train(options.model, method, options)
    results = {
        "trl": trl.__version__,
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "options": {name: str(value) for name, value in vars(options).items()},
        "methods": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(to_markdown(results) + "\n", encoding="utf-8")
    draw(found, options.out / "effective_sample_ratio.png")
    print(to_markdown(results))
    print(f"wrote {options.out}")
    return results


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        default=Path("runs/smollm2-135m-instruct"),
        help="folder of the model (default: %(default)s)",
    )
    add("--steps", type=int, default=30, help="steps to train (default: %(default)s)")
    add("--rows", type=int, default=240, help="number of questions (default: %(default)s)")
    add("--batch-size", type=int, default=4, help="prompts per step (default: %(default)s)")
    add("--group-size", type=int, default=8, help="completions per prompt (default: %(default)s)")
    add("--learning-rate", type=float, default=1e-5, help="learning rate of AdamW (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed of questions, sampling and selection (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/trl_smollm2"), help="folder to write to (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parsed())
