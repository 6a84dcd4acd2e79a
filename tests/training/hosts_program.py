"""Trains on a task as one of several processes, or alone.

usage: hosts_program.py DIRECTORY NAME NUM_ROUNDS FSDP [PROCESS_INDEX NUM_PROCESSES PORT]
"""

import os
import signal
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from dps_jax.training import _config as configs
from dps_jax.training import _figures, _mesh, _trainer
from tests.training import runs


def die(run):
    """Ends this process, as a kill would, when the last checkpoint of all processes is on disk."""
    run.checkpoints.wait()
    multihost_utils.sync_global_devices("all is on disk")
    os.kill(os.getpid(), signal.SIGKILL)


def main(directory, name, num_rounds, fsdp, process_index=0, num_processes=1, port=0):
    """Trains; processes of several are killed after the last round, when its checkpoint is on disk."""
    _figures.plot_run = lambda *arguments, **options: []
    fields = {"fsdp": fsdp}
    if num_processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        fields |= {
            "coordinator": f"127.0.0.1:{port}",
            "num_processes": num_processes,
            "process_index": process_index,
        }
        _trainer._Run.finish = die
    config = runs.tiny(
        Path(directory),
        name=name,
        num_rounds=num_rounds,
        eval_every=100,
        checkpoint_every=2,
        mesh=_mesh.MeshConfig(**fields),
        rollout=configs.RolloutConfig(batch_size=4, group_size=4),
    )
    _trainer.train(config, runs.quiet())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
