"""Tables and figures of the arena, from the records of its runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from dps_jax.training.curves import cost_to_reach, smooth

REFERENCES = ("dps", "uniform")
# Of the accuracies that runs are timed to.
_MARKS = (0.5, 0.8)
_NUM_RESAMPLES = 2000
_COLORS = ("#1f5fa8", "#d1602b", "#2f8f5b", "#8a4fa3", "#b8961e", "#5b6570", "#c2447c", "#2a9bb0")


def area(record: dict[str, Any], num_rollouts: float) -> float:
    """Returns the area under the curve of accuracy against rollouts up to a number of them, over that number."""
    costs, accuracy = np.array([0, *record["rollouts"]], np.float64), np.asarray(record["accuracy"])
    inside = costs < num_rollouts
    grid = np.append(costs[inside], num_rollouts)
    return float(np.trapezoid(np.interp(grid, costs, accuracy), grid) / num_rollouts)


def paired(values: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Returns the mean difference over seeds and half the width of its 95 % interval, by Student's t."""
    difference = values - reference
    error = np.std(difference, ddof=1) / np.sqrt(difference.size) if difference.size > 1 else float("nan")
    half = float(stats.t.ppf(0.975, max(difference.size - 1, 1)) * error)
    return {"mean": float(difference.mean()), "half_width": half}


