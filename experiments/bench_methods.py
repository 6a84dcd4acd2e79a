"""Measures the cost of every selection method: bytes per prompt, the time of a cycle, and its compile time.

A cycle observes B prompts, advances the model by one round, and picks the B best of all N. The methods are timed in
turns with a memory reference: x + 1 in place over twelve float32 arrays of length N. Methods with a smaller state can
be faster than this reference. Writes results.json and table.md.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import _bench
import _bench_report
import _command
import _machine
import jax
import numpy as np
from rich.progress import Progress

from dps_jax import _checks, _json, selectors


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and repeats of the measurements."""

    sizes: tuple[int, ...] = (100_000, 1_000_000)
    """Numbers of prompts, N."""
    batch_size: int = 256
    """Number of prompts per round, B."""
    repeats: int = 15
    """Number of timed cycles of every method at every size."""
    max_seconds: float = 4.0
    """Time limit in seconds for one method at one size; slow methods get fewer repeats, but at least three."""
    out_dir: Path = Path("runs/bench_methods")
    """Folder for results.json and table.md."""

    def __post_init__(self):
        _checks.check_int("batch_size", self.batch_size, at_least=1)
        _checks.check_int("repeats", self.repeats, at_least=1)
        _checks.check_number("max_seconds", self.max_seconds, at_least=0)
        for size in self.sizes:
            _checks.check_int("sizes", size, at_least=max(self.batch_size, 8))


def state_bytes(method: str, num_prompts: int) -> tuple[float, float]:
    """Returns the bytes per prompt of a method's state, and the bytes that do not depend on the number of prompts."""
    once, twice = (
        _bench.num_bytes(jax.eval_shape(_bench.named(size, method).init)) for size in (num_prompts, 2 * num_prompts)
    )
    per_prompt = (twice - once) / num_prompts
    return per_prompt, once - per_prompt * num_prompts


def measure(num_prompts: int, config: Config, progress: Progress) -> list[dict[str, Any]]:
    """Returns a row for every method at one size, and one for the memory reference."""
    names = list(selectors.SELECTORS)
    compiling = progress.add_task(f"N = {num_prompts:,}: compiling", total=len(names))
    jobs = [_bench.floor_job(num_prompts)]
    for name in names:
        jobs.append(_bench.method_job(_bench.named(num_prompts, name), num_prompts, config.batch_size, 2**62))
        progress.advance(compiling)
    timing = progress.add_task(f"N = {num_prompts:,}: timing", total=config.repeats)
    times = _bench.time_in_turns(
        jobs, config.repeats, config.max_seconds, config.batch_size, lambda: progress.advance(timing)
    )
    floor, rows = times["floor"], []
    for job in jobs:
        for name, facts in job.facts.items():
            seconds = times[name]
            row = {"method": name, "num_prompts": num_prompts, "median_s": float(np.median([*seconds.values()]))}
            row["ratio_to_floor"] = float(np.median([seconds[repeat] / floor[repeat] for repeat in seconds]))
            row["compile_s"] = facts["compile_s"]
            if name != "floor":
                row["bytes_per_prompt"], row["bytes_shared"] = state_bytes(name, num_prompts)
            rows.append(row)
    return rows


def cost_rows(results: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the cells of a table by method: bytes per prompt, fixed memory, time of a cycle, time to compile."""
    sizes = results["config"]["sizes"]
    cells: dict[str, list[str]] = {}
    for row in results["measurements"]:
        if row["num_prompts"] == sizes[0]:
            size = f"{row['bytes_per_prompt']:.0f}" if "bytes_per_prompt" in row else ""
            shared = f"{row['bytes_shared'] / 1024:,.1f}" if "bytes_shared" in row else ""
            cells[row["method"]] = [size, shared]
    for size in sizes:
        for row in results["measurements"]:
            if row["num_prompts"] == size:
                cells[row["method"]].append(f"{1e3 * row['median_s']:.1f} ms ({row['ratio_to_floor']:.1f})")
    for row in results["measurements"]:
        if row["num_prompts"] == sizes[-1]:
            cells[row["method"]].append(f"{row['compile_s']:.1f} s")
    return cells


def header(results: dict[str, Any]) -> list[str]:
    """Returns the two header lines of a table of `cost_rows`, whose first column is the method."""
    sizes = results["config"]["sizes"]
    times = [f"one cycle, N = {size:,}" for size in sizes]
    names = ["method", "bytes per prompt", "fixed memory, KiB", *times, "compile time"]
    return ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]


def footnote(results: dict[str, Any]) -> str:
    """Returns a note on the columns and the machine."""
    machine = results["machine"]
    return (
        f"One cycle: observe the outcomes of B = {results['config']['batch_size']} prompts, and pick the next B among "
        "all N. Median times with default options; in brackets the ratio to the memory reference of the same run, "
        f"which reads and writes twelve float32 numbers per prompt. {machine['cpu']}, {machine['cores']} cores; "
        f"JAX {machine['jax']} on {machine['backend']}; {machine['date']}."
    )


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the table of all methods."""
    lines = header(results)
    names = {_bench_report.REFERENCE: _bench_report.REFERENCE_NAME}
    lines += [f"| {' | '.join([names.get(name, name), *cells])} |" for name, cells in cost_rows(results).items()]
    return "\n".join([*lines, "", footnote(results)])


def main(config: Config) -> dict[str, Any]:
    """Measures, writes, and returns the results."""
    with Progress(transient=True) as progress:
        rows = [row for size in config.sizes for row in measure(size, config, progress)]
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    del settings["out_dir"]
    results = {"config": settings, "machine": _machine.describe_machine(), "measurements": rows}
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _json.write(config.out_dir / "results.json", results, indent=1)
    (config.out_dir / "table.md").write_text(to_markdown(results) + "\n", encoding="utf-8")
    print(to_markdown(results))
    return results


if __name__ == "__main__":
    _command.run(main, Config, __doc__)
