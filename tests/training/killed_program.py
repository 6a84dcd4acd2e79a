"""Kills a process that writes checkpoints, again and again, and looks at what is left each time.

usage: killed_program.py DIRECTORY NUM_KILLS
"""

import os
import pathlib
import random
import shutil
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax.training._checkpoints import Checkpoints

SIZE = 200_000


def never(message):
    raise AssertionError(message)


def state_of(round_index):
    return {"params": jnp.arange(SIZE, dtype=jnp.float32) * round_index, "key": jax.random.key(round_index)}


def check(directory, at_least):
    """Raises unless the latest checkpoint is intact and not older than the last one known to be written."""
    with Checkpoints(directory, keep_last=1, report=never) as store:
        restored = store.restore(jax.eval_shape(lambda: state_of(0)))
    if restored is None:
        assert at_least < 0
        return -1
    assert restored.round_index >= at_least, (restored.round_index, at_least)
    expected = state_of(restored.round_index)
    np.testing.assert_array_equal(restored.state["params"], expected["params"])
    assert jnp.all(restored.state["key"] == expected["key"])
    assert restored.facts == {"round": restored.round_index}
    return restored.round_index


def write_for_ever(directory, at_least, pipe):
    """Saves round after round, every third one twice, and says which are on disk."""
    index = check(directory, at_least)
    with Checkpoints(directory, keep_last=1, report=never) as store:
        os.write(pipe, b"begun\n")
        while True:
            index += 1
            for _ in range(2 if index % 3 == 0 else 1):
                store.save(index, state_of(index), {"round": index}, score=float(-index))
            store.wait()
            os.write(pipe, f"{index}\n".encode())


def main(directory, num_kills):
    rng, last = random.Random(0), -1
    for _ in range(num_kills):
        ends = os.pipe()
        # Forked before JAX has started anything: that saves importing it every time.
        child = os.fork()
        if child == 0:
            write_for_ever(directory, last, ends[1])
        os.close(ends[1])
        with open(ends[0]) as lines:
            assert lines.readline() == "begun\n", "the process ended before it was killed"
            time.sleep(rng.uniform(0.0, 0.6))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
            last = max([last, *(int(line) for line in lines if line.endswith("\n"))])
    assert check(directory, last) > 0
    sizes = {path.name: sum(file.stat().st_size for file in path.rglob("*")) for path in directory.iterdir()}
    print(signal.SIGKILL.name, num_kills, "times; left:", sizes)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
