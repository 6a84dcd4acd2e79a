"""Trains a small reasoning model by policy gradient on prompts chosen by prediction. The main job: `make train`.

Killing a run at any moment and running the same command again continues to the same end. Ctrl-C and SIGTERM save first;
a second one leaves at once. A run writes to runs/NAME/: config.json, metrics.jsonl (a line per round), trace.npz (which
prompt was solved how often when), summary.json, checkpoints/, figures, and the trained policy: policy.safetensors and
policy_best.safetensors, which --model.weights accepts and experiments/sample.py shows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import _command

from dps_jax import training

DATA = Path(__file__).resolve().parent / "data"
# What the traces, panels and benchmarks of this repository were made with.
COUNTDOWN = training.TrainConfig(
    num_rounds=300,
    eval_every=25,
    checkpoint_every=25,
    task=training.TaskConfig(name="countdown", broken=0.0),
    selector=training.SelectorConfig(method="dps", pool_factor=8, pool_share=0.0),
    learner=training.LearnerConfig(learning_rate=1e-4),
)


def with_default_weights(config: training.TrainConfig) -> training.TrainConfig:
    """Returns the config with the weights that come with the repository, where none are named and they fit."""
    weights = DATA / f"{config.task.name}.safetensors"
    if config.model != training.ModelConfig() or not weights.is_file():
        return config
    return dataclasses.replace(config, model=training.ModelConfig(weights=weights))


def main(config: training.TrainConfig) -> dict[str, Any]:
    """Trains, or goes on training, and returns the summary."""
    return training.train(with_default_weights(config))


if __name__ == "__main__":
    _command.run(main, training.TrainConfig, __doc__)
