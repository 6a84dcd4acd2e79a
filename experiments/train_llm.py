"""Trains a pretrained language model by policy gradient on your own questions, chosen by prediction.

MODEL_DIR is a folder of a Qwen2, Qwen3 or Llama model (config.json, .safetensors, tokenizer.json), DATA a file of
questions with answers. A grader checks completions in processes of their own; --grader.name my_module:grade takes a
function of yours. Killing a run at any moment and running the same command again continues to the same end. A run
writes to runs/NAME/ what experiments/train.py writes, and the trained policy as folders policy/ and policy_best/, which
transformers opens.

python experiments/train_llm.py Qwen2.5-0.5B-Instruct gsm8k.parquet --grader.name math-verify
"""

from __future__ import annotations

from typing import Any

import _command

from dps_jax import training
from dps_jax.training import TextConfig, _reporting, _text_setup


def answers(summary: dict[str, Any]) -> str:
    """Returns some held-out problems with answers before and after training; of each prompt, the last line."""
    mark = lambda text, is_correct: f"{(text.strip() or '(nothing)')!r:.60} {'right' if is_correct else 'wrong'}"
    lines = [
        f"  {row['prompt'].splitlines()[-1]}   before: {mark(row['before'], row['before_is_correct'])}"
        f"   after: {mark(row['after'], row['after_is_correct'])}"
        for row in summary["examples"]
    ]
    return "\n".join(["answers to held-out prompts:", *lines]) if lines else ""


def main(config: TextConfig) -> dict[str, Any]:
    """Trains, or goes on training, prints some answers, and returns the summary."""
    summary = training.train(config, build=_text_setup.build)
    if text := answers(summary):
        _reporting.say(_reporting.default_console(), text)
    return summary


if __name__ == "__main__":
    _command.run(main, TextConfig, __doc__)
