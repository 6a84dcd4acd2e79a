"""The layout of prompts on the devices of a mesh; apart from `_composition`, no other module handles meshes.

With a mesh, every array over prompts is sharded along its last axis. Padding in the last shards gives all shards the
same size. Only states have padding; results of this module have none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dps_jax import _checks
from dps_jax.selectors._ranking import MAX_NUM_PROMPTS
from dps_jax.types import ArrayLayout, Predictor

REPLICATED = PartitionSpec()


class Shards(NamedTuple):
    """The layout of N prompts on the devices of a mesh; one shard without a mesh.

    Attributes:
      num_prompts: number of prompts, N.
      size: number of entries of one shard, the same for all; the last shards may end with padding.
      num_padding: number of entries of padding in all shards.
      mesh: mesh with one axis, or None.
      axis_name: name of the axis, or None.
    """

    num_prompts: int
    size: int
    num_padding: int
    mesh: Mesh | None
    axis_name: str | None

    def run(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Returns a function of global arrays that runs fn(first_id, ...) on every shard."""
        if self.mesh is None:
            return functools.partial(fn, 0)
        local = lambda *arrays: fn(lax.axis_index(self.axis_name) * self.size, *arrays)
        return jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def positions(self, first_id: Any, ids: jax.Array) -> jax.Array:
        """Returns positions in one shard; `size` for ids of other shards and for padding."""
        is_mine = (ids >= first_id) & (ids < first_id + self.size) & (ids < self.num_prompts)
        return jnp.where(is_mine, ids - first_id, self.size)

    def gathered(self, local: Any, *, axis: int = 0) -> Any:
        """Returns the leaves of all shards, concatenated along an axis and replicated to every shard."""
        if self.axis_name is None:
            return local
        return jax.tree.map(lambda leaf: lax.all_gather(leaf, self.axis_name, axis=axis, tiled=True), local)

    def of_owners(self, is_mine: jax.Array, local: Any) -> Any:
        """Returns the value that each prompt has on its own shard, replicated to every shard; 0 for padding.

        Args:
          is_mine: whether a prompt belongs to this shard, bool [P].
          local: values on this shard, leaves [..., P].
        """
        mine = jax.tree.map(lambda leaf: jnp.where(is_mine, leaf, 0), local)
        return mine if self.axis_name is None else lax.psum(mine, self.axis_name)


