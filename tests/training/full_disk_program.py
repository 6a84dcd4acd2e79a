"""Writes a checkpoint for which there is no room, after one that fits.

A process of its own: the limit holds for all its threads, and what the library underneath leaves behind when its
writes fail (coroutines, callbacks) ends with it.

usage: full_disk_program.py DIRECTORY
"""

import pathlib
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax.training._checkpoints import CheckpointError, Checkpoints


def never(message):
    raise AssertionError(message)


def state_of(round_index, size):
    return {"params": jax.random.normal(jax.random.key(round_index), (size,)), "round_index": jnp.int32(round_index)}


def main(directory):
    large = state_of(10, 1_000_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(directory, report=never) as store:
        store.save(9, state_of(9, 100))
        store.wait()
        # Files may not grow beyond 1 MiB, which fails a write as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        store.save(10, large)
        try:
            store.wait()
        except CheckpointError as error:
            message = str(error)
        else:
            raise AssertionError("expected an error")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not (directory / "round_0000000010.pending").exists()
        restored = store.restore(jax.eval_shape(lambda: state_of(0, 100)))
        np.testing.assert_array_equal(restored.state["params"], state_of(9, 100)["params"])
        store.save(11, large)  # as if somebody had made room
        store.wait()
        assert store.rounds() == (9, 11), store.rounds()
    print(message)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
