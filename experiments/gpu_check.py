"""Measures the filter, sampling and the update on one accelerator, each beside the measured limits of the device.

It needs the core packages only, and takes less than eight minutes. The rates of the device are measured first: the
bandwidth of a copy and the rate of matrix products. Results are written after every measurement, so that none is lost
if the run is stopped.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.metadata
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _gpu_check
import _gpu_models
import _gpu_report
import _machine
import jax
from rich.console import Console

from dps_jax import _json

KINDS = ("filter", "decode", "update")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Planned(NamedTuple):
    """A measurement that is not made yet.

    Attributes:
      kind: "rate", or one of `KINDS`.
      name: in the table.
      measure: rates -> what was found.
    """

    kind: str
    name: str
    measure: Callable[[dict[str, float]], dict[str, Any]]


class Run(NamedTuple):
    """What the measurements of a run share.

    Attributes:
      results: what is written, and grows.
      out: the file.
      deadline: on the clock of `time.monotonic`.
      console: where progress is printed.
    """

    results: dict[str, Any]
    out: Path
    deadline: float
    console: Console


def _without_rates(measure: Callable[[], dict[str, Any]], rates: dict[str, float]) -> dict[str, Any]:
    """Returns what a measurement found that is compared with nothing."""
    return measure()


def plan_rates(sizes: _gpu_check.Sizes) -> list[Planned]:
    """Returns the measurements of what the device can do."""
    measured = {"copy": functools.partial(_gpu_check.measure_copy, sizes)}
    for name in _gpu_check.PRODUCTS:
        measured[f"matmul {name}"] = functools.partial(_gpu_check.measure_matmul, name, sizes)
    return [Planned("rate", name, functools.partial(_without_rates, measure)) for name, measure in measured.items()]


def _plan_filters(sizes: _gpu_check.Sizes, num_prompts: Sequence[int]) -> list[Planned]:
    return [
        Planned("filter", f"{name}, N = {size:,}", functools.partial(_gpu_check.measure_filter, name, size, sizes))
        for size in num_prompts
        for name in sizes.filters
    ]


def _plan_decodes(sizes: _gpu_check.Sizes, shapes: Sequence[str], rows: Sequence[int]) -> list[Planned]:
    measure = _gpu_models.measure_decode
    return [
        Planned("decode", f"decode {name}, {num} rows", functools.partial(measure, name, num, sizes))
        for num in rows
        for name in shapes
    ]


def _plan_updates(sizes: _gpu_check.Sizes) -> list[Planned]:
    # cuDNN's kernels run on a GPU only; elsewhere there would be a row of failures.
    suffixes = {"blockwise": "", "cudnn": ", cudnn"} if jax.default_backend() == "gpu" else {"blockwise": ""}
    return [
        Planned(
            "update",
            f"update {name}{suffix}",
            functools.partial(_gpu_models.measure_update, name, sizes, attention=attention),
        )
        for name in sizes.shapes
        for attention, suffix in suffixes.items()
    ]


def plan(sizes: _gpu_check.Sizes, kinds: Sequence[str]) -> list[Planned]:
    """Returns the measurements in their order.

    Most need more memory than those before them, so that the peak of the device is their own; the last shape has the
    largest caches. What takes longest, sampling many rows, is last.
    """
    ordered = [
        *_plan_filters(sizes, sizes.num_prompts[:-1]),
        *_plan_decodes(sizes, sizes.shapes[:-1], sizes.rows[:1]),
        *_plan_updates(sizes),
        *_plan_decodes(sizes, sizes.shapes[-1:], sizes.rows[:1]),
        *_plan_filters(sizes, sizes.num_prompts[-1:]),
        *_plan_decodes(sizes, sizes.shapes, sizes.rows[1:]),
    ]
    return plan_rates(sizes) + [planned for planned in ordered if planned.kind in kinds]


def _device_peak() -> int | None:
    """Returns the most memory that arrays took so far, None where the device does not count it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _attempt(planned: Planned, rates: dict[str, float]) -> dict[str, Any]:
    """Returns what a measurement found, or why there is nothing."""
    before = _device_peak()
    try:
        # As it will be read from the file, None for NaN.
        found = {"status": "done"} | json.loads(_json.dumps(planned.measure(rates)))
    except _gpu_check.DoesNotFit as reason:
        return {"status": "left out", "reason": str(reason)}
    except Exception as error:  # whatever it is, the others go on
        lines = str(error).strip().splitlines() or [""]
        return {"status": "failed", "reason": f"{type(error).__name__}: {lines[0][:200]}", "error": str(error)[:4000]}
    after = _device_peak()
    is_higher = before is not None and after is not None and after > before
    return found | {"device_peak_bytes": after, "is_device_peak_higher": is_higher}


