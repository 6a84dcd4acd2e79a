"""Prints, tabulates and plots the measurements of bench_filter.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

# From this N on, arrays over the prompts exceed the caches, and their bandwidth can be compared with that of a copy.
_LARGE = 10**7
# The contestant that the others are compared with: its name in the results, and its name in tables and figures.
REFERENCE, REFERENCE_NAME = "floor", "memory reference"


def in_words(seconds: float | None) -> str:
    """Returns a time as text with three significant digits and a unit."""
    if seconds is None:
        return ""
    value, unit = (
        (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms") if seconds >= 1e-3 else (1e6 * seconds, "µs")
    )
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(value))))}f} {unit}"


def note(row: dict[str, Any], bandwidth: float | None) -> str:
    """Returns the remark on a row: extrapolated, or its bandwidth; "" if there is none."""
    if row["is_extrapolated"]:
        return f"extrapolated from {row['extrapolated_from']:,}"
    if row["contestant"] == "copy" and bandwidth:
        return f"{bandwidth / 1e9:.3g} GB/s read + written"
    if "share_of_copy_bandwidth" in row:
        return f"{row['share_of_copy_bandwidth']:.0%} of copy bandwidth"
    return ""


def print_tables(rows: list[dict[str, Any]], bandwidth: float | None, console: Console) -> None:
    """Prints all rows, in one table per size."""
    columns = ("contestant", "median", "min", "quartiles", "x reference", "prompts/s", "B/prompt", "compile", "note")
    for size in sorted({row["num_prompts"] for row in rows}):
        table = Table(title=f"N = {size:,}")
        for column in columns:
            table.add_column(column, justify="left" if column in ("contestant", "note") else "right", no_wrap=True)
        for row in (row for row in rows if row["num_prompts"] == size):
            ratio, rate, state = row.get("ratio_to_floor"), row.get("prompts_per_s"), row.get("state_bytes_per_prompt")
            table.add_row(
                REFERENCE_NAME if row["contestant"] == REFERENCE else row["contestant"],
                in_words(row["median_s"]),
                in_words(row.get("min_s")),
                " - ".join(in_words(quartile) for quartile in row.get("quartiles_s", ())),
                f"{ratio:.3g}" if ratio else "",
                f"{rate:.2e}" if rate else "",
                f"{state:.0f}" if state else "",
                in_words(row.get("compile_s")),
                note(row, bandwidth),
            )
        console.print(table)


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the results as one table with a column for every size, followed by a note on the conditions."""
    rows, machine, traces = results["measurements"], results["machine"], results["dynamax"]
    by_cell = {(row["contestant"], row["num_prompts"]): row for row in rows if row["contestant"] != "copy"}
    sizes = sorted({size for _, size in by_cell})
    lines = [f"| one cycle | {' | '.join(f'N = {size:,}' for size in sizes)} | bytes per prompt | compile |"]
    lines.append("|---" * (len(sizes) + 3) + "|")
    for name in dict.fromkeys(name for name, _ in by_cell):
        cells = []
        for row in (by_cell.get((name, size)) for size in sizes):
            ratio = f" ({row['ratio_to_floor']:.3g}x)" if row and row.get("ratio_to_floor") else ""
            text = in_words(row["median_s"]) + ratio if row else "-"
            cells.append(f"*{text}, extrapolated*" if row and row["is_extrapolated"] else text)
        last = next(row for row in reversed(rows) if row["contestant"] == name)
        state = f"{last['state_bytes_per_prompt']:.0f}" if "state_bytes_per_prompt" in last else ""
        cells += [state, in_words(last.get("compile_s"))]
        lines.append(f"| {REFERENCE_NAME if name == REFERENCE else name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Median times; in brackets the median, over repeats, of the ratio to the {REFERENCE_NAME} (x + 1 in place "
        f"over twelve float32 arrays) in the same repeat. Bytes per prompt: size of the state. Compile: compilation "
        f"time for the largest N of the row. {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; JAX {machine['jax']} on {machine['backend']} ({machine['device']}); "
        f"B = {results['config']['batch_size']}; {machine['date']}.",
    ]
    for size in (size for size in sizes if size >= min(sizes[-1], _LARGE)):
        own = [row for row in rows if row["num_prompts"] == size and not row["is_extrapolated"]]
        notes = [(row["contestant"], note(row, results["copy_bytes_per_s"])) for row in own]
        shares = "; ".join(f"`{name}` {text}" for name, text in notes if text)
        lines += ["", f"At N = {size:,}: {shares}."] if shares else []
    if not traces["is_skipped"]:
        theirs, ours = traces["dynamax"], traces["dps_jax: smoothing.forward"]
        lines.append("")
        lines.append(
            f"Fixed-matrix filter, {traces['num_prompts']:,} prompts x {traces['num_rounds']} rounds: dynamax "
            f"{in_words(theirs['median_s'])}, `smoothing.forward` {in_words(ours['median_s'])}, probabilities within "
            f"{traces['max_difference_probs']:.1e}."
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots time per cycle against N; extrapolated times are dashed."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in dict.fromkeys(row["contestant"] for row in rows) if name != "copy" and ":" not in name]
    for index, name in enumerate(names):
        own = sorted((row for row in rows if row["contestant"] == name), key=lambda row: row["num_prompts"])
        color, marker = f"C{index}", "osD^vPX*"[index % 8]
        color = "black" if name == REFERENCE else color
        measured = [row for row in own if not row["is_extrapolated"]]
        xy = lambda part: ([row["num_prompts"] for row in part], [row["median_s"] for row in part])
        axes.plot(*xy(measured), color=color, marker=marker, label=REFERENCE_NAME if name == REFERENCE else name)
        axes.plot(*xy(own[len(measured) - 1 :]), color=color, marker=marker, markerfacecolor="white", linestyle="--")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="prompts N",
        ylabel="median time, s",
        title="One cycle (dashed: extrapolated)",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
