"""The arrays of a state in the form that orbax uses: a flat dictionary by tree paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, such as "params.layers.0.kernel"; host numbers become arrays.

    Raises:
      ValueError: if two leaves have one name, or JAX cannot hold a host number exactly.
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "leaf"
        if name in leaves:
            raise ValueError(f"state: expected leaves of distinct names, got {name} twice")
        if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
            host = np.asarray(leaf)
            leaf = jnp.array(host)
            if not np.array_equal(leaf, host, equal_nan=host.dtype.kind == "f"):
                raise ValueError(f"state: expected numbers that {leaf.dtype} holds exactly, got {name} {host.dtype}")
        leaves[name] = leaf
    return leaves


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
    """Returns dtype and shape as a text, such as "float32[4, 3]"."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def describe(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description of leaves that is needed to read them back, of JSON types."""
    return {
        "leaves": {name: _kind(leaf) for name, leaf in leaves.items()},
        "key_impls": {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if _is_key(leaf)},
    }


def to_save(leaves: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the leaves that orbax stores: random keys as numbers, and no arrays without entries."""
    return {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items() if leaf.size}


def num_bytes(leaves: Mapping[str, Any]) -> int:
    """Returns an upper estimate of the bytes of leaves on disk, metadata included."""
    return sum(leaf.size * leaf.dtype.itemsize + 1024 for leaf in leaves.values()) + (1 << 16)


def check_structure(path: Path, description: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Raises ValueError if leaves differ from the targets; the message names the first of them."""
    found = description["leaves"]
    expected = {name: _kind(leaf) for name, leaf in targets.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"template: expected {name} {expected.get(name, '(no such leaf)')}, got "
                f"{found.get(name, '(no such leaf)')} in {path}; that checkpoint is of another model, optimiser or "
                "selector: run with the options it was written with, or in another directory"
            )


def read(path: Path, description: Mapping[str, Any], targets: Mapping[str, Any]) -> list[jax.Array]:
    """Returns leaves whose structure was checked, with the shardings of the targets."""
    arguments = {}
    for name, target in targets.items():
        if target.size:
            arguments[name] = ocp.RestoreArgs(restore_type=np.ndarray)
            if getattr(target, "sharding", None) is not None and not _is_key(target):
                arguments[name] = ocp.ArrayRestoreArgs(
                    sharding=target.sharding, global_shape=target.shape, dtype=target.dtype
                )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=arguments)) if arguments else {}

    def leaf_of(name: str, target: Any) -> jax.Array:
        if name not in saved:
            return jnp.zeros(target.shape, target.dtype)
        # Copied, so that the next round may write in place.
        leaf = saved[name] if isinstance(saved[name], jax.Array) else jnp.array(saved[name])
        return jax.random.wrap_key_data(leaf, impl=description["key_impls"][name]) if _is_key(target) else leaf

    return [leaf_of(name, target) for name, target in targets.items()]
