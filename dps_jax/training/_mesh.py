"""A run on several devices: its mesh, and a form of its state that does not depend on the mesh.

The mesh has two axes. Prompts of a batch are split over both; parameters and the moments of the optimiser are split
over "fsdp" and replicated along "data". The state of the selector is split over all devices, along its prompts.
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
    """The devices of a run; their number is data * fsdp.

    Example:
      >>> from dps_jax import training
      >>> config = training.TrainConfig(mesh=training.MeshConfig(data=2, fsdp=4))
      >>> config.mesh.size
      8
    """

    data: int = 1
    """Number of copies of the policy; each processes its share of the prompts of a round."""
    fsdp: int = 1
    """Number of devices that each copy of the policy, its gradients and the optimiser state are split over."""
    coordinator: str | None = None
    """HOST:PORT of the first process, for a run of several processes, each on its own devices; or "auto" where JAX
    finds it by itself, as on TPUs and under Slurm. Start all processes with the same options, except for
    --mesh.process-index, and on a file system that they share."""
    num_processes: int = 1
    """Number of processes of the run; not used with --mesh.coordinator auto."""
    process_index: int = 0
    """Index of this process, from 0; not used with --mesh.coordinator auto. Process 0 writes the files; all processes
    write checkpoints together."""

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
        """Returns the number of devices as a product, for messages."""
        return f"mesh.data * mesh.fsdp = {self.data} * {self.fsdp}"


def make_mesh(config: MeshConfig) -> Mesh | None:
    """Returns the mesh of a run, on the first devices of JAX; None for one device.

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
    """Returns how the weights and rows of a policy are split over the mesh of a run."""
    return None if mesh is None else Placing(mesh=mesh, row_axes=AXES, weight_axes=("fsdp",))


def of_prompts(mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh of the same devices with the one axis that selectors need."""
    return None if mesh is None else Mesh(mesh.devices.ravel(), ("prompts",), axis_types=(AxisType.Auto,))


def put_weights(placing: Placing | None, params: Any) -> Any:
    """Returns parameters split over the devices of a mesh."""
    if placing is None:
        return params
    return jax.tree.map(lambda leaf: jax.device_put(leaf, placing.sharding_of(leaf.shape)), params)


def put_whole(placing: Placing | None, tree: Any) -> Any:
    """Returns arrays replicated on all devices of a mesh, or on the default device without one."""
    return jax.device_put(tree) if placing is None else jax.device_put(tree, placing.whole)


def fetch(tree: Any) -> Any:
    """Returns arrays as NumPy arrays. If there are several processes, all must call this, and all get the same."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(one, tree)


class StateForm(NamedTuple):
    """The form in which the state of a run is saved, which does not depend on the mesh, so that the mesh can change.

    Attributes:
      placing: how the policy is split over the mesh; None without a mesh.
      selector: the selector, whose state is saved without padding.
    """

    placing: Placing | None
    selector: Selector

    def to_saved(self, state: Any) -> Any:
        """Returns the form of a `TrainState` that is saved. If there are several processes, all must call this."""
        if self.placing is None:
            return state
        return state._replace(selector=put_whole(self.placing, self.selector.to_portable(state.selector)))

    def template(self, shapes: Any) -> Any:
        """Returns the template that checkpoints are restored into, from shapes of a `TrainState`."""
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
        """Returns the `TrainState` of a checkpoint that was restored into `template`."""
        if self.placing is None:
            return saved
        return saved._replace(
            selector=self.selector.from_portable(jax.tree.map(np.asarray, saved.selector)),
            key=put_whole(self.placing, saved.key),
        )
