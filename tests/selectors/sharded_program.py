"""Runs selectors over a mesh and prints their picks by method; several processes of it make one mesh together.

usage: sharded_program.py METHODS NUM_PROMPTS NUM_SHARDS [PROCESS_INDEX NUM_PROCESSES PORT]

METHODS is a list in JSON.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

import dps_jax
from dps_jax import selectors
from dps_jax.predictors import _binomial_hmm

BATCH_SIZE = 32
NUM_ROUNDS = 6


def random_prior(rng, num_groups=0):
    """Returns an asymmetric prior that tells trained prompts from idle ones."""
    parts = lambda: (
        rng.dirichlet(np.ones(3)),
        rng.gamma(1.0, size=(3, 3)) + 0.1,
        0.8,
        None,
        rng.gamma(1.0, size=(3, 3)),
    )
    groups = tuple(dps_jax.TransitionPrior(*parts()) for _ in range(num_groups))
    return dps_jax.TransitionPrior(*parts(), groups)


def outcome(method, num_prompts, mesh):
    """Returns picks, predictions and more of some rounds."""
    rng, options, priors = np.random.default_rng(1), {}, {}
    if method == "dps, groups":
        priors = {index: random_prior(rng, num_groups=4) for index in (0, 3)}
        options = {"prior": priors.pop(0), "groups": rng.integers(-1, 4, num_prompts)}
    if method == "binomial_hmm, options":
        groups = rng.integers(-1, 4, num_prompts)
        options = {"groups": groups, "quotas": [0.25, 0.0, 0.1, 0.1], "max_wait": 2 * num_prompts // BATCH_SIZE}
        options |= {"thompson": True, "expected_tokens": rng.uniform(1, 2, num_prompts)}
    selector = selectors.build(method.split(",")[0], num_prompts, mesh=mesh, **options)
    observe, select = jax.jit(selector.observe, donate_argnums=0), jax.jit(selector.select, static_argnums=2)
    state, rng, picks = selector.init(jax.random.key(0)), np.random.default_rng(0), []
    for index in range(NUM_ROUNDS):
        if index in priors:
            state = jax.jit(selector.with_prior, donate_argnums=0)(state, priors[index])
        candidates = jnp.asarray(rng.permutation(num_prompts)[:100]) if index == 4 else None
        exclude = {3: jnp.full(BATCH_SIZE, -1, jnp.int32), 5: jnp.asarray(picks[-1:]).ravel()}.get(index)
        ids, _ = select(state, jax.random.key(index), BATCH_SIZE, candidates, exclude)
        picks.append(np.asarray(ids).tolist())
        visit = ids, rng.integers(0, 9, BATCH_SIZE), np.full(BATCH_SIZE, 8)
        state = observe(state, *visit)
    programs = observe.lower(state, *visit), select.lower(state, jax.random.key(0), BATCH_SIZE, None, exclude)
    largest = 0
    for program in programs:
        for line in program.compile().as_text().splitlines():
            if re.search(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(", line):
                shapes = re.findall(r"\w+\[([\d,]*)\]", line.split("(")[0] + line.split("=")[1])
                sizes = [int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64)) for shape in shapes]
                largest = max(largest, *sizes)
    padded = jnp.concatenate([ids, jnp.full(4, -1)])
    predictions = [np.asarray(field, np.float64).tolist() for field in jax.jit(selector.predict)(state, padded)]
    num_impossible = None if selector.num_impossible is None else int(selector.num_impossible(state))
    arrays = selector.to_portable(state)
    jax.tree.map(np.testing.assert_array_equal, selector.to_portable(selector.from_portable(arrays)), arrays)
    shapes = [leaf.shape for leaf in jax.tree.leaves(arrays)]
    found = {"picks": picks, "largest_collective": largest, "num_impossible": num_impossible, "shapes": shapes}
    return found | {"predictions": predictions}


def connect(process_index, num_processes, port):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes, process_index)
    # Gloo connects at the first exchange, and waits half a minute at most: not after either has compiled for long.
    multihost_utils.sync_global_devices("start")


def main(methods, num_prompts, num_shards, process_index=0, num_processes=1, port=0):
    if num_processes > 1:
        connect(process_index, num_processes, port)
    # One device, too, brings all scores up to date in every round, as shards of this size do.
    _binomial_hmm._REFRESH_SIZE = 2**16
    mesh = jax.make_mesh((num_shards,), ("prompts",)) if num_shards > 1 else None
    print(json.dumps({method: outcome(method, num_prompts, mesh) for method in methods}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), *map(int, sys.argv[2:]))
