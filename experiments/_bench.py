"""The parts of `bench_filter.py`: implementations of the model, reference operations, and timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import dps_jax

GROUP_SIZE = 8
# Before anything is timed, an eighth of the prompts (at most 2**20; 2**13 for binomial_hmm) is observed in each of four
# rounds. The offsets of the observed prompts are equal in rounds 0 and 2, so these observe the same prompts.
_BURN_IN_OFFSETS = (0, 3, 0, 5)


class Round(NamedTuple):
    """The inputs of one round: a key, successes [B] and counts [B]."""

    key: jax.Array
    successes: jax.Array
    counts: jax.Array


class Method(NamedTuple):
    """One implementation of the model in docs/concepts/method.md with K = 3, or of another model.

    Attributes:
      name: name in tables.
      init: () -> state.
      observe: (state, ids, successes, counts) -> state of the next round.
      select: (state, key, batch_size) -> (scores [B], ids [B]).
      scores: state -> scores that prompts are ranked by, [N].
      predicted_probs: state -> predicted probabilities, [3, N]; None for another model.
      tolerance: largest difference of predicted probabilities from those of the other methods.
      moved_bytes: state -> bytes that `observe` has to read and write; None if they are not counted.
      max_observed: largest number of prompts that can be observed in one round.
    """

    name: str
    init: Callable[[], Any]
    observe: Callable[..., Any]
    select: Callable[..., tuple[Any, Any]]
    scores: Callable[[Any], Any]
    predicted_probs: Callable[[Any], Any] | None
    tolerance: float = 1e-5
    moved_bytes: Callable[[Any], int] | None = None
    max_observed: int = 2**20


class _VmapState(NamedTuple):
    belief: jax.Array
    predicted: jax.Array
    counts: jax.Array


def loop(num_prompts: int, prior: dps_jax.TransitionPrior) -> Method:
    """Returns the model as dictionaries of small matrices, with one NumPy step per prompt and a sort of all prompts.

    Matrices have axes [to, from], and their columns sum to one, as in the published sampler.
    """
    prior_counts = np.asarray(prior.concentration, np.float64).T
    initial, decay = np.asarray(prior.initial_probs, np.float64), float(prior.decay)
    one_hot = np.eye(3)

    def init():
        names = ("belief", "predicted", "counts")
        values = (initial, initial, prior_counts)
        return {name: dict.fromkeys(range(num_prompts), value) for name, value in zip(names, values, strict=True)}

    def observe(state, ids, successes, counts):
        visits = zip(np.asarray(ids).tolist(), np.asarray(successes).tolist(), np.asarray(counts).tolist(), strict=True)
        seen = {prompt: 0 if m == 0 else 2 if m == g else 1 for prompt, m, g in visits}
        for prompt in range(num_prompts):
            alpha = state["counts"][prompt]
            kept = decay * alpha + (1 - decay) * prior_counts
            if prompt in seen:
                likelihood = one_hot[seen[prompt]]
                joint = likelihood[:, None] * (alpha / alpha.sum(axis=0)) * state["belief"][prompt]
                kept = kept + joint / joint.sum()
                state["belief"][prompt] = likelihood
            else:
                state["belief"][prompt] = state["predicted"][prompt]
            state["counts"][prompt] = kept
            state["predicted"][prompt] = (kept / kept.sum(axis=0)) @ state["belief"][prompt]
        return state

    def scores(state):
        return np.array([state["predicted"][prompt][1] for prompt in range(num_prompts)])

    def select(state, key, batch_size):
        values = scores(state)
        ids = np.argsort(-values)[:batch_size]
        return values[ids], ids

    def predicted_probs(state):
        return np.stack([state["predicted"][prompt] for prompt in range(num_prompts)], axis=1)

    return Method("loop", init, observe, select, scores, predicted_probs)


def vmapped(num_prompts: int, prior: dps_jax.TransitionPrior, prompt_axis: int = 0) -> Method:
    """Returns the model as `jax.vmap` of one prompt's 3 x 3 step; prompts are on the first (0) or last (-1) axis."""
    prior_counts, decay = jnp.asarray(prior.concentration, jnp.float32), prior.decay

    def init():
        def repeat(values):
            return jnp.repeat(jnp.expand_dims(jnp.asarray(values, jnp.float32), prompt_axis), num_prompts, prompt_axis)

        return _VmapState(repeat(prior.initial_probs), repeat(prior.initial_probs), repeat(prior_counts))

    def step(state, outcome):
        is_seen, seen = outcome >= 0, jax.nn.one_hot(outcome, 3)
        transition_matrix = state.counts / state.counts.sum(axis=1, keepdims=True)
        joint = state.belief[:, None] * transition_matrix * seen
        soft_counts = jnp.where(is_seen, joint / jnp.where(is_seen, joint.sum(), 1), 0)
        belief = jnp.where(is_seen, seen, state.predicted)
        counts = decay * state.counts + (1 - decay) * prior_counts + soft_counts
        return _VmapState(belief, belief @ (counts / counts.sum(axis=1, keepdims=True)), counts)

    def observe(state, ids, successes, counts):
        seen = jnp.where(successes == 0, 0, jnp.where(successes == counts, 2, 1))
        outcomes = jnp.full(num_prompts, -1).at[ids].set(seen)
        return jax.vmap(step, in_axes=(prompt_axis, 0), out_axes=prompt_axis)(state, outcomes)

    scores = lambda state: jnp.moveaxis(state.predicted, prompt_axis, -1)[1]
    select = lambda state, key, batch_size: lax.top_k(scores(state), batch_size)
    predicted_probs = lambda state: jnp.moveaxis(state.predicted, prompt_axis, -1)
    name = "vmap" if prompt_axis == 0 else "vmap, prompts last"
    return Method(name, init, observe, select, scores, predicted_probs)


