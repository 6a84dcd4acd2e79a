"""Figures of runs, drawn from the records in metrics.jsonl; every function that plots returns a new figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dps_jax.viz import COLORS, _style, confusion_matrix, moving_average, save

Record = Mapping[str, Any]

_LINE_HEIGHT = 0.15


def column(records: Sequence[Record], name: str) -> np.ndarray:
    """Returns one entry of every record, float64 [T]; NaN where it is missing or null."""
    values = [record.get(name) for record in records]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _accuracy_curve(
    records: Sequence[Record], before: float | None, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns total cost, test accuracy and its standard error, [E] each, of all evaluations.

    Args:
      records: records of the rounds, [T].
      before: accuracy before the first round, if known; its error is assumed to be that of the next evaluation.
      costs: cost of each round, [T].
    """
    values, errors = column(records, "test_accuracy"), column(records, "test_accuracy_error")
    is_known = np.isfinite(values)
    totals, values, errors = np.cumsum(costs)[is_known], values[is_known], np.nan_to_num(errors[is_known])
    if before is not None:
        totals, values = np.append(0.0, totals), np.append(before, values)
        errors = np.append(errors[:1] if errors.size else 0.0, errors)
    return totals, values, errors


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    _style.label(axes, title, x, y)
    if not axes.lines:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color=_style.GREY)