def shards_of(num_prompts: int, mesh: Mesh | None) -> Shards:
    """Returns the layout of prompts on a mesh.

    Args:
      num_prompts: number of prompts, N.
      mesh: mesh with one axis of any type, or None.

    Raises:
      ValueError: for a bad number of prompts, or a mesh of several axes.
    """
    _checks.check_int("num_prompts", num_prompts, at_least=1, at_most=MAX_NUM_PROMPTS)
    if mesh is None:
        return Shards(num_prompts, num_prompts, 0, None, None)
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh, such as jax.make_mesh returns, or None, got {mesh!r}")
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh: expected one axis, got {mesh.axis_names}")
    if AxisType.Manual in mesh.axis_types:
        # States are arrays outside of `shard_map`, which cannot be sharded along a manual axis.
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,))
    size = -(-num_prompts // mesh.size)
    return Shards(num_prompts, size, size * mesh.size - num_prompts, mesh, mesh.axis_names[0])


def state_specs(predictor: Predictor, shards: Shards) -> Any:
    """Returns the partition spec of each leaf of a state: leaves over prompts are sharded along their last axis.

    Without a mesh, specs have no axis name but still distinguish leaves over prompts from others; see `is_split`.
    """
    sizes = (shards.size, shards.size + 1)
    shapes, larger = (jax.eval_shape(functools.partial(predictor.init, size)) for size in sizes)

    def spec(leaf: Any, larger: Any) -> PartitionSpec:
        if leaf.shape == larger.shape:
            return REPLICATED
        return PartitionSpec(*(None,) * (leaf.ndim - 1), shards.axis_name)

    return jax.tree.map(spec, shapes, larger)


def is_split(spec: PartitionSpec) -> bool:
    """Returns whether a leaf of this spec has prompts on its last axis."""
    return len(spec) > 0


def of_some(state: Any, specs: Any, positions: jax.Array) -> Any:
    """Returns the state of some of the prompts of a shard, in the given order.

    Args:
      state: state of a shard.
      specs: partition specs of `state_specs`.
      positions: positions of the prompts, int [P], in [0, size).
    """
    return jax.tree.map(lambda leaf, spec: leaf[..., positions] if is_split(spec) else leaf, state, specs)


def placed_init(predictor: Predictor, shards: Shards, specs: Any) -> Any:
    """Returns the initial state of a predictor, on the devices of the mesh."""
    build = shards.run(lambda first_id: predictor.init(shards.size, first_id), (), specs)
    if shards.mesh is None:
        return build()
    shardings = jax.tree.map(functools.partial(NamedSharding, shards.mesh), specs)
    return jax.jit(build, out_shardings=shardings)()


def over_all(fn: Callable[[Any], Any], shards: Shards, specs: Any, *, ndim: int) -> Callable[[Any], Any]:
    """Returns the function state -> fn(state) for all prompts, with leaves [N] or [K, N].

    The leaves are sharded like the state if the number of devices divides N, and replicated otherwise, since an array
    cannot be sharded unevenly along an axis.

    Args:
      fn: function state -> pytree of leaves with prompts on their last axis, or of scalars that stand for all prompts.
      shards: layout of the prompts on devices.
      specs: partition specs of `state_specs`.
      ndim: number of axes of each leaf of the result.
    """

    def local(first_id: Any, state: Any) -> Any:
        del first_id
        found = jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.full(shards.size, leaf), fn(state))
        if not shards.num_padding:
            return found
        return jax.tree.map(lambda leaf: leaf[..., : shards.num_prompts], shards.gathered(found, axis=ndim - 1))

    out_spec = REPLICATED if shards.num_padding else PartitionSpec(*(None,) * (ndim - 1), shards.axis_name)
    return shards.run(local, (specs,), out_spec)


def to_portable(shards: Shards, specs: Any, state: Any) -> Any:
    """Returns a state as NumPy arrays without padding; see `types.ToPortable`."""

    def whole(leaf: jax.Array, spec: PartitionSpec) -> np.ndarray:
        if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.array(leaf)
        return np.ascontiguousarray(array[..., : shards.num_prompts]) if is_split(spec) else array

    return jax.tree.map(whole, state, specs)


def layout(predictor: Predictor, shards: Shards, specs: Any) -> Any:
    """Returns an `ArrayLayout` for every array of a state without padding; see `types.Layout`."""
    shapes = jax.eval_shape(functools.partial(predictor.init, shards.num_prompts))
    return jax.tree.map(lambda leaf, spec: ArrayLayout(leaf.shape, str(leaf.dtype), is_split(spec)), shapes, specs)


def from_portable(shards: Shards, specs: Any, expected: Any, arrays: Any) -> Any:
    """Returns a state from NumPy arrays without padding, placed as by `placed_init`; see `types.FromPortable`."""
    _check_like(arrays, expected)

    def place(array: Any, spec: PartitionSpec) -> jax.Array:
        array = np.asarray(array)
        if shards.mesh is None:
            # Copied, since the state may be donated.
            return jnp.array(array)
        if is_split(spec):
            # Padding is never read; it is filled with the entries of the last prompt.
            array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, shards.num_padding)], mode="edge")
        return jax.make_array_from_callback(array.shape, NamedSharding(shards.mesh, spec), array.__getitem__)

    return jax.tree.map(place, arrays, specs)


def _check_like(arrays: Any, expected: Any) -> None:
    """Raises ValueError unless a pytree has the structure, shapes and dtypes of a layout."""
    found_def, expected_def = jax.tree.structure(arrays), jax.tree.structure(expected)
    if found_def != expected_def:
        raise ValueError(f"arrays: expected a state of structure {expected_def}, got {found_def}")
    for (path, wanted), found in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(arrays), strict=True):
        array = np.asarray(found)
        if (array.shape, str(array.dtype)) != (wanted.shape, wanted.dtype):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"arrays{name}: expected {wanted}, got {array.dtype}{list(array.shape)}; build the selector with the "
                "same options"
            )
