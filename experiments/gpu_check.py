"""Measures the filter, sampling and the update on one accelerator, and compares them with the limits of the device.

The script needs only the core packages and stops after --budget-s seconds, by default eight minutes. First it measures
the rates of the device: the bandwidth of a copy and the rate of matrix products. Results are written after every
measurement, so that none is lost if the run is stopped.
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
    """A planned measurement.

    Attributes:
      kind: "rate", or one of `KINDS`.
      name: name in the table.
      measure: rates of the device -> results of the measurement.
    """

    kind: str
    name: str
    measure: Callable[[dict[str, float]], dict[str, Any]]


class Run(NamedTuple):
    """The state that the measurements of a run share.

    Attributes:
      results: results so far, with the rows of all measurements.
      out: file that the results are written to.
      deadline: end of the time budget, on the clock of `time.monotonic`.
      console: console for progress messages.
    """

    results: dict[str, Any]
    out: Path
    deadline: float
    console: Console


def _without_rates(measure: Callable[[], dict[str, Any]], rates: dict[str, float]) -> dict[str, Any]:
    """Returns the results of a measurement that does not use the rates."""
    return measure()


def plan_rates(sizes: _gpu_check.Sizes) -> list[Planned]:
    """Returns the planned measurements of the rates of the device."""
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
    # The kernels of cuDNN run on GPUs only.
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
    """Returns the planned measurements in their order.

    Most measurements need more memory than those before, so that the peak memory of the device is their own; the last
    shape has the largest caches. Sampling many rows takes longest and comes last.
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
    """Returns the peak memory of arrays so far, in bytes; None if the device does not report it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _attempt(planned: Planned, rates: dict[str, float]) -> dict[str, Any]:
    """Returns the results of a measurement, or the reason why it was left out or failed."""
    before = _device_peak()
    try:
        # Converted as if it were read from the file: None in place of NaN.
        found = {"status": "done"} | json.loads(_json.dumps(planned.measure(rates)))
    except _gpu_check.DoesNotFit as reason:
        return {"status": "left out", "reason": str(reason)}
    except Exception as error:  # after any error, the next measurement follows
        lines = str(error).strip().splitlines() or [""]
        return {"status": "failed", "reason": f"{type(error).__name__}: {lines[0][:200]}", "error": str(error)[:4000]}
    after = _device_peak()
    is_higher = before is not None and after is not None and after > before
    return found | {"device_peak_bytes": after, "is_device_peak_higher": is_higher}


def _write(run: Run) -> None:
    _json.write(run.out, run.results, indent=1)


def _measured_rates(results: dict[str, Any]) -> dict[str, float]:
    """Returns the rates of the device by name; NaN for a rate that was not measured."""
    rates = dict.fromkeys(("copy", *(f"matmul {name}" for name in _gpu_check.PRODUCTS)), math.nan)
    for row in results["measurements"]:
        if row["kind"] == "rate" and row["status"] == "done":
            rates[row["name"]] = row["bytes_per_s"] if row["name"] == "copy" else row["flop_per_s"]
    return rates


def measure(run: Run, plans: Sequence[Planned], expected_s: Mapping[str, float]) -> None:
    """Makes the measurements for which enough time is left, and writes the results after each.

    Args:
      run: run without measurements so far.
      plans: measurements to make.
      expected_s: upper estimate of the seconds of a measurement, by kind.
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
        # One assignment, because the thread that stops the run may print the rows at any time.
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
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_check/results.json"), help="file to write the results to"
    )
    parser.add_argument("--small", action="store_true", help="use tiny sizes, to check that everything works")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, default=KINDS, help="what to measure in addition to the rates"
    )
    parser.add_argument("--budget-s", type=float, default=480.0, help="time limit of the run, in seconds")
    return parser.parse_args(args)


def start(options: argparse.Namespace, sizes: _gpu_check.Sizes, began: float) -> Run:
    """Returns a run without measurements, and prints the machine and the versions.

    Args:
      options: options of the command line.
      sizes: sizes of the measurements.
      began: start of the time budget, on the clock of `time.monotonic`.
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
    """Prints the path of the results and the table."""
    run.console.print(f"wrote {run.out}", markup=False, highlight=False, soft_wrap=True)
    run.console.print(_gpu_report.make_table(run.results))


def _stop(run: Run) -> None:
    """Ends the process in the middle of a measurement; the results so far have been written already."""
    try:
        finish(run)
        sys.stdout.flush()
    finally:
        os._exit(0)


def main(args: Sequence[str] | None = None, *, is_stopped: bool = False) -> dict[str, Any]:
    """Measures, prints and writes the results, and returns them.

    Args:
      args: arguments of the command line; None takes those of the process.
      is_stopped: whether to end the process when the time budget is over, even during a measurement.
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
    # By default, JAX leaves a quarter of the memory unused. The variable is read when JAX first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    main(is_stopped=True)
