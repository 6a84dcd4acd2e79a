"""Measures one cycle of prompt selection, and the same cycle in other implementations, all in one run.

A cycle observes B prompts, advances the model of all N prompts by one round, and picks the B best; `binomial_hmm`
advances the observed prompts and, in turn, a part of the others. `make bench` runs this script.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import _bench
import _bench_report
import _machine
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress

import dps_jax
from dps_jax import _cli, _json
from dps_jax.hmm import emissions, smoothing

CONTESTANTS = (
    "loop",
    "vmap",
    "vmap, prompts last",
    "dps",
    "dps: observe",
    "dps: select",
    "dps: PromptSelector",
    "dps, compact",
    "dps, compact: observe",
    "dps, compact: select",
    "binomial_hmm",
    "binomial_hmm: PromptSelector",
    "top_k",
    "argsort",
    "floor",
    "copy",
)
# Bytes per prompt for a full sort: the state of dps, scores and ids, and a second copy of scores and ids.
_SORT_BYTES = 48 + 2 * 16
METHOD_NOTES = {
    "cycle": "observe B prompts, advance all N by one round, pick the B best; inputs are on the device beforehand, and "
    "the time includes the dispatch from Python and ends when the results are ready.",
    "state": "four rounds with random outcomes of an eighth of the prompts each (at most 2**20; 2**13 for "
    "binomial_hmm), then cycles with random outcomes (m uniform on 0 .. 8 of 8) of the prompts picked before; uniform "
    "prior, decay 0.7.",
    "repeats": "in every repeat, the contestants run in a new random order, after one or two warm-up runs; slow ones "
    "are left out of some repeats, but have at least three runs.",
    "ratio_to_floor": "median over repeats of own time / time of `floor` in the same repeat (kind `paired`); if the "
    "two do not fit in memory together, ratio of the medians (kind `unpaired`).",
    "moved_bytes_per_prompt": "bytes that `observe` moves: counts read, belief odds read and written, scores written.",
    "share_of_copy_bandwidth": "moved bytes per second of `observe`, over bytes read and written per second of `copy`.",
    "PromptSelector": "the same cycle through `PromptSelector`, with NumPy arrays and all prompts as candidates.",
    "top_k, argsort": "lax.top_k for the best B and a full sort, on the scores that `dps: select` ranks.",
    "extrapolated": "the loop is measured up to loop_limit prompts; beyond, its time is assumed proportional to N.",
}


class Skipped:
    """Measurements that were left out, with the reasons; each is printed at once and kept for the results."""

    def __init__(self, console: Console):
        self.entries: list[dict[str, Any]] = []
        self.console = console

    def add(self, what: str, num_prompts: int, reason: str) -> None:
        """Prints and records that a measurement is left out."""
        self.entries.append({"contestant": what, "num_prompts": num_prompts, "reason": reason})
        self.console.print(f"skipped: {what} at N = {num_prompts:,}: {reason}", markup=False)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and repeats of the measurements."""

    sizes: tuple[float, ...] = ()
    """Numbers of prompts, N, one or more; by default 1e5 1e6 1e7, and also 1e8 1e9 on an accelerator or with --large.
    What does not fit into memory is skipped."""
    large: bool = False
    """Measure 1e8 and 1e9 prompts on a CPU as well."""
    repeats: int = 15
    """Number of timed runs of every implementation at every size."""
    max_seconds: float = 4.0
    """Time limit in seconds for one implementation at one size; slow ones get fewer repeats, but at least three."""
    batch_size: int = 256
    """Number of prompts per round, B."""
    loop_limit: int = 100_000
    """Largest number of prompts at which the Python loop is measured; its times for larger sizes are extrapolated."""
    copy_mib: int = 2048
    """Size in MiB of the array that is copied to measure the memory bandwidth."""
    trace_prompts: int = 10_000
    """Number of prompts in the comparison with dynamax."""
    trace_rounds: int = 100
    """Number of rounds in the comparison with dynamax."""
    out_dir: Path = Path("runs/bench_filter")
    """Folder for results.json, table.md and time_per_cycle.png."""
    quick: bool = False
    """Use tiny sizes, to check that everything works."""

    def __post_init__(self):
        for size in self.sizes:
            if size != int(size) or size < self.batch_size:
                raise ValueError(f"sizes: expected whole numbers >= batch_size = {self.batch_size}, got {size}")
        for name in ("repeats", "batch_size", "loop_limit", "copy_mib", "trace_prompts", "trace_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.loop_limit < self.batch_size:
            raise ValueError(f"loop_limit: expected at least batch_size = {self.batch_size}, got {self.loop_limit}")


def choose_sizes(config: Config, skipped: Skipped) -> list[int]:
    """Returns the numbers of prompts to measure, ascending."""
    if config.sizes:
        return sorted({int(size) for size in config.sizes})
    sizes = [100_000, 1_000_000, 10_000_000]
    for size in (10**8, 10**9):
        available = _machine.memory_bytes()[0]
        if jax.default_backend() == "cpu" and not config.large:
            skipped.add("everything", size, "on a CPU, this size needs --large")
        elif 56 * size > available:
            skipped.add(
                "everything", size, f"dps needs {56 * size / 2**30:.0f} GiB, {available / 2**30:.0f} GiB are available"
            )
        else:
            sizes.append(size)
    return sizes


def check_agreement(num_prompts: int, batch_size: int, *, has_loop: bool, num_rounds: int = 12) -> dict[str, float]:
    """Returns the largest difference of each method's predicted probabilities from those of the first method.

    Raises:
      RuntimeError: if a difference exceeds the tolerance of a method, or a method does not pick the best by its own
        probabilities.
    """
    concentration = np.array([[1.0, 0.9, 0.4], [0.5, 1.3, 0.8], [0.2, 0.7, 2.0]])
    prior = dps_jax.TransitionPrior(np.array([0.5, 0.3, 0.2]), concentration, 0.8)
    methods = [_bench.loop(num_prompts, prior)] if has_loop else []
    methods += [_bench.vmapped(num_prompts, prior, axis) for axis in (0, -1)]
    methods += [_bench.ours(num_prompts, prior, is_compact) for is_compact in (False, True)]
    rng = np.random.default_rng(7)
    ids = [rng.choice(num_prompts, batch_size, replace=False) for _ in range(num_rounds)]
    expected, differences = None, {}
    for method in methods:
        observe = method.observe if method.name == "loop" else jax.jit(method.observe, donate_argnums=0)
        state = method.init()
        for picked, given in zip(ids, _bench.make_rounds(num_rounds, batch_size), strict=True):
            state = observe(state, jnp.asarray(picked), given.successes, given.counts)
        assert method.predicted_probs is not None
        probs = np.asarray(method.predicted_probs(state))
        expected = probs if expected is None else expected
        differences[method.name] = float(np.abs(probs - expected).max())
        if not differences[method.name] <= method.tolerance:
            raise RuntimeError(
                f"{method.name}: probabilities differ by {differences[method.name]:.2g} at N = {num_prompts}"
            )
        picks = np.asarray(method.select(state, jax.random.key(1), batch_size)[1])
        best = np.sort(probs[1])[-batch_size:]
        if len(set(picks.tolist())) != batch_size or np.abs(np.sort(probs[1, picks]) - best).max() > 1e-5:
            raise RuntimeError(f"{method.name}: does not pick the best at N = {num_prompts}")
    return differences


def make_jobs(num_prompts: int, sizes: list[int], config: Config, skipped: Skipped) -> list[_bench.Job]:
    """Returns the compiled jobs for one size; the floor (memory reference) comes first."""
    prior = dps_jax.TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)), 0.7)
    available = _machine.memory_bytes()[0]
    job = lambda method, **options: _bench.method_job(method, num_prompts, config.batch_size, available, **options)
    has_sorts = _SORT_BYTES * num_prompts <= available
    if num_prompts in sizes and not has_sorts:
        skipped.add("top_k; argsort", num_prompts, "a full sort does not fit beside the state")
    jobs = [_bench.floor_job(num_prompts)]
    if num_prompts == sizes[-1]:
        # Before the other contestants, which may run out of memory.
        jobs.append(_bench.copy_job(config.copy_mib * 2**20))
    if num_prompts in sizes:
        jobs += [
            job(_bench.ours(num_prompts, prior), has_sorts=has_sorts),
            job(_bench.ours(num_prompts, prior, is_compact=True)),
            job(_bench.named(num_prompts, "binomial_hmm")),
            _bench.object_job("dps", num_prompts, config.batch_size, 2**20),
            _bench.object_job("binomial_hmm", num_prompts, config.batch_size, 2**13),
            job(_bench.vmapped(num_prompts, prior, 0)),
            job(_bench.vmapped(num_prompts, prior, -1)),
        ]
    if num_prompts <= config.loop_limit:
        jobs.append(_bench.loop_job(_bench.loop(num_prompts, prior), num_prompts, config.batch_size))
    return jobs


