"""A run on many devices: one mesh for the policy, its batch and the selector, and states that move between meshes.

The mesh has two axes. Prompts of a batch are split over both; parameters and the moments of the optimiser are split
over "fsdp", and are the same along "data". What a selector keeps of its prompts is split over all devices.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from dps_jax import _checks
from dps_jax.models._placing import Placing
from dps_jax.types import Selector

AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices of a run, data * fsdp of them."""

    data: int = 1
    """Copies of the policy; each reads its share of the prompts of a round."""
    fsdp: int = 1
    """Devices that a copy of the policy, its gradients and the moments of the optimiser are split over."""
    coordinator: str | None = None
    """HOST:PORT of the first process, for a run of several, each on its own devices, that are started alike but for
    process_index; or "auto" where JAX finds it out, as on TPUs and under Slurm. They share the folder of the run."""
    num_processes: int = 1
    """Processes of the run."""
    process_index: int = 0
    """Which of them this is; the first, 0, writes the files."""

    def __post_init__(self):
        for name in (*AXES, "num_processes"):
            _checks.check_int(f"mesh.{name}", getattr(self, name), at_least=1)
        _checks.check_int("mesh.process_index", self.process_index, at_least=0, at_most=self.num_processes - 1)
        if self.coordinator is None and self.num_processes > 1:
            raise ValueError(
                f"mesh.coordinator: expected HOST:PORT of the first of {self.num_processes} processes, got None; set "
                "--mesh.coordinator"
            )

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.data * self.fsdp

    def words(self) -> str:
        """Returns what the number of devices is made of, for messages."""
        return f"mesh.data * mesh.fsdp = {self.data} * {self.fsdp}"


def make_mesh(config: MeshConfig) -> Mesh | None:
    """Returns the mesh of a run, of the first devices there are; None for one device.

    Raises:
      ValueError: if there are fewer devices, or if there are several processes and not all devices are used.
    """
    found = jax.device_count()
    if config.size > found:
        raise ValueError(
            f"mesh: expected at most as many devices as there are, {found}, got {config.words()}; lower one of the two "
            "(on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight)"
        )
    if jax.process_count() > 1 and config.size != found:
        raise ValueError(
            f"mesh: expected all {found} devices of the {jax.process_count()} processes, got {config.words()}; set "
            f"--mesh.data or --mesh.fsdp so that they make {found}"
        )
    if config.size == 1:
        return None
    automatic = (AxisType.Auto,) * len(AXES)
    devices = jax.devices()[: config.size]
    return jax.make_mesh((config.data, config.fsdp), AXES, axis_types=automatic, devices=devices)


def placing_of(mesh: Mesh | None) -> Placing | None:
    """Returns how a policy lies on a mesh of a run."""
    return None if mesh is None else Placing(mesh=mesh, row_axes=AXES, weight_axes=("fsdp",))


def of_prompts(mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh of the same devices with one axis, as selectors take it."""
    return None if mesh is None else Mesh(mesh.devices.ravel(), ("prompts",), axis_types=(AxisType.Auto,))


def put_weights(placing: Placing | None, params: Any) -> Any:
    """Returns parameters on the devices of a mesh, split."""
    if placing is None:
        return params
    return jax.tree.map(lambda leaf: jax.device_put(leaf, placing.sharding_of(leaf.shape)), params)


def put_whole(placing: Placing | None, tree: Any) -> Any:
    """Returns arrays on every device of a mesh; on the default device without one."""
    return jax.device_put(tree) if placing is None else jax.device_put(tree, placing.whole)


def fetch(tree: Any) -> Any:
    """Returns arrays as NumPy arrays. With several processes all have to call it, and get the same."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(one, tree)


class StateForm(NamedTuple):
    """How the state of a run is saved: on a mesh as without one, so that a run can go on with other devices.

    Attributes:
      placing: of the policy; None without a mesh.
      selector: whose state is saved without padding.
    """

    placing: Placing | None
    selector: Selector

    def to_saved(self, state: Any) -> Any:
        """Returns what a checkpoint holds of a `TrainState`. With several processes all have to call it."""
        if self.placing is None:
            return state
        return state._replace(selector=put_whole(self.placing, self.selector.to_portable(state.selector)))

    def template(self, shapes: Any) -> Any:
        """Returns what checkpoints are restored into, from shapes of a `TrainState`."""
        placing = self.placing
        if placing is None:
            return shapes
        whole = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placing.whole)
        split = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placing.sharding_of(leaf.shape))
        portable = self.selector.layout()
        is_policy = ("params", "ref_params", "opt_state")
        return shapes._replace(
            **{name: jax.tree.map(split, getattr(shapes, name)) for name in is_policy},
            selector=jax.tree.map(lambda leaf: whole(jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype))), portable),
            round_index=whole(shapes.round_index),
        )

    def from_saved(self, saved: Any) -> Any:
        """Returns the `TrainState` that a checkpoint restored into `template` holds."""
        if self.placing is None:
            return saved
        return saved._replace(
            selector=self.selector.from_portable(jax.tree.map(np.asarray, saved.selector)),
            key=put_whole(self.placing, saved.key),
        )
