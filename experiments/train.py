"""Trains a small reasoning model by policy gradient on prompts chosen by prediction. The main job: `make train`.

Killing a run at any moment and running the same command again continues to the same end. Ctrl-C and SIGTERM save first;
a second one leaves at once. A run writes to runs/NAME/: config.json, metrics.jsonl (a line per round), trace.npz (which
prompt was solved how often when), summary.json, checkpoints/, figures, and the trained policy: policy.safetensors and
policy_best.safetensors, which --model.weights accepts and experiments/sample.py shows.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from dps_jax.training import config as configs
from dps_jax.training import reporting, trainer
from dps_jax.training.checkpoints import CheckpointError

DATA = Path(__file__).resolve().parent / "data"
# What the traces, panels and benchmarks of this repository were made with.
COUNTDOWN = configs.TrainConfig(
    num_rounds=300,
    eval_every=25,
    checkpoint_every=25,
    task=configs.TaskConfig(name="countdown", broken=0.0),
    selector=configs.SelectorConfig(method="dps", pool_factor=8, pool_share=0.0),
    learner=configs.LearnerConfig(learning_rate=1e-4),
)


def with_default_weights(config: configs.TrainConfig) -> configs.TrainConfig:
    """Returns the config with the weights that come with the repository, where none are named and they fit."""
    weights = DATA / f"{config.task.name}.safetensors"
    if config.model != configs.ModelConfig() or not weights.is_file():
        return config
    return dataclasses.replace(config, model=configs.ModelConfig(weights=weights))


def main(config: configs.TrainConfig) -> dict[str, Any]:
    """Trains, or goes on training, and returns the summary."""
    return trainer.train(with_default_weights(config))


if __name__ == "__main__":
    try:
        main(tyro.cli(configs.TrainConfig, description=__doc__))
    except trainer.Terminated as stop:
        sys.stdout.flush()
        if stop.is_work_left:
            os._exit(128 + stop.signum)  # a program that is still compiling or running cannot be ended in another way
        raise
    except (ValueError, OSError, CheckpointError, trainer.TrainingError) as error:
        reporting.say(Console(stderr=True), f"error: {error}")
        sys.exit(1)