def time_groups(
    num_prompts: int, jobs: list[_bench.Job], config: Config, skipped: Skipped
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Returns the seconds of every run and the paired ratios to the floor, for all jobs that fit in memory."""
    available = int(0.85 * _machine.memory_bytes()[0])
    for job in jobs:
        if job.memory_bytes > available:
            reason = f"needs {job.memory_bytes / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free to use"
            skipped.add("; ".join(job.facts), num_prompts, reason)
    times: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}
    for group in _bench.group_jobs(jobs, available):
        try:
            with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
                task = progress.add_task(f"N = {num_prompts:,}: timing", total=config.repeats)
                advance = lambda progress=progress, task=task: progress.advance(task)
                own = _bench.time_in_turns(group, config.repeats, config.max_seconds, config.batch_size, advance)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            skipped.add("; ".join(name for job in group for name in job.facts), num_prompts, "ran out of memory")
            continue
        finally:
            gc.collect()
        floor = own.get("floor", {})
        for name, seconds in own.items():
            times.setdefault(name, list(seconds.values()))
            paired = [seconds[repeat] / floor[repeat] for repeat in seconds if repeat in floor]
            if paired:
                ratios.setdefault(name, float(np.median(paired)))
    return times, ratios


def measure(num_prompts: int, sizes: list[int], config: Config, skipped: Skipped) -> list[dict[str, Any]]:
    """Returns the rows of all contestants at one size, measured in turns."""
    skipped.console.print(f"N = {num_prompts:,}: compiling")
    jobs = make_jobs(num_prompts, sizes, config, skipped)
    skipped.console.print(f"N = {num_prompts:,}: timing")
    times, ratios = time_groups(num_prompts, jobs, config, skipped)
    facts = {name: known for job in jobs for name, known in job.facts.items()}
    rows = []
    for name, seconds in times.items():
        first, median, third = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
        row = {"contestant": name, "num_prompts": num_prompts, "median_s": median, "min_s": min(seconds)}
        row |= {"quartiles_s": [first, third], "num_repeats": len(seconds), "is_extrapolated": False, **facts[name]}
        if name != "copy":
            row["prompts_per_s"] = num_prompts / median
        if name != "copy" and "floor" in times:
            unpaired = median / float(np.median(times["floor"]))
            row["ratio_to_floor"] = ratios.get(name, unpaired)
            row["ratio_kind"] = "paired" if name in ratios else "unpaired"
        rows.append(row)
    return rows


def extrapolate_loop(rows: list[dict[str, Any]], sizes: list[int]) -> list[dict[str, Any]]:
    """Returns rows for the loop at sizes where it was not measured, with times extrapolated in proportion to N."""
    measured = max((row for row in rows if row["contestant"] == "loop"), key=lambda row: row["num_prompts"])
    made = []
    for size in sizes:
        if size <= measured["num_prompts"]:
            continue
        seconds = measured["median_s"] * size / measured["num_prompts"]
        floors = [row["median_s"] for row in rows if row["contestant"] == "floor" and row["num_prompts"] == size]
        row = {"contestant": "loop", "num_prompts": size, "median_s": seconds, "prompts_per_s": size / seconds}
        row |= {"is_extrapolated": True, "extrapolated_from": measured["num_prompts"]}
        row |= {"ratio_to_floor": seconds / floors[0] if floors else None, "ratio_kind": "unpaired"}
        made.append(row)
    return made


def add_copy_shares(rows: list[dict[str, Any]]) -> float | None:
    """Returns the bandwidth of the copy in bytes/s, and adds to every `observe` row its share of this bandwidth."""
    copies = [2 * row["copied_bytes"] / row["median_s"] for row in rows if row["contestant"] == "copy"]
    for row in rows:
        if copies and "moved_bytes_per_prompt" in row:
            row["share_of_copy_bandwidth"] = row["moved_bytes_per_prompt"] * row["prompts_per_s"] / copies[0]
    return copies[0] if copies else None


def compare_with_dynamax(config: Config, skipped: Skipped) -> dict[str, Any]:
    """Returns the times of our filter and dynamax's, with a known matrix on whole traces, and their difference."""
    num_prompts, num_rounds = config.trace_prompts, config.trace_rounds
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the dependencies of dynamax
            hmm_filter = importlib.import_module("dynamax.hidden_markov_model.inference").hmm_filter
    except (ImportError, AttributeError) as error:
        reason = f"{error}; needs pip install '.[bench]' in the repository"
        skipped.add("dynamax", num_prompts, reason)
        return {"is_skipped": True, "reason": reason}
    successes = np.random.default_rng(0).integers(0, _bench.GROUP_SIZE + 1, (num_rounds, num_prompts))
    emission = emissions.binomial((0.1, 0.5, 0.9))
    ours_log = smoothing.trace_log_likelihood(emission, successes, np.full_like(successes, _bench.GROUP_SIZE))
    theirs_log = jnp.moveaxis(ours_log, -1, 0)
    initial = jnp.array([0.5, 0.3, 0.2])
    matrix = jnp.array([[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.05, 0.15, 0.8]])
    theirs = _bench.function_job("dynamax", jax.vmap(hmm_filter, in_axes=(None, None, 0)), initial, matrix, theirs_log)
    ours = _bench.function_job("dps_jax: smoothing.forward", smoothing.forward, initial, matrix, ours_log)
    jobs = [theirs, ours]
    times = _bench.time_in_turns(jobs, config.repeats, config.max_seconds, config.batch_size, lambda: None)
    expected = jax.jit(jax.vmap(hmm_filter, in_axes=(None, None, 0)))(initial, matrix, theirs_log)
    found = smoothing.forward(initial, matrix, ours_log)
    result: dict[str, Any] = {"is_skipped": False, "num_prompts": num_prompts, "num_rounds": num_rounds}
    for job in jobs:
        for name, facts in job.facts.items():
            seconds = list(times[name].values())
            result[name] = {"median_s": float(np.median(seconds)), "min_s": min(seconds), **facts}
    probs_gap = jnp.abs(jnp.moveaxis(expected.filtered_probs, 0, -1) - found.filtered_probs).max()
    evidence_gap = jnp.abs(expected.marginal_loglik / found.log_evidence - 1).max()
    return result | {"max_difference_probs": float(probs_gap), "max_relative_difference_evidence": float(evidence_gap)}


def write(results: dict[str, Any], out_dir: Path) -> None:
    """Writes results.json, table.md and time_per_cycle.png."""
    out_dir.mkdir(parents=True, exist_ok=True)
    _json.write(out_dir / "results.json", results, indent=2)
    (out_dir / "table.md").write_text(_bench_report.to_markdown(results), encoding="utf-8")
    _bench_report.plot(results["measurements"], out_dir / "time_per_cycle.png")


def main(config: Config) -> dict[str, Any]:
    """Measures, prints and writes the results, and returns them.

    Raises:
      RuntimeError: if the contestants do not agree; see `check_agreement`.
    """
    if config.quick:
        tiny = {"repeats": 3, "max_seconds": 0.5, "loop_limit": 500, "copy_mib": 4, "trace_prompts": 200}
        config = dataclasses.replace(config, sizes=config.sizes or (1000,), trace_rounds=20, **tiny)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    skipped = Skipped(console)
    machine = _machine.describe_machine()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    agreement = {"1000": check_agreement(1000, 256, has_loop=True)}
    if not config.quick:
        # Large enough for the code paths of large N.
        agreement["250000"] = check_agreement(250_000, 256, has_loop=False)
    for size, gaps in agreement.items():
        words = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
        console.print(f"N = {size}: predicted probabilities differ at most by: {words}")
    sizes = choose_sizes(config, skipped)
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name != "out_dir"}
    results = {
        "machine": machine,
        "config": fields | {"sizes": sizes},
        "how": METHOD_NOTES,
        "agreement": agreement,
        "dynamax": compare_with_dynamax(config, skipped),
        "skipped": skipped.entries,
    }
    measured: list[dict[str, Any]] = []
    rows, bandwidth = measured, None
    for size in sizes if sizes[0] <= config.loop_limit else [config.loop_limit, *sizes]:
        measured += measure(size, sizes, config, skipped)
        rows = [dict(row) for row in measured]
        rows += extrapolate_loop(rows, [other for other in sizes if other <= size])
        rows.sort(key=lambda row: (row["num_prompts"], CONTESTANTS.index(row["contestant"])))
        bandwidth = add_copy_shares(rows)
        results |= {"measurements": rows, "copy_bytes_per_s": bandwidth}
        # Written after every size, because the largest sizes take minutes and may not fit in memory.
        write(results, config.out_dir)
    _bench_report.print_tables(rows, bandwidth, console)
    if not results["dynamax"]["is_skipped"]:
        console.print("fixed matrix, whole traces:", results["dynamax"])
    console.print(f"wrote {config.out_dir}")
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
