"""Runs selectors on one device and on meshes of eight, of every type of axis, and moves states between them.

usage: mesh_program.py rounds CASES | mesh_program.py portable METHOD ...

CASES is a list of methods and numbers of prompts in JSON.
"""

import contextlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from dps_jax import selectors

NUM_SHARDS, BATCH_SIZE = 8, 8
KINDS = ("one device", "default", "Auto", "Explicit", "Manual", "set_mesh")


def mesh_of(kind):
    """Returns a mesh, None for one device, and the context to use it in."""
    nothing = contextlib.nullcontext()
    if kind == "one device":
        return None, nothing
    if kind == "default":
        # As in the README: of whatever type the installed JAX makes of it.
        return jax.make_mesh((NUM_SHARDS,), ("prompts",)), nothing
    axis_type = AxisType.Explicit if kind == "set_mesh" else getattr(AxisType, kind)
    mesh = jax.make_mesh((NUM_SHARDS,), ("prompts",), axis_types=(axis_type,))
    return mesh, jax.set_mesh(mesh) if kind == "set_mesh" else nothing


def options_of(method, num_prompts):
    options = {"temperature": 0.5, "explore": 0.1, "quotas": [0.25, 0.0, 0.2], "groups": np.arange(num_prompts) % 3}
    return options if method in ("dps", "last_state") else {}


class Run:
    """A selector in some place, with its functions compiled once."""

    def __init__(self, method, num_prompts, kind):
        mesh, self.context = mesh_of(kind)
        self.selector = selectors.build(method, num_prompts, mesh=mesh, **options_of(method, num_prompts))
        self.observe = jax.jit(self.selector.observe, donate_argnums=0)
        self.select = jax.jit(self.selector.select, static_argnums=2)
        self.predict = jax.jit(self.selector.predict)
        self.num_prompts = num_prompts

    def rounds(self, state, first, last):
        """Returns the state after some rounds, and their picks."""
        picks = []
        for index in range(first, last):
            rng = np.random.default_rng(index)
            candidates = jnp.asarray(rng.permutation(self.num_prompts)[:30]) if index % 3 == 2 else None
            ids, _ = self.select(state, jax.random.key(index), BATCH_SIZE, candidates)
            picks.append(np.asarray(ids).tolist())
            state = self.observe(state, ids, rng.integers(0, 9, BATCH_SIZE), np.full(BATCH_SIZE, 8))
        return state, picks

    def figures(self, state):
        """Returns predictions for all prompts and for some."""
        ids = jnp.asarray([3, -1, self.num_prompts - 1])
        found = [*self.predict(state), *self.predict(state, ids)]
        if self.selector.predicted_probs is not None:
            found += [self.selector.predicted_probs(state), self.selector.predicted_probs(state, ids)]
        return [np.asarray(field, np.float64).tolist() for field in found]


def rounds(method, num_prompts):
    """Returns picks and predictions of every kind of mesh; those of `moved` changed places between rounds."""
    found = {}
    runs = {kind: Run(method, num_prompts, kind) for kind in ("one device", "Explicit")}
    for kind in KINDS:
        run = runs[kind] if kind in runs else Run(method, num_prompts, kind)
        with run.context:
            state, picks = run.rounds(run.selector.init(jax.random.key(0)), 0, 6)
            found[kind] = {"picks": picks, "figures": run.figures(state)}
    places = [runs["Explicit"], runs["one device"], runs["Explicit"]]
    state, picks = places[0].selector.init(jax.random.key(0)), []
    for index, run in enumerate(places):
        state, of_run = run.rounds(state, 2 * index, 2 * index + 2)
        picks += of_run
        if index < 2:
            state = places[index + 1].selector.from_portable(run.selector.to_portable(state))
    return found | {"moved": {"picks": picks, "figures": places[-1].figures(state)}}


def check_portable(method, num_prompts=101):
    """Checks that arbitrary states go from eight devices to one and back without a bit being changed."""
    meshes = [mesh_of(kind)[0] for kind in ("default", "one device", "default")]
    eight, one, again = (selectors.build(method, num_prompts, mesh=mesh) for mesh in meshes)
    first, rng = eight.init(jax.random.key(0)), np.random.default_rng(0)

    def arbitrary(leaf):
        words = rng.integers(0, 2 if leaf.dtype == bool else 100, leaf.shape)
        return jax.device_put(words.astype(leaf.dtype) + np.asarray(0, leaf.dtype), leaf.sharding)

    state = jax.tree.map(arbitrary, first)
    arrays = eight.to_portable(state)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(arrays))
    specs = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert specs(arrays) == specs(jax.eval_shape(one.init, jax.random.key(0)))
    on_one = one.from_portable(arrays)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(on_one))
    back = again.from_portable(one.to_portable(on_one))
    jax.tree.map(np.testing.assert_array_equal, again.to_portable(back), arrays)
    assert jax.tree.structure(back) == jax.tree.structure(first)
    assert specs(back) == specs(first)
    placed = lambda tree: [leaf.sharding for leaf in jax.tree.leaves(tree)]
    assert placed(back) == placed(first)


if __name__ == "__main__":
    if sys.argv[1] == "rounds":
        print(json.dumps([rounds(*case) for case in json.loads(sys.argv[2])]))
    else:
        for method in sys.argv[2:]:
            check_portable(method)
        print(json.dumps("exact"))
