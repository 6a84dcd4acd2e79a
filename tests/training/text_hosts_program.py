"""Trains on a data file as one of several processes, or alone, and notes what it grades and writes.

usage: text_hosts_program.py DIRECTORY NAME NUM_ROUNDS DATA FSDP [PROCESS_INDEX NUM_PROCESSES PORT [END]]

DIRECTORY has a folder `model` and a file `sums.jsonl`. END is "kill", a SIGKILL in the middle of the third round, or
"raise", an error when the second process is about to grade.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from dps_jax.training import _figures, _mesh, _text_config, _text_setup, _trainer
from dps_jax.training._phases import Phases
from dps_jax.training._text_grading import TextGrader
from tests.training import text_runs

# Python's audit events of what changes a file system, with the places of paths among their arguments.
CHANGES = {"os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.truncate": (0,)}
KILLED_AFTER = 2


def note_writes(folder, path):
    """Notes, from now on, which files in a folder this process changes, but for checkpoints."""
    file = path.open("w", buffering=1)

    def note(event, arguments):
        names = [arguments[place] for place in CHANGES.get(event, ())]
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            names = [arguments[0]]
        for name in names:
            name = str(name) if isinstance(name, (str, Path)) else ""
            if name.startswith(f"{folder}/") and not name.startswith(f"{folder}/checkpoints"):
                file.write(f"{name}\n")

    sys.addaudithook(note)


def note_grades(path, is_raising):
    """Notes which prompts this process grades, one line for each chunk."""
    grade, file = TextGrader.grade, path.open("w", buffering=1)

    def noted(self, ids, tokens, mask):
        if is_raising:
            raise ValueError("ids: expected nothing at all")
        file.write(json.dumps(ids.tolist()) + "\n")
        return grade(self, ids, tokens, mask)

    TextGrader.grade = noted


def kill_in_round():
    """Kills this process when the completions of a round are graded and the checkpoint before it is on disk."""
    loop = _trainer._Run.loop

    def killed_loop(run):
        collect = run.parts.collect

        def killing(state, selection):
            found = collect(state, selection)
            if run.round_index == KILLED_AFTER:
                run.checkpoints.wait()
                multihost_utils.sync_global_devices("all is on disk")
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        run.phases = Phases(run.parts.round, killing)
        loop(run)

    _trainer._Run.loop = killed_loop


def main(directory, name, num_rounds, data, fsdp, process_index=0, num_processes=1, port=0, end=None):
    """Trains."""
    directory = Path(directory)
    _figures.plot_run = lambda *arguments, **options: []
    fields = {"data": data, "fsdp": fsdp}
    if num_processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        address = f"127.0.0.1:{port}"
        fields |= {"coordinator": address, "num_processes": num_processes, "process_index": process_index}
    config = text_runs.tiny(
        directory / "model",
        directory / "sums.jsonl",
        directory,
        name=name,
        num_rounds=num_rounds,
        eval_every=100,
        mesh=_mesh.MeshConfig(**fields),
        # An odd number, so that one of two processes grades fewer.
        prompts=_text_config.PromptsConfig(num_test=5, max_length=64),
    )
    note_writes(config.folder, directory / f"{name}.{process_index}.written")
    note_grades(directory / f"{name}.{process_index}.graded", is_raising=end == "raise" and process_index == 1)
    if end == "kill":
        kill_in_round()
    _trainer.train(config, build=_text_setup.build)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:9]), *sys.argv[9:])
