"""Tabulates the measurements of `gpu_check.py`."""

from __future__ import annotations

from typing import Any

from _bench_report import in_words
from rich.table import Table

COLUMNS = ("measurement", "found", "bound", "share", "program", "device peak", "compile")


def _gib(num_bytes: float | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"


def _rate(number: float | None, unit: str) -> str:
    return "" if number is None else f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"


def _scaled(number: float | None, scale: float) -> float | None:
    return None if number is None else number / scale


def _found_and_bound(row: dict[str, Any]) -> tuple[str, str]:
    """Returns the result of a measurement and the bound that it is compared with, as texts."""
    if row["kind"] == "rate":
        if "bytes_per_s" in row:
            return _rate(_scaled(row["bytes_per_s"], 1e9), "GB/s"), ""
        return _rate(_scaled(row["flop_per_s"], 1e12), "TFLOP/s"), ""
    if row["kind"] == "filter":
        advance = "" if row["observe_s"] is None else f", advance {in_words(row['observe_s'])}"
        moved = row["cycle_bytes"] if row["observe_bytes"] is None else row["observe_bytes"]
        least = moved * row["share"] / row["bytes_per_s"] if row["share"] else None
        of = "cycle" if row["observe_bytes"] is None else "advance"
        return f"cycle {in_words(row['cycle_s'])}{advance}", f"{of} {in_words(least)}" if least else ""
    if row["kind"] == "decode":
        return _rate(row["tokens_per_s"], "tokens/s"), _rate(row["bound_tokens_per_s"], "tokens/s")
    found = f"{_rate(_scaled(row['flop_per_s'], 1e12), 'TFLOP/s')}, {_rate(row['tokens_per_s'], 'tokens/s')}"
    return found, _rate(_scaled(row["bound_flop_per_s"], 1e12), "TFLOP/s")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the row of a measurement, with one text for each of `COLUMNS`."""
    if row["status"] != "done":
        return (row["name"], f"{row['status']}: {row['reason']}", *[""] * (len(COLUMNS) - 2))
    found, bound = _found_and_bound(row)
    share = row.get("share")
    return (
        row["name"],
        found,
        bound,
        "" if share is None else f"{share:.0%}",
        _gib(row.get("program_bytes")),
        # The peak is that of the whole process, so it belongs to this measurement only if it rose.
        _gib(row["device_peak_bytes"]) if row["is_device_peak_higher"] else "",
        in_words(row.get("compile_s")),
    )


def make_table(results: dict[str, Any]) -> Table:
    """Returns a table with one row per measurement."""
    table = Table(title="gpu_check")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in results["measurements"]:
        table.add_row(*cells(row))
    return table


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the results as a table, followed by a note on the conditions."""
    machine, sizes = results["machine"], results["sizes"]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in results["measurements"]:
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells(row))} |")
    lines += [
        "",
        f"{machine['device']}; JAX {machine['jax']} on {machine['backend']}; B = {sizes['selected']} prompts per "
        f"cycle; V = {sizes['vocab_size']:,}, prompts of {sizes['prompt_length']:,} and completions of "
        f"{sizes['completion_length']:,} tokens, G = {sizes['group_size']}; {sizes['update_rows']} rows per update, "
        f"{sizes['rows_per_step']} at a time; {machine['date']}.",
    ]
    return "\n".join(lines)
