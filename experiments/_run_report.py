"""Tables of a run of train.py for the documentation: its learning curve, and each level before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def _percent(value: float | None, error: float | None) -> str:
    """Returns a share and its standard error as text, both in percent."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def to_markdown(
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    warm_up: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> str:
    """Returns the tables of a run.

    Args:
      summary: content of summary.json.
      records: lines of metrics.jsonl, one per round.
      warm_up: content of the .json file beside the initial weights of the run, with the accuracies before training.
      machine: description of the machine that the run used.
    """
    seconds = summary["seconds"]
    duration = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    lines = [
        f"{summary['rounds']} rounds, {summary['rollouts']:,} rollouts, {duration} on "
        f"{machine['cores']} CPU cores ({machine['cpu']}), {summary['effective_sample_ratio']:.0%} of the completion "
        "groups informative. Percent correct, ± the standard error over held-out problems and completions:",
        "",
        "| after round | rollouts | test accuracy |",
        "|---:|---:|---:|",
        f"| 0 | 0 | {_percent(summary['test_accuracies']['0'], warm_up['test_accuracy_error'])} |",
    ]
    rollouts = 0
    for record in records:
        rollouts += record["rollouts"]
        if record.get("test_accuracy") is not None:
            found = _percent(record["test_accuracy"], record["test_accuracy_error"])
            lines.append(f"| {record['round'] + 1} | {rollouts:,} | {found} |")
    lines += ["", "| level | before | after |", "|---|---:|---:|"]
    for name, value in summary["test_accuracy_by_group"].items():
        error = summary["test_accuracy_error_by_group"][name]
        before = (warm_up[key].get(name) for key in ("test_accuracy_by_group", "test_accuracy_error_by_group"))
        lines.append(f"| {name} | {_percent(*before)} | {_percent(value, error)} |")
    return "\n".join(lines)
