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

from dps_jax.training import text_setup, trainer
from dps_jax.training.text_config import TextConfig


def main(config: TextConfig) -> dict[str, Any]:
    """Trains, or goes on training, and returns the summary."""
    return trainer.train(config, build=text_setup.build)


if __name__ == "__main__":
    _command.run(main, TextConfig, __doc__)
