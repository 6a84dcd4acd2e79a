"""Measures how fast answers are graded by a pool of processes and by a loop in this process, in turns in one run.

    python experiments/bench_grading.py            # 10,000 answers, some minutes
    python experiments/bench_grading.py --small    # to check that it works

The answers are mathematical expressions, graded by "math-verify". Every repeat has new texts, so that caches have no
effect. If other programs run on the machine, the ratio of a single repeat may be too low or too high. The results
therefore contain the ratios of all repeats, the repeat with the shortest time, and the ratio computed from processor
time, which would nearly be reached on a machine with idle cores. The start of a process is timed for every built-in
grader.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from pathlib import Path
from typing import Any

import _command
import _machine
import numpy as np
from rich.console import Console
from rich.table import Table

from dps_jax import _checks, _json, grading
from dps_jax.grading import graders

_SMALL = {"num": 200, "repeats": 1}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and repeats of the measurement."""

    num: int = 10_000
    """Number of answers in each repeat."""
    repeats: int = 3
    """Number of times that the pool and the loop are both measured."""
    num_processes: int = 2
    """Number of processes of the pool."""
    small: bool = False
    """Grade few answers, once, to check that the script works."""
    out_dir: Path = Path("runs/bench_grading")
    """Folder for results.json."""

    def __post_init__(self):
        for name in ("num", "repeats", "num_processes"):
            _checks.check_int(name, getattr(self, name), at_least=1)


def make_rows(num: int, seed: int) -> tuple[list[str], list[str]]:
    """Returns completions and answers: fractions, decimals, roots and polynomials, about half of them right."""
    rng = np.random.default_rng(seed)
    completions, answers = [], []
    for index in range(num):
        first, second, third = (int(number) for number in rng.integers(2, 1000, size=3))
        error = int(rng.integers(0, 2))
        right, written = (
            (f"{first}", f"{first + error}.0"),
            (f"\\frac{{{first}}}{{{second}}}", f"\\frac{{{3 * first + error}}}{{{3 * second}}}"),
            (f"{second}\\sqrt{{{third}}}", f"\\sqrt{{{second * second * third + error}}}"),
            (f"x^2+{first}x+{second}", f"{second + error} + {first}x + x^2"),
        )[index % 4]
        completions.append(
            f"We set $a = {first}$ and $b = {second}$. Then $a + b = {first + second}$ and $ab = {first * second}$, "
            f"which leads to the result. The answer is $\\boxed{{{written}}}$."
        )
        answers.append(right)
    return completions, answers


def time_loop(completions: list[str], answers: list[str]) -> tuple[float, list[bool]]:
    """Returns the seconds of a loop in this process, and whether each answer is correct."""
    grade = graders.make("math-verify", {})
    start = time.perf_counter()
    is_correct = [grade(*row, {}).is_correct for row in zip(completions, answers, strict=True)]
    return time.perf_counter() - start, is_correct


def time_pool(pool: grading.GraderPool, completions: list[str], answers: list[str]) -> tuple[float, grading.Grades]:
    """Returns the seconds of a pool whose processes are already running, and the grades."""
    start = time.perf_counter()
    grades = pool.submit(completions, answers).result()
    return time.perf_counter() - start, grades


def children_s() -> float:
    """Returns the processor time in seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def time_pairs(num: int, repeats: int, num_processes: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Returns the wall-clock times of every repeat, and the processor time of all repeats together.

    Raises:
      RuntimeError: if the pool and the loop do not agree.
    """
    spec = grading.resolve("math-verify")
    options = {"num_processes": num_processes, "batch_limit_s": 3600.0, "time_limit_s": 60.0}
    before = children_s()
    with grading.GraderPool(spec, **options):
        pass
    start_s = children_s() - before
    pairs, cpu_s = [], {"loop": 0.0, "dispatch": 0.0, "workers": 0.0}
    with grading.GraderPool(spec, **options) as pool:
        for repeat in range(repeats):
            completions, answers = make_rows(num, repeat)
            clock = time.process_time()
            loop_s, is_correct = time_loop(completions, answers)
            cpu_s["loop"] += time.process_time() - clock
            clock = time.process_time()
            pool_s, grades = time_pool(pool, completions, answers)
            cpu_s["dispatch"] += time.process_time() - clock
            num_failed = grades.num_timed_out + grades.num_raised + grades.num_invalid + grades.num_died
            if num_failed or is_correct != grades.is_correct.tolist():
                raise RuntimeError(f"pool: expected the grades of the loop, got others; {num_failed} failures")
            pairs.append({"loop_s": loop_s, "pool_s": pool_s, "ratio": loop_s / pool_s, "load": os.getloadavg()[0]})
    cpu_s["workers"] = children_s() - before - 2 * start_s
    return pairs, cpu_s


def time_starts(repeats: int) -> dict[str, float | None]:
    """Returns the shortest time in seconds to start a pool of one process, by grader; None without its extra."""
    starts: dict[str, float | None] = {}
    for name in graders.BUILT_IN:
        try:
            spec = grading.resolve(name)
        except ValueError as error:
            starts[name] = None
            Console().print(f"skipped: {error}", markup=False)
            continue
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            with grading.GraderPool(spec, num_processes=1):
                seconds.append(time.perf_counter() - start)
        starts[name] = min(seconds)
    return starts


def main(config: Config) -> dict[str, Any]:
    """Measures, prints and writes the results, and returns them."""
    num, repeats = (_SMALL["num"], _SMALL["repeats"]) if config.small else (config.num, config.repeats)
    starts = time_starts(repeats)
    pairs, cpu_s = time_pairs(num, repeats, config.num_processes)
    results = {
        "machine": _machine.describe_machine(),
        "num": num,
        "num_processes": config.num_processes,
        "start_s": starts,
        "pairs": pairs,
        "best_pair": min(pairs, key=lambda pair: pair["loop_s"] + pair["pool_s"]),
        "cpu_s": cpu_s,
        "ratio_by_cpu": config.num_processes * cpu_s["loop"] / (cpu_s["workers"] + cpu_s["dispatch"]),
    }
    table = Table("", "loop, s", "pool, s", "ratio", "answers/s", "load")
    for index, pair in enumerate(pairs):
        texts = (f"{pair[name]:.2f}" for name in ("loop_s", "pool_s", "ratio"))
        table.add_row(str(index), *texts, f"{num / pair['pool_s']:.0f}", f"{pair['load']:.1f}")
    console = Console()
    console.print(table)
    console.print(f"ratio by processor time {results['ratio_by_cpu']:.2f}; seconds to start a process:")
    console.print({name: None if seconds is None else round(seconds, 3) for name, seconds in starts.items()})
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _json.write(config.out_dir / "results.json", results, indent=2)
    console.print(f"wrote {config.out_dir}", markup=False)
    return results


if __name__ == "__main__":
    _command.run(main, Config, __doc__)
