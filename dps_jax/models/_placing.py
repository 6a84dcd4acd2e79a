"""How the weights of a decoder, and the rows that go through it, are split over the devices of a mesh.

The partitioning is left to the compiler, which gets sharding constraints: rows stay on their devices, and the weights
of a layer are gathered where they are needed. Gradients of weights are summed over the devices and split again.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_Module = TypeVar("_Module", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Placing:
    """How the weights of a decoder and its rows are split over the devices of a mesh.

    Attributes:
      mesh: devices; the axes of the mesh have the type `AxisType.Auto`.
      row_axes: axes of the mesh that the first axis of activations (prompts) is split over.
      weight_axes: axes of the mesh that every parameter is split over; see `spec_of`.
    """

    mesh: Mesh
    row_axes: tuple[str, ...]
    weight_axes: tuple[str, ...]

    @property
    def num_row_devices(self) -> int:
        """The number of devices that the rows are split over."""
        return _num_devices(self.mesh, self.row_axes)

    def sharding_of(self, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of a parameter of the given shape."""
        return NamedSharding(self.mesh, spec_of(shape, self.mesh, self.weight_axes))

    @property
    def whole(self) -> NamedSharding:
        """The sharding of arrays that are replicated on every device."""
        return NamedSharding(self.mesh, PartitionSpec())


def _num_devices(mesh: Mesh, axes: tuple[str, ...]) -> int:
    count = 1
    for axis in axes:
        count *= mesh.shape[axis]
    return count


def spec_of(shape: tuple[int, ...], mesh: Mesh, axes: tuple[str, ...] | None = None) -> PartitionSpec:
    """Returns the spec that splits an array along the longest of the axes that the number of devices divides.

    An array without such an axis is replicated. Example: on eight devices, a matrix [896, 4864] is split along its
    columns, and a vector [7] is replicated.

    Args:
      shape: shape of the array.
      mesh: devices.
      axes: axes of the mesh to split over; None stands for all of them.
    """
    axes = tuple(mesh.axis_names) if axes is None else axes
    num_devices = _num_devices(mesh, axes)
    fitting = [axis for axis, size in enumerate(shape) if size % num_devices == 0]
    if not fitting:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, axes)


def split_rows(placing: Placing | None, tree: Any) -> Any:
    """Returns arrays split along their first axis (prompts); arrays whose first axis cannot be split are unchanged."""
    if placing is None:
        return tree
    sharding = NamedSharding(placing.mesh, PartitionSpec(placing.row_axes))
    size = placing.num_row_devices

    def split(leaf: jax.Array) -> jax.Array:
        is_divided = leaf.ndim > 0 and leaf.shape[0] % size == 0
        return jax.lax.with_sharding_constraint(leaf, sharding) if is_divided else leaf

    return jax.tree.map(split, tree)


def split_weights(placing: Placing | None, tree: Any) -> Any:
    """Returns parameters, gradients or moments of an optimiser, each split along one of its axes; see `spec_of`."""
    if placing is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, placing.sharding_of(leaf.shape)), tree)


def whole(placing: Placing | None, tree: Any) -> Any:
    """Returns arrays replicated on every device, such as weights before they are used; their gradients are split."""
    return tree if placing is None else _gathered(placing, tree)


def whole_module(placing: Placing | None, module: _Module) -> _Module:
    """Returns a module whose weights are replicated on every device."""
    if placing is None:
        return module
    graphdef, params = nnx.split(module)
    return nnx.merge(graphdef, whole(placing, params))


def keeps_no_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    """Returns whether `jax.checkpoint` keeps a result for the backward pass: all but results of sharding constraints.

    Gathered weights are such results, so they are gathered again in the backward pass.
    """
    return primitive.name != "sharding_constraint"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(placing: Placing, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, placing.whole), tree)


def _gathered_forward(placing: Placing, tree: Any) -> tuple[Any, None]:
    return _gathered(placing, tree), None


def _gathered_backward(placing: Placing, _: None, gradients: Any) -> tuple[Any]:
    # Gradients of vectors are summed before they are split. Otherwise the compiler would split the activations, which
    # the vectors were multiplied by, in the same way.
    summed = lambda leaf: jax.lax.with_sharding_constraint(leaf, placing.whole) if leaf.ndim < 2 else leaf
    return (split_weights(placing, jax.tree.map(summed, gradients)),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