def _write(run: Run) -> None:
    _json.write(run.out, run.results, indent=1)


def _measured_rates(results: dict[str, Any]) -> dict[str, float]:
    """Returns the rates of the device by name, NaN for those that were not measured."""
    rates = dict.fromkeys(("copy", *(f"matmul {name}" for name in _gpu_check.PRODUCTS)), math.nan)
    for row in results["measurements"]:
        if row["kind"] == "rate" and row["status"] == "done":
            rates[row["name"]] = row["bytes_per_s"] if row["name"] == "copy" else row["flop_per_s"]
    return rates


def measure(run: Run, plans: Sequence[Planned], expected_s: Mapping[str, float]) -> None:
    """Makes the measurements that the time left allows, and writes the results after each.

    Args:
      run: without a measurement.
      plans: the measurements.
      expected_s: what those of each kind take at most.
    """
    say = functools.partial(run.console.print, markup=False, highlight=False, soft_wrap=True)
    rows = run.results["measurements"]
    rows += [_row(planned, "left out", "the run ended before") for planned in plans]
    for index, planned in enumerate(plans):
        left = run.deadline - time.monotonic()
        if left < expected_s[planned.kind]:
            rows[index] = _row(planned, "left out", f"{max(left, 0):.0f} s of the budget were left")
            say(f"left out: {planned.name}: {rows[index]['reason']}")
            continue
        say(f"{left:5.0f} s left: {planned.name} ...")
        rows[index] = _row(planned, "stopped", "the budget was over, or the run was ended")
        _write(run)
        start = time.monotonic()
        found = _attempt(planned, _measured_rates(run.results))
        # At once: the thread that stops the run prints what stands here.
        rows[index] = {"kind": planned.kind, "name": planned.name} | found | {"elapsed_s": time.monotonic() - start}
        _write(run)
        gc.collect()
        text = " | ".join(cell for cell in _gpu_report.cells(rows[index])[1:] if cell)
        say(f"  {text} ({rows[index]['elapsed_s']:.1f} s)")


def _row(planned: Planned, status: str, reason: str) -> dict[str, Any]:
    return {"kind": planned.kind, "name": planned.name, "status": status, "reason": reason}


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check/results.json"), help="file for the results")
    parser.add_argument("--small", action="store_true", help="use tiny sizes, to check that everything works")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, default=KINDS, help="what to measure in addition to the rates"
    )
    parser.add_argument("--budget-s", type=float, default=480.0, help="seconds after which the run is ended")
    return parser.parse_args(args)


def start(options: argparse.Namespace, sizes: _gpu_check.Sizes, began: float) -> Run:
    """Returns a run without a measurement; prints what it runs on.

    Args:
      options: of the command line.
      sizes: that will be measured.
      began: when the budget began, on the clock of `time.monotonic`.
    """
    console = Console() if sys.stdout.isatty() else Console(width=180)
    machine = _machine.describe_machine()
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    for facts in (machine, versions):
        line = ", ".join(f"{name} {value}" for name, value in facts.items())
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    results = {
        "machine": machine,
        "versions": versions,
        "options": {"small": options.small, "only": list(options.only), "budget_s": options.budget_s},
        "sizes": sizes._asdict(),
        "is_complete": False,
        "measurements": [],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return Run(results, options.out, began + options.budget_s, console)


def finish(run: Run) -> None:
    """Prints the table, and where the results are."""
    run.console.print(f"wrote {run.out}", markup=False, highlight=False, soft_wrap=True)
    run.console.print(_gpu_report.make_table(run.results))


def _stop(run: Run) -> None:
    """Ends a run whose budget is over in the middle of a measurement; the results are written already."""
    try:
        finish(run)
        sys.stdout.flush()
    finally:
        os._exit(0)


def main(args: Sequence[str] | None = None, *, is_stopped: bool = False) -> dict[str, Any]:
    """Measures, prints and writes; returns what the file holds.

    Args:
      args: of the command line; None is that of the process.
      is_stopped: end the process when the budget is over, whatever it is doing.
    """
    began = time.monotonic()
    options = parse(args)
    sizes = _gpu_check.SMALL if options.small else _gpu_check.FULL
    run = start(options, sizes, began)
    timer = threading.Timer(max(run.deadline - time.monotonic(), 0), _stop, [run])
    timer.daemon = True
    if is_stopped:
        timer.start()
    measure(run, plan(sizes, options.only), sizes.expected_s)
    run.results["is_complete"] = all(row["status"] == "done" for row in run.results["measurements"])
    run.results["elapsed_s"] = time.monotonic() - began
    _write(run)
    timer.cancel()
    finish(run)
    return run.results


if __name__ == "__main__":
    # Else a quarter of an accelerator's memory stays unused. It is read when JAX first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    main(is_stopped=True)
