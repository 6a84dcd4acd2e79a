"""The measurements of `gpu_check.py` without models: the rates of the device, and the filter compared with them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import _bench
import _machine
import jax
import jax.numpy as jnp
import numpy as np

import dps_jax

# Number of products in one program, so that the time of its dispatch is negligible.
_NUM_PRODUCTS = 8
# Kinds of matrix products, by name: (dtype, precision). The rate of each is called "matmul NAME".
PRODUCTS = {"bfloat16": ("bfloat16", None), "float32": ("float32", None), "float32, highest": ("float32", "highest")}


class Sizes(NamedTuple):
    """The sizes of all measurements.

    Attributes:
      filters: filters to measure, in ascending order of memory: some of "dps, compact", "binomial_hmm" and "dps".
      num_prompts: numbers of prompts for the filters, N, in ascending order.
      selected: number of prompts that a filter observes and selects, B.
      repeats: number of timed runs of short programs.
      max_seconds: time limit for all runs of one long program, which runs at least once; a fifth of it for short ones,
        which run at least three times.
      copy_bytes: size of the array whose copy measures the bandwidth.
      matmul_size: number of rows of the square matrices whose product measures the rate.
      shapes: names of models in `models.SIZES`.
      vocab_size: size of the vocabulary, V.
      rows: numbers of completions that are sampled together, B times G; one measurement for each.
      group_size: number of completions per prompt, G.
      prompt_length: number of tokens of a prompt, P.
      completion_length: number of tokens of a completion, T.
      update_rows: number of completions of an update.
      rows_per_step: number of completions of an update that go through the model together.
      expected_s: upper estimate of the seconds of a measurement, by kind, including compilation.
    """

    filters: tuple[str, ...]
    num_prompts: tuple[int, ...]
    selected: int
    repeats: int
    max_seconds: float
    copy_bytes: int
    matmul_size: int
    shapes: tuple[str, ...]
    vocab_size: int
    rows: tuple[int, ...]
    group_size: int
    prompt_length: int
    completion_length: int
    update_rows: int
    rows_per_step: int
    expected_s: Mapping[str, float]


FULL = Sizes(
    filters=("dps, compact", "binomial_hmm", "dps"),
    num_prompts=(10**7, 10**8, 10**9),
    selected=512,
    repeats=20,
    max_seconds=10.0,
    copy_bytes=4 * 2**30,
    matmul_size=8192,
    shapes=("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-0.6b"),
    vocab_size=151_936,
    rows=(256, 1024),
    group_size=8,
    prompt_length=256,
    completion_length=1024,
    update_rows=64,
    rows_per_step=32,
    expected_s={"rate": 5.0, "filter": 15.0, "decode": 60.0, "update": 50.0},
)
SMALL = Sizes(
    filters=("dps",),
    num_prompts=(4096,),
    selected=64,
    repeats=3,
    max_seconds=0.5,
    copy_bytes=2**22,
    matmul_size=128,
    shapes=("0.1m",),
    vocab_size=64,
    rows=(8,),
    group_size=4,
    prompt_length=8,
    completion_length=16,
    update_rows=8,
    rows_per_step=8,
    expected_s=dict.fromkeys(("rate", "filter", "decode", "update"), 0.0),
)


class DoesNotFit(Exception):
    """A measurement needs more memory than the device has."""


def measure_copy(sizes: Sizes) -> dict[str, Any]:
    """Returns the bytes that a copy of a large array reads and writes per second."""
    job = _bench.copy_job(sizes.copy_bytes)
    seconds = _medians(job, sizes)["copy"]
    return {"seconds": seconds, "bytes_per_s": 2 * job.facts["copy"]["copied_bytes"] / seconds}


def _multiply(precision: str | None, matrix: jax.Array, weights: jax.Array) -> jax.Array:
    for _ in range(_NUM_PRODUCTS):
        matrix = jnp.matmul(matrix, weights, precision=precision)
    return matrix


def measure_matmul(name: str, sizes: Sizes) -> dict[str, Any]:
    """Returns the FLOP per second of products of square matrices.

    Args:
      name: name of a product in `PRODUCTS`.
      sizes: sizes of the measurements.
    """
    dtype, precision = PRODUCTS[name]
    size = sizes.matmul_size
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    job = _bench.function_job(name, functools.partial(_multiply, precision), matrix, matrix / size**0.5)
    seconds = _medians(job, sizes)[name] / _NUM_PRODUCTS
    return {"size": size, "seconds": seconds, "flop_per_s": 2.0 * size**3 / seconds}


def _medians(job: _bench.Job, sizes: Sizes) -> dict[str, float]:
    """Returns the median seconds of every function of a job."""
    times = _bench.time_in_turns([job], sizes.repeats, sizes.max_seconds / 5, sizes.selected, lambda: None)
    return {name: float(np.median(list(seconds.values()))) for name, seconds in times.items()}


def _filter_method(name: str, num_prompts: int) -> _bench.Method:
    if name == "binomial_hmm":
        method = _bench.named(num_prompts, "binomial_hmm")
    else:
        prior = dps_jax.TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)), 0.7)
        method = _bench.ours(num_prompts, prior, is_compact=name == "dps, compact")
    # Compiled as one program, because the intermediate arrays of an eager call would not fit beside the state.
    return method._replace(init=jax.jit(method.init))


def check_fits(num_bytes: float, what: str) -> None:
    """Raises DoesNotFit if something needs more memory than is free on the device."""
    available = _machine.memory_bytes()[0]
    if num_bytes > available:
        raise DoesNotFit(f"{what} needs {num_bytes / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free")


def measure_filter(name: str, num_prompts: int, sizes: Sizes, rates: Mapping[str, float]) -> dict[str, Any]:
    """Returns the time of a cycle and of its parts, and the bandwidth of the advance as a share of the copy bandwidth.

    `binomial_hmm` advances only prompts that are visited or ranked again. For all others, a cycle only reads the
    scores, so the share of `binomial_hmm` is computed from these bytes and the time of the whole cycle.

    Args:
      name: name of a filter in `Sizes.filters`.
      num_prompts: number of prompts, N.
      sizes: sizes of the measurements.
      rates: rates of the device, of which "copy" is used.

    Raises:
      DoesNotFit: if the filter needs more memory than the device has.
    """
    available = _machine.memory_bytes()[0]
    job = _bench.method_job(_filter_method(name, num_prompts), num_prompts, sizes.selected, available)
    check_fits(job.memory_bytes, f"{name} at N = {num_prompts:,}")
    seconds = _medians(job, sizes)
    advance = job.facts.get(f"{name}: observe", {})
    advance_bytes = int(num_prompts * advance["moved_bytes_per_prompt"]) if advance else None
    cycle_bytes = 4 * num_prompts + (advance_bytes or 0)  # selection reads a float32 score
    cycle_rate = cycle_bytes / seconds[name]
    observe_s = seconds.get(f"{name}: observe")
    rate = cycle_rate if advance_bytes is None or observe_s is None else advance_bytes / observe_s
    return {
        "num_prompts": num_prompts,
        "num_selected": sizes.selected,
        "cycle_s": seconds[name],
        "observe_s": observe_s,
        "select_s": seconds.get(f"{name}: select"),
        "state_bytes_per_prompt": job.facts[name]["state_bytes_per_prompt"],
        "cycle_bytes": cycle_bytes,
        "observe_bytes": advance_bytes,
        "cycle_share": cycle_rate / rates["copy"],
        "bytes_per_s": rate,
        "share": rate / rates["copy"],
        "compile_s": sum(facts["compile_s"] for facts in job.facts.values()),
        "program_bytes": job.memory_bytes,
    }


def time_calls(call: Callable[..., Any], args: tuple[Any, ...], sizes: Sizes) -> tuple[list[float], Any]:
    """Returns the seconds of up to four runs within `max_seconds` (at least one), and the last result."""
    times: list[float] = []
    found = None
    while not times or (len(times) < 4 and sum(times) + times[-1] < sizes.max_seconds):
        found = None  # frees the result before the next run
        start = time.perf_counter()
        found = jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - start)
    return times, found


def timing(times: list[float], program: _bench.Program) -> dict[str, Any]:
    """Returns the reported numbers of some runs; `seconds` is the shortest time, without the first of several."""
    return {
        "runs_s": times,
        "is_warm": len(times) > 1,
        "seconds": min(times[1:] or times),
        "compile_s": program.compile_s,
        "program_bytes": program.memory_bytes,
    }
