"""The results of a finished run: its summary and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dps_jax import _json, traces
from dps_jax.traces.replay import visits_of
from dps_jax.training import _figures, _run_log

_PHASES = ("select_s", "rollout_s", "update_s", "observe_s")


def round_record(round_index: int, info: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the line of a round in metrics.jsonl, from its `RoundInfo` and further entries."""
    update = info.update
    return {
        "round": round_index,
        "rollouts": int(info.num_rollouts),
        "completion_tokens": int(info.num_tokens),
        "effective_sample_ratio": float(info.effective_sample_ratio),
        "accuracy": float(info.accuracy),
        "reward": float(info.reward),
        "loss": float(update.loss),
        "grad_norm": float(update.grad_norm),
        "entropy": float(update.sampled_entropy),
        "kl": float(update.kl),
        "clip_fraction": float(update.clip_fraction),
        "update_rows": int(update.num_rows),
        "skipped_steps": int(update.num_skipped),
        "predicted_informative": float(info.predicted_informative),
        "brier": float(info.brier),
        "confusion": np.asarray(info.confusion).tolist(),
        **more,
    }


def examples(before: Sequence[Any], after: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns held-out problems with the answers before and after training; rows of prompt, answer and correctness."""
    names = ("prompt", "before", "before_is_correct", "after", "after_is_correct")
    return [
        dict(zip(names, (prompt, was, was_correct, is_now, is_correct), strict=True))
        for (prompt, was, was_correct), (_, is_now, is_correct) in zip(before, after, strict=True)
    ]


def means(path: Path) -> dict[str, float]:
    """Returns means over the rounds in metrics.jsonl: of the effective sample ratio, and of the seconds of phases."""
    records = _run_log.read_metrics(path)
    mean = lambda name: float(np.mean([record[name] for record in records]))
    return {
        "effective_sample_ratio": mean("effective_sample_ratio"),
        **{f"mean_{name}": mean(name) for name in _PHASES},
    }


def write(
    folder: Path, summary: Mapping[str, Any], groups: np.ndarray | None = None, group_names: Sequence[str] = ()
) -> None:
    """Writes summary.json and the figures of a run.

    Args:
      folder: folder of the run.
      summary: summary of the run, of JSON types.
      groups: level or source of every prompt, int [N]; adds a figure of the picks over rounds. None adds none.
      group_names: names of the groups.
    """
    _json.write(folder / "summary.json", summary, indent=2)
    levels = None
    if groups is not None:
        visits = visits_of(traces.read_trace(folder / "trace.npz"), groups.size)
        levels = visits.by_round(groups[visits.ids], -1)
    records = _run_log.read_metrics(folder / "metrics.jsonl")
    _figures.plot_run(records, summary, folder, levels=levels, level_names=group_names)


def conclusion(summary: Mapping[str, Any], folder: Path) -> str:
    """Returns a summary of a run in one line."""
    known = lambda value: "unknown" if value is None else f"{value:.3f}"
    before, after = summary["test_accuracies"].get("0"), summary["test_accuracy"]
    # One test problem has no standard error.
    error = summary["test_accuracy_error"]
    skipped = f", {summary['skipped_steps']} steps skipped" if summary["skipped_steps"] else ""
    return (
        f"test accuracy {known(before)} -> {known(after)}"
        f"{'' if error is None else f' (standard error {error:.3f})'}, informative groups "
        f"{summary['effective_sample_ratio']:.0%}, {summary['rollouts']:,} rollouts, {summary['seconds']:.0f} s"
        f"{skipped}; wrote {folder}"
    )
