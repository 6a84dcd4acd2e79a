"""The command line of the training scripts: turns arguments into a config, and errors into an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from dps_jax import _cli, training
from dps_jax.training import CheckpointError, _reporting


def run(main: Callable[[Any], Any], config_type: type, description: str | None) -> None:
    """Runs `main` with a config from the command line; errors are printed as one line."""
    try:
        main(_cli.cli(config_type, description=description, may_import=True))
    except training.Terminated as stop:
        sys.stdout.flush()
        if stop.is_work_left:
            os._exit(128 + stop.signum)  # nothing else ends a process while XLA compiles or runs a program
        raise
    except (ValueError, OSError, CheckpointError, training.TrainingError) as error:
        _reporting.say(Console(stderr=True), f"error: {error}")
        sys.exit(1)
