"""Trains a small reasoning model by policy gradient on prompts chosen by prediction; `make train` runs it.

A killed run continues when the same command is run again, and on a CPU ends with the same result as without the
interruption. Ctrl-C and SIGTERM save a checkpoint before the process ends; a second signal ends it at once. A run
writes to runs/NAME/: config.json, metrics.jsonl (a line per round), trace.npz (all outcomes by prompt and round),
prompts.npz (levels and features), prior.json (for methods with a prior), summary.json, checkpoints/, figures, and the
trained policy as policy.safetensors (after the last round) and policy_best.safetensors (the best by test accuracy).
--model.weights and experiments/sample.py read either of these policies.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import _command

from dps_jax import training

DATA = Path(__file__).resolve().parent / "data"
# The config of the former main job, with which traces, panels and benchmarks of this repository were made.
COUNTDOWN = training.TrainConfig(
    num_rounds=300,
    eval_every=25,
    checkpoint_every=25,
    task=training.TaskConfig(name="countdown", broken=0.0),
    selector=training.SelectorConfig(method="dps", pool_factor=8, pool_share=0.0),
    learner=training.LearnerConfig(learning_rate=1e-4),
)


def with_default_weights(config: training.TrainConfig) -> training.TrainConfig:
    """Returns the config with the weights of the repository for its task; a config with model options is unchanged."""
    weights = DATA / f"{config.task.name}.safetensors"
    if config.model != training.ModelConfig() or not weights.is_file():
        return config
    return dataclasses.replace(config, model=training.ModelConfig(weights=weights))


def main(config: training.TrainConfig) -> dict[str, Any]:
    """Trains or continues a run, and returns its summary."""
    return training.train(with_default_weights(config))


if __name__ == "__main__":
    _command.run(main, training.TrainConfig, __doc__)