def ours(num_prompts: int, prior: dps_jax.TransitionPrior, is_compact: bool = False) -> Method:
    """Returns `dps_jax.selectors.dps`, called through its public functions."""
    selector = dps_jax.selectors.dps(num_prompts, prior=prior, is_compact=is_compact)

    assert selector.predicted_probs is not None

    def select(state, key, batch_size):
        ids, info = selector.select(state, key, batch_size)
        return info.scores, ids

    def moved_bytes(state):
        return num_bytes(state.scaled_counts) + 2 * num_bytes(state.belief_odds) + num_bytes(state.predicted_value)

    return Method(
        name="dps, compact" if is_compact else "dps",
        init=lambda: selector.init(jax.random.key(0)),
        observe=selector.observe,
        select=select,
        scores=lambda state: selector.predict(state).p_informative,
        predicted_probs=selector.predicted_probs,
        tolerance=1e-2 if is_compact else 1e-5,
        moved_bytes=moved_bytes,
    )


def named(num_prompts: int, method: str) -> Method:
    """Returns a selector of dps_jax by its name, with default options, called through its public functions."""
    selector = dps_jax.selectors.build(method, num_prompts)

    def select(state, key, batch_size):
        ids, info = selector.select(state, key, batch_size)
        return info.scores, ids

    return Method(
        name=method,
        init=lambda: selector.init(jax.random.key(0)),
        observe=selector.observe,
        select=select,
        scores=lambda state: selector.predict(state).p_informative,
        predicted_probs=None,
        # Some methods need matrices for every observed prompt.
        max_observed=2**13,
    )