def _window(values: np.ndarray) -> int:
    return max(1, values.size // 15)


def _draw_rounds(axes: Axes, rounds: np.ndarray, values: np.ndarray, color: str, label: str | None = None) -> None:
    """Draws the values of all rounds, faintly, and their moving average."""
    if not np.any(np.isfinite(values)):
        return
    window = _window(values)
    axes.plot(rounds, values, color=color, alpha=0.28, linewidth=0.9)
    average = moving_average(values, window)
    label = label or (f"mean of {window} rounds" if window > 1 else None)
    marker = "o" if values.size == 1 else ""
    axes.plot(rounds, average, color=color, linewidth=2.0, label=label, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def _draw_accuracy(axes: Axes, curve: tuple[np.ndarray, ...], color: str, label: str) -> None:
    cost, values, errors = curve
    if values.size:
        axes.fill_between(cost, values - errors, values + errors, color=color, alpha=0.2, linewidth=0)
        axes.plot(cost, values, color=color, linewidth=2.0, marker="o", markersize=3.5, label=label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))


def _lengths(records: Sequence[Record]) -> np.ndarray:
    """Returns tokens per completion, [T]."""
    tokens, rollouts = column(records, "completion_tokens"), column(records, "rollouts")
    return np.divide(tokens, rollouts, out=np.full(tokens.shape, np.nan), where=rollouts > 0)


def _panels(title: str) -> tuple[Figure, list[Axes]]:
    """Returns a figure of two by two panels."""
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(wspace=0.06, hspace=0.06)  # pyright: ignore[reportCallIssue]
    if title:
        figure.suptitle(title)
    return figure, list(figure.subplots(2, 2).flat)


def training_curves(records: Sequence[Record], *, accuracy_before: float | None = None, title: str = "") -> Figure:
    """Returns four panels of one run: test accuracy, effective sample ratio, mean reward and response length.

    Args:
      records: records of the rounds, as in metrics.jsonl.
      accuracy_before: test accuracy before the first round.
      title: title of the figure.
    """
    figure, (accuracy, ratio, reward, length) = _panels(title)
    rounds = column(records, "round")
    curve = _accuracy_curve(records, accuracy_before, column(records, "rollouts"))
    _draw_accuracy(accuracy, curve, COLORS[0], "pass@1 ± standard error")
    _label(accuracy, "Test accuracy", "rollouts", "share of completions that are correct")

    _draw_rounds(ratio, rounds, column(records, "effective_sample_ratio"), COLORS[0], "observed")
    predicted = moving_average(column(records, "predicted_informative"), _window(rounds))
    if np.any(np.isfinite(predicted)):
        ratio.plot(rounds, predicted, color=COLORS[1], linestyle="--", linewidth=1.6, label="predicted")
    ratio.set_ylim(0, 1)
    _label(ratio, "Effective sample ratio", "round", "share of prompts partially solved")

    _draw_rounds(reward, rounds, column(records, "reward"), COLORS[2])
    _label(reward, "Mean reward of training rollouts", "round", "reward")
    _draw_rounds(length, rounds, _lengths(records), COLORS[3])
    _label(length, "Response length", "round", "tokens per completion")
    return figure


def prompts_over_rounds(
    levels: np.ndarray, level_names: Sequence[str], records: Sequence[Record], *, title: str = ""
) -> Figure:
    """Returns panels of the levels picked in each round, and of the predicted success rates of all prompts.

    Args:
      levels: levels of the prompts that were rolled out in each round, int [T, P]; -1 for padding.
      level_names: names of the levels.
      records: records of the rounds, as in metrics.jsonl; those with an evaluation have `predicted_success_rates`, the
        shares of all prompts by predicted success rate, in bins of equal width.
      title: title of the figure.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    picked, solved = figure.subplots(1, 2)
    figure.suptitle(title)
    if levels.size:
        counts = np.stack([(levels == index).sum(axis=1) for index in range(len(level_names))])
        shares = counts / np.maximum(counts.sum(axis=0), 1)
        smoothed = np.stack([moving_average(row, max(1, levels.shape[0] // 15)) for row in shares])
        rounds = np.arange(levels.shape[0])
        picked.stackplot(rounds, smoothed, labels=level_names, colors=COLORS[: len(level_names)], alpha=0.85)
        picked.plot(rounds, np.ones(rounds.size), linewidth=0)
        picked.set(xlim=(0, max(levels.shape[0] - 1, 1)), ylim=(0, 1))
    _label(picked, "Levels of the picks", "round", "share of the prompts of a round")
    if picked.get_legend() is not None:
        # Beside the plot, with the last level on top, as in the plot.
        handles, labels = picked.get_legend_handles_labels()
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        picked.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False, **place)
    known = [record for record in records if record.get("predicted_success_rates")]
    if known:
        table = np.array([record["predicted_success_rates"] for record in known]).T
        last = [record["round"] + 1 for record in known]
        edges = np.array([0, *last]) if len(last) > 1 else np.array([0, max(last[0], 1)])
        _style.draw_shares(figure, solved, edges, table)
        solved.plot([], [])
    _label(solved, "Predicted success rates of all training prompts", "round", "predicted success rate")
    return figure


def examples(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Returns some held-out problems with the answers of the policy before and after training.

    Args:
      rows: `prompt`, and the text and correctness of both answers: `before`, `before_is_correct`, `after`,
        `after_is_correct`.
      title: title of the figure.
    """
    # Heights are in inches. The prompts of rasters have several lines.
    lines = [max(row[name].count("\n") for name in ("prompt", "before", "after")) for row in rows]
    heights = np.array([0.34 + _LINE_HEIGHT * more for more in lines])
    figure = Figure(figsize=(11, 1.1 + heights.sum()), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    good, bad = "#2f8f5b", "#b83232"
    for place, (x, words) in enumerate(((0.0, "problem"), (0.22, "answer before"), (0.62, "answer after"))):
        axes.text(x, 1.0, words, fontsize=9, color="#5b6570", va="top", transform=axes.transAxes)
        for line, row in enumerate(rows):
            text = row[("prompt", "before", "after")[place]]
            color = _style.INK
            if place:
                color = good if row[f"{('before', 'after')[place - 1]}_is_correct"] else bad
            y = 1 - (0.408 + heights[:line].sum()) / (0.408 + heights.sum())
            axes.text(x, y, text, fontsize=9, family="monospace", color=color, va="top", transform=axes.transAxes)
    return figure


def plot_run(
    records: Sequence[Record],
    summary: Mapping[str, Any],
    folder: Path | str,
    *,
    levels: np.ndarray | None = None,
    level_names: Sequence[str] = (),
) -> list[Path]:
    """Writes the figures of a run and returns their paths.

    These are `training_curves.png`; `prompts.png` if levels are given; `examples.png` if the summary has examples; and
    `confusion.png` if solve states were predicted.

    Args:
      records: records of the rounds, as in metrics.jsonl.
      summary: summary of the run; its `test_accuracies`, by the number of rounds done, include that before training.
      folder: folder of the run; its name is the title.
      levels: levels of the prompts that were rolled out in each round, int [T, P]; -1 for padding.
      level_names: names of the levels.
    """
    folder = Path(folder).absolute()
    before = summary.get("test_accuracies", {}).get("0")
    figures = {"training_curves.png": training_curves(records, accuracy_before=before, title=folder.name)}
    if levels is not None:
        figures["prompts.png"] = prompts_over_rounds(levels, level_names, records, title=folder.name)
    if summary.get("examples"):
        figures["examples.png"] = examples(summary["examples"], title=f"{folder.name}: held-out problems")
    counts = [record["confusion"] for record in records if record.get("confusion")]
    if counts and np.sum(counts) > 0:
        figures["confusion.png"] = confusion_matrix(np.sum(counts, axis=0), title=folder.name)
    for name, figure in figures.items():
        save(figure, folder / name)
    return [folder / name for name in figures]