def _curve(records: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean rollouts and mean accuracy at every evaluation."""
    rollouts = np.mean([[0, *record["rollouts"]] for record in records], axis=0)
    return rollouts, np.mean([record["accuracy"] for record in records], axis=0)


def _ratio(records: Sequence[dict[str, Any]], uniform: Sequence[dict[str, Any]]) -> float:
    """Returns rollouts to uniform's final accuracy over those of uniform.

    Infinity where it is not reached, NaN where uniform learns nothing.
    """
    baseline, other = _curve(uniform), _curve(records)
    target = float(smooth(baseline[1])[-1])
    cost = cost_to_reach(*baseline, target)
    return cost_to_reach(*other, target) / cost if cost else float("nan")


def _interval(records: Sequence[dict[str, Any]], uniform: Sequence[dict[str, Any]]) -> list[float | None]:
    """Returns the 95 % bootstrap interval of `_ratio`, resampling seeds, the same for both."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(records), (_NUM_RESAMPLES, len(records)))
    ratios = [_ratio([records[i] for i in pick], [uniform[i] for i in pick]) for pick in picks]
    return [_finite(bound) for bound in np.quantile(ratios, [0.025, 0.975], method="nearest")]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _label(row: dict[str, Any], cells: Sequence[dict[str, Any]]) -> str:
    """Returns the name of a method, with its learning rate where there are several."""
    rates = {other["learning_rate"] for other in cells}
    return row["method"] if len(rates) == 1 else f"{row['method']}, rate {row['learning_rate']:g}"


def _colors(cells: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns the color of every method, the same in all figures."""
    labels = dict.fromkeys(_label(row, cells) for row in cells)
    return dict(zip(labels, itertools.cycle(_COLORS), strict=False))


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per cell: means over seeds, and differences to the references on the same mix and size."""
    key = lambda record: (record["mix"], record["num_prompts"], record["learning_rate"], record["method"])
    cells: dict[Any, list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        cells.setdefault(key(record), []).append(record)
    return [_row(cells, where, runs) for where, runs in cells.items()]


def _row(cells: dict[Any, list[dict[str, Any]]], where: Any, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of one cell."""
    *place, method = where
    # Methods whose rounds take more rollouts are compared over as many as the others have.
    num_rollouts = min(run["rollouts"][-1] for key, others in cells.items() if [*key[:-1]] == place for run in others)
    areas = np.array([area(run, num_rollouts) for run in runs])
    mean = lambda name: float(np.mean([np.mean(run[name]) for run in runs]))
    rollouts, accuracy = _curve(runs)
    row = {
        "mix": place[0],
        "num_prompts": place[1],
        "learning_rate": place[2],
        "method": method,
        "seeds": [run["seed"] for run in runs],
        "area": float(areas.mean()),
        "area_error": float(areas.std(ddof=1) / np.sqrt(areas.size)) if areas.size > 1 else None,
        "areas": areas.round(5).tolist(),
        "num_rollouts": num_rollouts,
        "final_accuracy": float(np.mean([np.mean(run["accuracy"][-3:]) for run in runs])),
        "rollouts": rollouts.tolist(),
        "accuracy": accuracy.tolist(),
        **{name: mean(name) for name in ("effective_sample_ratio", "success_rate_of_picks", "distinct_prompts")},
        "predicted_informative": mean("predicted_informative"),
        "brier": mean("brier"),
        **{f"rollouts_to_{mark}": _finite(cost_to_reach(rollouts, accuracy, mark)) for mark in _MARKS},
    }
    for reference in REFERENCES:
        others = cells.get((*place, reference))
        if others is not None and reference != method and [run["seed"] for run in others] == row["seeds"]:
            row[f"area_over_{reference}"] = paired(areas, np.array([area(run, num_rollouts) for run in others]))
    uniform = cells.get((*place, "uniform"))
    if uniform is not None and [run["seed"] for run in uniform] == row["seeds"]:
        row["ratio_to_uniform"] = _finite(_ratio(runs, uniform))
        row["ratio_interval"] = _interval(runs, uniform)
    return row


def _difference(row: dict[str, Any], reference: str) -> str:
    found = row.get(f"area_over_{reference}")
    return "" if found is None else f"{found['mean']:+.3f} ± {found['half_width']:.3f}"


def _times(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.2f}"


def to_markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Returns one table per mix and size."""
    lines: list[str] = []
    place = lambda row: (row["mix"], row["num_prompts"])
    for (mix, size), rows in itertools.groupby(sorted(cells, key=place), key=place):
        ordered = sorted(rows, key=lambda row: -row["area"])
        lines += [
            f"**{mix}, N = {size:,}**",
            "",
            "| method | area | over dps | over uniform | final accuracy | rollouts to uniform's final accuracy | "
            "informative | solved | distinct prompts |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in ordered:
            low, high = row.get("ratio_interval", (None, None))
            ratio = f"{_times(row.get('ratio_to_uniform'))} ({_times(low)} to {_times(high)})"
            lines.append(
                f"| {_label(row, cells)} | {row['area']:.3f} | "
                f"{_difference(row, 'dps')} | {_difference(row, 'uniform')} | "
                f"{row['final_accuracy']:.3f} | {ratio if 'ratio_interval' in row else ''} | "
                f"{row['effective_sample_ratio']:.2f} | {row['success_rate_of_picks']:.2f} | "
                f"{row['distinct_prompts']:,.0f} |"
            )
        lines.append("")
    num_seeds = sorted({len(row["seeds"]) for row in cells})
    lines.append(
        f"{' or '.join(map(str, num_seeds))} seeds. Area: mean held-out accuracy over the rollouts of a run. Over dps, "
        "over uniform: paired differences in area with their 95 % intervals. Informative: share of the groups rolled "
        "out with some completions correct and some not. Solved: share of the completions that are correct."
    )
    return "\n".join(lines) + "\n"


def curves(cells: Sequence[dict[str, Any]]) -> Figure:
    """Returns accuracy against rollouts, one panel per mix and size."""
    places = sorted({(row["mix"], row["num_prompts"]) for row in cells})
    colors = _colors(cells)
    num_columns = min(3, len(places))
    num_rows = -(-len(places) // num_columns)
    figure = Figure(figsize=(4.6 * num_columns, 3.6 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, place in itertools.zip_longest(panels, places):
        if place is None:
            axes.set_visible(False)
            continue
        for row in cells:
            if (row["mix"], row["num_prompts"]) == place:
                label = _label(row, cells)
                dash = "--" if row["method"].startswith("true-") else "-"
                thousands = np.array(row["rollouts"]) / 1000
                axes.plot(thousands, row["accuracy"], dash, color=colors[label], linewidth=1.8, label=label)
        axes.set_title(f"{place[0]}, N = {place[1]:,}", loc="left", fontsize=10, fontweight="bold")
        axes.set(xlabel="thousand rollouts", ylabel="held-out accuracy", ylim=(0, 1))
        axes.grid(color="#d8dce0", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def picks(cells: Sequence[dict[str, Any]]) -> Figure:
    """Returns what methods gain over uniform selection, against how surely informative and how easy their picks are."""
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    columns = {
        "effective_sample_ratio": "share of informative groups among the picks",
        "success_rate_of_picks": "success rate of the picks",
    }
    for axes, (column, words) in zip(panels, columns.items(), strict=True):
        for label, color in _colors(cells).items():
            rows = [row for row in cells if _label(row, cells) == label and "area_over_uniform" in row]
            if rows:
                gains = [row["area_over_uniform"]["mean"] for row in rows]
                axes.scatter([row[column] for row in rows], gains, s=30, color=color, label=label)
        axes.axhline(0, color="#5b6570", linewidth=0.8)
        axes.set(xlabel=words, xlim=(0, 1))
        axes.grid(color="#d8dce0", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("area over uniform selection")
    panels[1].legend(fontsize=8, frameon=False)
    return figure


def sections(results: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Returns what documents say about the arena: by path, by the name of the section."""
    cells = results["cells"]
    page = {"arena": to_markdown(cells), "arena_origin": origin(results)}
    return {"docs/when-selection-pays.md": page, "README.md": {"arena": headline(cells)}}


def origin(results: dict[str, Any]) -> str:
    """Returns how the results came about."""
    config = results["config"]
    seeds = [config["first_seed"], config["first_seed"] + config["num_seeds"] - 1]
    flags = {name: value for name, value in config.items() if name not in ("out_dir", "num_workers")}
    words = [
        f"  --{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in flags.items()
    ]
    command = " \\\n".join(["python experiments/arena.py", *words])
    return f"Seeds {seeds[0]} to {seeds[1]}, commit {', '.join(results['commits'])}:\n\n```\n{command}\n```"


def headline(cells: Sequence[dict[str, Any]]) -> str:
    """Returns the few lines for the first screen of the README."""
    lines = [
        "| prompts | N | uniform | dps | instructive | "
        "rollouts of instructive to uniform's final accuracy, over uniform's |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by_place: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in cells:
        by_place.setdefault((row["mix"], row["num_prompts"]), {})[row["method"]] = row
    for (mix, size), rows in sorted(by_place.items()):
        if not {"uniform", "dps", "instructive"} <= set(rows):
            continue
        share = 100 * rows["uniform"]["effective_sample_ratio"]
        areas = " | ".join(f"{rows[method]['area']:.3f}" for method in ("uniform", "dps", "instructive"))
        ratio = _times(rows["instructive"].get("ratio_to_uniform"))
        lines.append(f"| {mix}, {share:.0f} % informative | {size:,} | {areas} | {ratio} |")
    num_seeds = sorted({len(row["seeds"]) for row in cells})
    rollouts = max(row["num_rollouts"] for row in cells)
    lines += ["", f"Mean held-out accuracy over {' or '.join(map(str, num_seeds))} runs of {rollouts:,} rollouts."]
    return "\n".join(lines) + "\n"