def num_bytes(tree: Any) -> int:
    """Returns the number of bytes of all arrays in a tree; `jax.ShapeDtypeStruct`s count as arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def burn_in(state: Any, num_prompts: int, max_observed: int, observe: Callable[..., Any]) -> Any:
    """Returns a state after four rounds, each with random outcomes of many prompts."""
    stride = min(max(8, -(-num_prompts // max_observed)), num_prompts)
    size = num_prompts // stride
    counts = jnp.full(size, GROUP_SIZE)
    for seed, offset in enumerate(_BURN_IN_OFFSETS):
        ids = offset % stride + stride * jnp.arange(size)
        successes = jnp.asarray(np.random.default_rng(seed).integers(0, GROUP_SIZE + 1, size, np.int32))
        state = observe(state, ids, successes, counts)
    return state


def make_rounds(num_rounds: int, batch_size: int) -> list[Round]:
    """Returns random inputs of rounds, as arrays on the device."""
    rng = np.random.default_rng(100)
    successes = rng.integers(0, GROUP_SIZE + 1, (num_rounds, batch_size), np.int32)
    counts = jnp.full(batch_size, GROUP_SIZE)
    made = [Round(jax.random.key(index), jnp.asarray(row), counts) for index, row in enumerate(successes)]
    return jax.block_until_ready(made)


class Job(NamedTuple):
    """One or more functions to time, which are compiled but have no arrays yet.

    Attributes:
      facts: name of each timed function -> facts that are known before timing, such as compile_s or bytes per prompt.
      memory_bytes: peak memory of a run, in bytes.
      start: () -> (name -> function that runs one round and returns when its results are ready). Allocates the state,
        which is freed with these functions.
    """

    facts: dict[str, dict[str, float]]
    memory_bytes: int
    start: Callable[[], dict[str, Callable[[Round], None]]]


class Program(NamedTuple):
    """A compiled function, the time that tracing and compiling took, and its peak memory."""

    call: Callable[..., Any]
    compile_s: float
    memory_bytes: int


def compile_for(fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Program:
    """Returns `fn` compiled for the shapes and dtypes of `args`; these may be arrays or `jax.ShapeDtypeStruct`s."""
    start = time.perf_counter()
    compiled = jax.jit(fn, donate_argnums=donate, keep_unused=True).lower(*args).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak = 0
    if memory is not None:
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        peak -= memory.alias_size_in_bytes
    return Program(compiled, compile_s, int(peak))


def loop_job(method: Method, num_prompts: int, batch_size: int) -> Job:
    """Returns the job that times the cycle of a method in plain Python."""

    def start():
        carry = {
            "state": burn_in(method.init(), num_prompts, method.max_observed, method.observe),
            "ids": np.arange(batch_size),
        }

        def run(given):
            carry["state"] = method.observe(carry["state"], carry["ids"], given.successes, given.counts)
            _, carry["ids"] = method.select(carry["state"], given.key, batch_size)

        return {method.name: run}

    return Job({method.name: {}}, 1000 * num_prompts, start)


def method_job(method: Method, num_prompts: int, batch_size: int, memory_limit: int, *, has_sorts: bool = False) -> Job:
    """Returns the job that times the compiled cycle of a method; if it has `moved_bytes`, also `observe` and `select`.

    Args:
      method: method to compile.
      num_prompts: number of prompts, N.
      batch_size: number of prompts per round, B.
      memory_limit: largest size of the state in bytes; a method with a larger state is not compiled.
      has_sorts: whether to time `lax.top_k` and a full sort of the scores of the same state, too.
    """

    def observe(state, ids, given):
        return method.observe(state, ids, given.successes, given.counts), None

    def select(state, ids, given):
        return None, method.select(state, given.key, batch_size)

    def cycle(state, ids, given):
        state, _ = observe(state, ids, given)
        return state, select(state, ids, given)[1]

    def top_k(state, ids, given):
        return None, lax.top_k(method.scores(state), batch_size)

    def argsort(state, ids, given):
        scores = method.scores(state)
        ids = jnp.argsort(-scores)[:batch_size]
        return None, (scores[ids], ids)

    parts = {method.name: cycle}
    if method.moved_bytes is not None:
        parts |= {f"{method.name}: observe": observe, f"{method.name}: select": select}
    if has_sorts:
        parts |= {"top_k": top_k, "argsort": argsort}
    shapes = jax.eval_shape(method.init)
    if num_bytes(shapes) > memory_limit:
        return Job({name: {} for name in parts}, num_bytes(shapes), dict)
    given = make_rounds(1, batch_size)[0]
    programs = {
        name: compile_for(part, shapes, jnp.arange(batch_size), given, donate=(0,) if part in (cycle, observe) else ())
        for name, part in parts.items()
    }
    facts = {name: {"compile_s": program.compile_s} for name, program in programs.items()}
    facts[method.name]["state_bytes_per_prompt"] = num_bytes(shapes) / num_prompts
    if method.moved_bytes is not None:
        facts[f"{method.name}: observe"]["moved_bytes_per_prompt"] = method.moved_bytes(shapes) / num_prompts

    def start():
        state = burn_in(method.init(), num_prompts, method.max_observed, jax.jit(method.observe, donate_argnums=0))
        carry = {"state": jax.block_until_ready(state), "ids": jnp.arange(batch_size)}

        def runner(program):
            def run(given):
                state, picked = jax.block_until_ready(program.call(carry["state"], carry["ids"], given))
                carry["state"] = carry["state"] if state is None else state
                carry["ids"] = carry["ids"] if picked is None else picked[1]

            return run

        return {name: runner(program) for name, program in programs.items()}

    return Job(facts, max(program.memory_bytes for program in programs.values()), start)


def object_job(method: str, num_prompts: int, batch_size: int, max_observed: int) -> Job:
    """Returns the job that times the cycle through `PromptSelector`, with NumPy arrays, ranking all prompts."""

    def start():
        selector = dps_jax.PromptSelector(num_prompts, method=method, pool_factor=0)

        def observe(state, ids, successes, counts):
            selector.observe(ids, successes, counts)
            selector.commit()
            return state

        burn_in(None, num_prompts, max_observed, observe)
        carry = {"ids": np.arange(batch_size)}

        def run(given):
            selector.observe(carry["ids"], np.asarray(given.successes), GROUP_SIZE)
            carry["ids"] = selector.select(batch_size)

        return {f"{method}: PromptSelector": run}

    # At most 48 bytes per prompt for the state, and 8 for the random outcomes of the rounds before timing.
    return Job({f"{method}: PromptSelector": {}}, 56 * num_prompts, start)


def floor_job(num_prompts: int) -> Job:
    """Returns the job of the memory reference: x + 1 in place over twelve float32 arrays [N]."""
    shapes = [jax.ShapeDtypeStruct((num_prompts,), jnp.float32)] * 12
    program = compile_for(lambda arrays: [x + 1 for x in arrays], shapes, donate=(0,))

    def start():
        arrays = [jnp.ones(num_prompts) for _ in shapes]

        def run(given):
            arrays[:] = jax.block_until_ready(program.call(arrays))

        return {"floor": run}

    return Job({"floor": {"compile_s": program.compile_s}}, program.memory_bytes, start)


def copy_job(num_bytes: int) -> Job:
    """Returns the job that copies one large array over another."""
    size = num_bytes // 4
    shape = jax.ShapeDtypeStruct((size,), jnp.float32)
    program = compile_for(lambda target, source: jnp.copy(source), shape, shape, donate=(0,))

    def start():
        arrays = [jnp.zeros(size), jnp.ones(size)]

        def run(given):
            arrays[0] = jax.block_until_ready(program.call(*arrays))

        return {"copy": run}

    return Job({"copy": {"compile_s": program.compile_s, "copied_bytes": 4 * size}}, program.memory_bytes, start)


def function_job(name: str, fn: Callable[..., Any], *args: jax.Array) -> Job:
    """Returns the job that times a pure function of some arrays."""
    program = compile_for(fn, *args)

    def run(given):
        jax.block_until_ready(program.call(*args))

    return Job({name: {"compile_s": program.compile_s}}, program.memory_bytes, lambda: {name: run})


def group_jobs(jobs: list[Job], available: float) -> list[list[Job]]:
    """Returns groups of jobs that fit in memory together; each includes the first job (the floor) if it fits as well.

    A job that does not fit alone is left out.
    """
    fitting = [job for job in jobs if job.memory_bytes <= available]
    groups, floor = [fitting[:1]], jobs[0]
    for job in fitting[1:]:
        if sum(member.memory_bytes for member in groups[-1]) + job.memory_bytes <= available:
            groups[-1].append(job)
        else:
            groups.append([floor, job] if floor.memory_bytes + job.memory_bytes <= available else [job])
    return [group for group in groups if group]


def time_in_turns(
    jobs: list[Job], num_repeats: int, max_seconds: float, batch_size: int, advance: Callable[[], None]
) -> dict[str, dict[int, float]]:
    """Returns the seconds of every run, {name: {repeat: seconds}}; slow functions are left out of some repeats.

    Args:
      jobs: jobs to start; their states are all in memory at the same time.
      num_repeats: number of repeats; each runs the functions in a new random order. One or two untimed runs of every
        function come first.
      max_seconds: time limit for all runs of one function; at least three repeats are timed in any case.
      batch_size: number of prompts per round, B.
      advance: function that is called after every repeat.
    """
    runs = {name: run for job in jobs for name, run in job.start().items()}
    given = make_rounds(num_repeats + 2, batch_size)

    def seconds(name, repeat):
        start = time.perf_counter()
        runs[name](given[repeat])
        return time.perf_counter() - start

    num_due = {}
    for name in runs:
        first = seconds(name, -1)
        first = first if first > 1 else seconds(name, -2)
        num_due[name] = min(num_repeats, max(3, int(max_seconds / first)))
    times: dict[str, dict[int, float]] = {name: {} for name in runs}
    rng = np.random.default_rng(0)
    for repeat in range(num_repeats):
        for name in rng.permutation(list(runs)).tolist():
            if len(times[name]) * num_repeats < num_due[name] * (repeat + 1):
                times[name][repeat] = seconds(name, repeat)
        advance()
    return times
