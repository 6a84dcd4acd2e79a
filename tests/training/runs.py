"""Training runs small enough for tests: one-digit sums by a tiny model that a few hundred solutions have warmed up."""

import dataclasses
import io
from pathlib import Path

from rich.console import Console

from dps_jax.training import config as configs
from dps_jax.training import trainer


def tiny(out_dir: Path, **changes) -> configs.TrainConfig:
    """Returns the config of a run of seconds."""
    fields = {
        "name": "run",
        "out_dir": out_dir,
        "num_rounds": 6,
        "eval_every": 3,
        "eval_samples": 2,
        "checkpoint_every": 2,
        "task": configs.TaskConfig(name="chain_sum", num_train=50, num_test=16, broken=0.0),
        "model": configs.ModelConfig(size="0.1m"),
        "selector": configs.SelectorConfig(method="dps", pool_factor=4),
        "rollout": configs.RolloutConfig(batch_size=4, group_size=4),
    }
    return configs.TrainConfig(**(fields | changes))


def quiet() -> Console:
    """Returns a console whose text can be read by `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=200)


def run(config: configs.TrainConfig) -> tuple[dict, str]:
    """Returns the summary of a run, and what it printed."""
    console = quiet()
    summary = trainer.train(config, console)
    return summary, console.file.getvalue()


def extended(config: configs.TrainConfig, num_rounds: int) -> configs.TrainConfig:
    """Returns the config with another number of rounds."""
    return dataclasses.replace(config, num_rounds=num_rounds)
