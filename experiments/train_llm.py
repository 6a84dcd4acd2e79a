"""Trains a pretrained language model by policy gradient on your own questions, chosen by prediction.

    python experiments/train_llm.py Qwen2.5-0.5B-Instruct gsm8k.parquet --grader.name math-verify

MODEL_DIR is the folder of a Qwen2, Qwen3 or Llama model (config.json, .safetensors, tokenizer.json), and DATA is a file
of questions with answers. Completions are graded in separate processes, by a grader of the library or by your own
function (--grader.name my_module:grade). A killed run continues when the same command is run again, and on a CPU ends
with the same result as without the interruption, unless a grader exceeded a time limit. A run writes the same files to
runs/NAME/ as experiments/train.py, but the trained policies as the folders policy/ and policy_best/ in the format of
transformers.
"""

from __future__ import annotations

from typing import Any

import _command

from dps_jax import training
from dps_jax.training import TextConfig, _reporting


def answers(summary: dict[str, Any]) -> str:
    """Returns the last line of some held-out prompts, with the answers before and after training."""
    mark = lambda text, is_correct: f"{(text.strip() or '(nothing)')!r:.60} {'right' if is_correct else 'wrong'}"
    lines = [
        f"  {row['prompt'].splitlines()[-1]}   before: {mark(row['before'], row['before_is_correct'])}"
        f"   after: {mark(row['after'], row['after_is_correct'])}"
        for row in summary["examples"]
    ]
    return "\n".join(["answers to held-out prompts:", *lines]) if lines else ""


def main(config: TextConfig) -> dict[str, Any]:
    """Trains or continues a run, prints some answers, and returns the summary."""
    summary = training.train(config)
    if text := answers(summary):
        _reporting.say(_reporting.default_console(), text)
    return summary


if __name__ == "__main__":
    _command.run(main, TextConfig, __doc__)
