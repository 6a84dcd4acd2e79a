"""Saves a state that is sharded over eight devices, and restores it to eight, to two and to one.

usage: sharded_checkpoint_program.py DIRECTORY
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dps_jax.training._checkpoints import Checkpoints


def never(message):
    raise AssertionError(message)


def place(num_devices):
    """Returns shardings over some of the devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    return {"kernel": split, "bias": whole}


def main(directory):
    assert jax.device_count() == 8
    host = {"kernel": np.arange(96.0, dtype=np.float32).reshape(16, 6), "bias": np.arange(6, dtype=np.int32)}
    state = jax.device_put(host, place(8)) | {"key": jax.random.key(3)}
    with Checkpoints(directory, report=never) as store:
        store.save(1, state)
        for num_devices in (8, 2, 1):
            shardings = place(num_devices)
            template = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings.get(name))
                for name, leaf in state.items()
            }
            restored = store.restore(template).state
            for name, expected in host.items():
                assert restored[name].sharding == shardings[name]
                np.testing.assert_array_equal(restored[name], expected)
            assert jnp.all(restored["key"] == state["key"])
        restored = store.restore(jax.eval_shape(lambda: state)).state
        np.testing.assert_array_equal(restored["kernel"], host["kernel"])
        assert len(restored["kernel"].devices()) == 1


if __name__ == "__main__":
    main(sys.argv[1])
