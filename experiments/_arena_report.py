"""Tables and figures of the arena, from the records of its runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import _arena_studies
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from dps_jax.training import cost_to_reach

# A place is the mix and N of a cell; a variant is its method and learning rate.
Place = tuple[str, int]
Variant = tuple[str, float]

REFERENCES = ("dps", "uniform")
# Accuracies for which the rollouts needed to reach them are reported.
_MARKS = (0.5, 0.8)
_NUM_RESAMPLES = 2000
# The final accuracy is the mean of so many last evaluations.
_NUM_LAST = 3
_UNITS = ("rollouts", "tokens", "seconds")
_MIX_NOTES = {
    "lean": "most prompts have a wrong reference",
    "lean-by-level": "most prompts are of a level that was not in the supervised training",
    "typical": "some prompts have a wrong reference",
    "rich": "no prompt has a wrong reference",
}
_COLORS = (
    *("#1f5fa8", "#d1602b", "#2f8f5b", "#8a4fa3", "#b8961e", "#5b6570", "#c2447c", "#2a9bb0"),
    *("#7a4b21", "#9fbf3b", "#16213a", "#e39ac0", "#86c5da"),
)
# Largest number of curves for a legend inside the panel.
_MOST_INSIDE = 6


def costs(record: dict[str, Any], unit: str = "rollouts") -> np.ndarray:
    """Returns the cost of a run up to each of its evaluations, in rollouts, tokens or seconds."""
    if unit == "seconds":
        return np.array([0, *record["rollouts"]]) * record["seconds_per_rollout"]
    return np.array([0, *record[unit]], np.float64)


def area(record: dict[str, Any], budget: float, unit: str = "rollouts") -> float:
    """Returns the area under the curve of accuracy against cost, up to a budget, divided by the budget."""
    spent, accuracy = costs(record, unit), np.asarray(record["accuracy"])
    grid = np.append(spent[spent < budget], budget)
    return float(np.trapezoid(np.interp(grid, spent, accuracy), grid) / budget)


def paired(values: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """Returns the mean difference over seeds and the half-width of its 95 % t-interval; None for one seed."""
    difference = values - reference
    error = np.std(difference, ddof=1) / np.sqrt(difference.size) if difference.size > 1 else float("nan")
    half = float(stats.t.ppf(0.975, max(difference.size - 1, 1)) * error)
    return {"mean": float(difference.mean()), "half_width": _finite(half)}


def _curve(records: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns rollouts and mean accuracy of runs, at the evaluations of the first run, as far as all runs go."""
    end = min(record["rollouts"][-1] for record in records)
    rollouts = costs(records[0])
    rollouts = np.append(rollouts[rollouts < end], end)
    return rollouts, np.mean([np.interp(rollouts, costs(record), record["accuracy"]) for record in records], axis=0)


def _ratio(records: Sequence[dict[str, Any]], uniform: Sequence[dict[str, Any]]) -> float:
    """Returns the rollouts to uniform's final accuracy, divided by the rollouts that uniform needs.

    The ratio is infinite if that accuracy is not reached, and NaN if uniform learns nothing.
    """
    baseline, other = _curve(uniform), _curve(records)
    # Slightly less, so that rounding does not decide whether a flat curve reaches its own mean.
    target = float(np.mean(baseline[1][-_NUM_LAST:])) - 1e-9
    cost = cost_to_reach(*baseline, target)
    return cost_to_reach(*other, target) / cost if cost else float("nan")


def _interval(records: Sequence[dict[str, Any]], uniform: Sequence[dict[str, Any]]) -> list[float | None]:
    """Returns the 95 % bootstrap interval of `_ratio`; every resample has the same seeds for both methods."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(records), (_NUM_RESAMPLES, len(records)))
    ratios = [_ratio([records[i] for i in pick], [uniform[i] for i in pick]) for pick in picks]
    return [_finite(bound) for bound in np.quantile(ratios, [0.025, 0.975], method="nearest")]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _label(row: dict[str, Any], cells: Sequence[dict[str, Any]]) -> str:
    """Returns the name of a method, with its learning rate if the cells differ in it."""
    rates = {other["learning_rate"] for other in cells}
    return row["method"] if len(rates) == 1 else f"{row['method']}, rate {row['learning_rate']:g}"


def _colors(cells: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns the color of every method, the same in all figures."""
    labels = dict.fromkeys(_label(row, cells) for row in cells)
    return dict(zip(labels, itertools.cycle(_COLORS), strict=False))


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per cell: means over seeds, and differences from the references at the same mix and size."""
    cells: dict[Place, dict[Variant, list[dict[str, Any]]]] = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        place = cells.setdefault((record["mix"], record["num_prompts"]), {})
        place.setdefault((record["method"], record["learning_rate"]), []).append(record)
    return [_row(place, variant, found) for place, found in cells.items() for variant in found]


def _reference(
    found: dict[Variant, list[dict[str, Any]]], method: str, learning_rate: float
) -> list[dict[str, Any]] | None:
    """Returns the runs of a reference at the same learning rate, or else at its only learning rate."""
    rates = [rate for name, rate in found if name == method]
    if learning_rate not in rates and len(rates) != 1:
        return None
    return found[method, learning_rate if learning_rate in rates else rates[0]]


def _common(
    runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the runs of both whose seeds occur in both, in the same order."""
    by_seed = {run["seed"]: run for run in others}
    mine = [run for run in runs if run["seed"] in by_seed]
    return mine, [by_seed[run["seed"]] for run in mine]


def _row(place: Place, variant: Variant, found: dict[Variant, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns the row of one cell, compared with the other cells of the same mix and N."""
    method, learning_rate = variant
    runs = found[variant]
    # All cells are compared up to a budget that every run reaches, in rollouts, in tokens and in seconds.
    budgets = {unit: min(costs(run, unit)[-1] for others in found.values() for run in others) for unit in _UNITS}
    areas = {unit: np.array([area(run, budget, unit) for run in runs]) for unit, budget in budgets.items()}
    by_rollout = areas["rollouts"]
    mean = lambda name: float(np.mean([np.mean(run[name]) for run in runs]))
    rollouts, accuracy = _curve(runs)
    row = {
        "mix": place[0],
        "num_prompts": place[1],
        "learning_rate": learning_rate,
        "method": method,
        "seeds": [run["seed"] for run in runs],
        "area": float(by_rollout.mean()),
        "area_error": _error(by_rollout),
        "areas": by_rollout.round(5).tolist(),
        "num_rollouts": budgets["rollouts"],
        "area_by_tokens": float(areas["tokens"].mean()),
        "area_by_seconds": float(areas["seconds"].mean()),
        "seconds_per_rollout": float(np.median([run["seconds_per_rollout"] for run in runs])),
        "final_accuracy": float(np.mean([np.mean(run["accuracy"][-_NUM_LAST:]) for run in runs])),
        "rollouts": rollouts.tolist(),
        "accuracy": accuracy.round(5).tolist(),
        **{name: mean(name) for name in ("effective_sample_ratio", "success_rate_of_picks", "distinct_prompts")},
        "predicted_informative": mean("predicted_informative"),
        "brier": mean("brier"),
        **{f"rollouts_to_{mark}": _finite(cost_to_reach(rollouts, accuracy, mark)) for mark in _MARKS},
    }
    if all(run["gradient_cosine"] is not None for run in runs):
        row["gradient_cosine"] = mean("gradient_cosine")
    row["num_informative"] = mean("num_informative")
    for reference in REFERENCES:
        others = _reference(found, reference, learning_rate)
        if others is None or reference == method:
            continue
        mine, theirs = _common(runs, others)
        if mine:
            over = [np.array([area(run, budgets["rollouts"]) for run in group]) for group in (mine, theirs)]
            row[f"area_over_{reference}"] = paired(*over)
    tuned = _best_dps(found, budgets["rollouts"])
    if tuned is not None and tuned != variant and not _is_dps(method):
        mine, theirs = _common(runs, found[tuned])
        over = [np.array([area(run, budgets["rollouts"]) for run in group]) for group in (mine, theirs)]
        row["area_over_best_dps"] = paired(*over) | {"method": tuned[0]}
    mine, theirs = _common(runs, _reference(found, "uniform", learning_rate) or [])
    if mine:
        row["ratio_to_uniform"] = _finite(_ratio(mine, theirs))
        row["ratio_interval"] = _interval(mine, theirs)
    return row


def _is_dps(method: str) -> bool:
    """Returns whether a method is DPS, with any options."""
    return method.partition(":")[0] == "dps"


def _best_dps(found: dict[Variant, list[dict[str, Any]]], budget: float) -> Variant | None:
    """Returns the variant of DPS whose decay has the largest area; None with fewer than two decays."""
    decays = re.compile(r"dps(:decay=[^,]*)?")
    variants = [variant for variant in found if decays.fullmatch(variant[0])]
    if len(variants) < 2:
        return None
    return max(variants, key=lambda variant: np.mean([area(run, budget) for run in found[variant]]))


def _error(values: np.ndarray) -> float | None:
    """Returns the standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None


def _difference(row: dict[str, Any], reference: str) -> str:
    found = row.get(f"area_over_{reference}")
    if found is None:
        return ""
    # A single pair of runs has no interval.
    half_width = found["half_width"]
    return f"{found['mean']:+.3f}" if half_width is None else f"{found['mean']:+.3f} ± {half_width:.3f}"


def _times(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.2f}"


def _by_place(cells: Sequence[dict[str, Any]]) -> dict[Place, list[dict[str, Any]]]:
    """Returns the rows of every mix and size, the largest area first."""
    places = sorted({(row["mix"], row["num_prompts"]) for row in cells})
    rows_of = lambda place: [row for row in cells if (row["mix"], row["num_prompts"]) == place]
    return {place: sorted(rows_of(place), key=lambda row: -row["area"]) for place in places}


def _table(place: Place, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table with its title."""
    mix, size = place
    head = ["", f"**{mix}, N = {size:,}**", "", f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return [*head, *(f"| {' | '.join(line)} |" for line in lines)]


def to_markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Returns one table per mix and size: accuracies, their cost in rollouts, and the prompts that were rolled out."""
    references = {"dps": "over dps", "best_dps": "over the best dps", "uniform": "over uniform"}
    if not any("area_over_best_dps" in row for row in cells):
        del references["best_dps"]
    heads = (
        "method",
        "area",
        *references.values(),
        "final accuracy",
        "rollouts to uniform's final accuracy",
        "to 0.5",
        "to 0.8",
        "informative",
        "correct",
        "distinct prompts",
    )
    lines: list[str] = []
    for place, rows in _by_place(cells).items():
        body = []
        for row in rows:
            low, high = row.get("ratio_interval", (None, None))
            ratio = f"{_times(row.get('ratio_to_uniform'))} ({_times(low)} to {_times(high)})"
            body.append(
                (
                    _label(row, cells),
                    f"{row['area']:.3f}",
                    *(_difference(row, reference) for reference in references),
                    f"{row['final_accuracy']:.3f}",
                    ratio if "ratio_interval" in row else "",
                    *(_thousands(row[f"rollouts_to_{mark}"]) for mark in _MARKS),
                    f"{row['effective_sample_ratio']:.2f}",
                    f"{row['success_rate_of_picks']:.2f}",
                    f"{row['distinct_prompts']:,.0f}",
                )
            )
        lines += _table(place, heads, body)
    num_seeds = sorted({len(row["seeds"]) for row in cells})
    tuned = "The best dps: the decay of dps with the largest area in the same table, on the same seeds. "
    tuned = tuned if "best_dps" in references else ""
    lines += [
        "",
        f"{' or '.join(map(str, num_seeds))} seeds. Area: held-out accuracy averaged over the course of a "
        "run (area under the learning curve). Over dps, over uniform: paired differences in area with their 95 % "
        f"intervals. {tuned}Final accuracy: mean of the last {_NUM_LAST} evaluations. Rollouts to uniform's final "
        "accuracy: divided by the rollouts that uniform itself needs, with a 95 % bootstrap interval over seeds; to "
        "0.5, to 0.8: thousands of rollouts until that accuracy. Informative: share of the groups rolled out with some "
        "completions correct and some not. Correct: share of the completions that are correct. Distinct prompts: "
        "number of prompts that were visited at least once.",
    ]
    return "\n".join(lines[1:]) + "\n"


def costs_to_markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Returns one table per mix and size: area by tokens and by seconds, and the signal in the gradients."""
    heads = ("method", "area by tokens", "area by seconds", "seconds per 1,000 rollouts", "cosine", "signal per group")
    lines: list[str] = []
    for place, rows in _by_place(cells).items():
        body = []
        for row in rows:
            cosine = row.get("gradient_cosine")
            signal = signal_ratio(row)
            body.append(
                (
                    _label(row, cells),
                    f"{row['area_by_tokens']:.3f}",
                    f"{row['area_by_seconds']:.3f}",
                    f"{1000 * row['seconds_per_rollout']:.2f}",
                    "" if cosine is None else f"{cosine:.2f}",
                    "" if signal is None else f"{signal:.3f}",
                )
            )
        lines += _table(place, heads, body)
    lines += [
        "",
        "Area by tokens, by seconds: mean held-out accuracy up to the smallest number of tokens, or of seconds, that "
        "any run of the table took. Seconds: on one thread, without evaluations. Cosine: between the gradients of two "
        "independent rounds. Signal per group: r in cosine = n r / (1 + n r) for batches of n informative groups."
        + _clock(cells),
    ]
    return "\n".join(lines[1:]) + "\n"


def _clock(cells: Sequence[dict[str, Any]]) -> str:
    """Returns a sentence with the time of a round of `instructive` relative to uniform selection, for each N."""
    seconds: dict[int, dict[str, float]] = {}
    for row in cells:
        seconds.setdefault(row["num_prompts"], {})[row["method"]] = row["seconds_per_rollout"]
    ratios = [
        f"{found['instructive'] / found['uniform']:.2f} at N = {size:,}"
        for size, found in sorted(seconds.items())
        if {"instructive", "uniform"} <= set(found)
    ]
    return f" Time per round of `instructive`, relative to uniform selection: {', '.join(ratios)}." if ratios else ""


def signal_ratio(row: dict[str, Any]) -> float | None:
    """Returns the signal-to-noise ratio r of an informative group, from cosine = n r / (1 + n r); None if unknown."""
    cosine = row.get("gradient_cosine")
    if cosine is None or not 0 < cosine < 1 or not row["num_informative"]:
        return None
    return cosine / (1 - cosine) / row["num_informative"]


def _thousands(value: float | None) -> str:
    return "not reached" if value is None else f"{value / 1000:.1f}"


def curves(cells: Sequence[dict[str, Any]]) -> Figure:
    """Returns a figure of accuracy against rollouts, with one panel per mix and size."""
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
    if len(colors) <= _MOST_INSIDE:
        panels[0].legend(fontsize=8, frameon=False)
    else:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def picks(cells: Sequence[dict[str, Any]]) -> Figure:
    """Returns a figure of the gain over uniform selection, against informative share and success rate of the picks."""
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
    if len(_colors(cells)) <= _MOST_INSIDE:
        panels[1].legend(fontsize=8, frameon=False)
    else:
        figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def study(cells: Sequence[dict[str, Any]], name: str) -> Figure:
    """Returns a figure of the area under the accuracy curve by value of an option; one panel per mix and size."""
    what = _arena_studies.STUDIES[name]
    places = _by_place(cells)
    figure = Figure(figsize=(4.2 * len(places), 3.3), layout="constrained")
    panels = figure.subplots(1, len(places), squeeze=False, sharey=True)[0]
    for axes, ((mix, size), rows) in zip(panels, places.items(), strict=True):
        by_method = {row["method"]: row for row in rows}
        words = list(dict.fromkeys(word for values in what.series.values() for word in values))
        # Lines connect the points only if the values of the option are ordered.
        is_scale = all(word.replace(".", "", 1).isdigit() for word in words)
        axes.set_xticks(range(len(words)), words, **({} if is_scale else {"rotation": 30, "ha": "right"}))
        spread = 0.0 if is_scale else 0.12
        for index, ((series, values), color) in enumerate(zip(what.series.items(), _COLORS, strict=False)):
            found = [by_method[method] for method in values.values()]
            halves = [_half_width(row) for row in found]
            areas = [row["area"] for row in found]
            places_of_values = [words.index(word) + spread * (index - (len(what.series) - 1) / 2) for word in values]
            style = "o-" if is_scale else "o"
            axes.errorbar(places_of_values, areas, yerr=halves, fmt=style, color=color, capsize=3, label=series)
        if "uniform" not in what.series:
            axes.axhline(by_method["uniform"]["area"], linestyle="--", color="#5b6570", label="uniform")
        axes.set_title(f"{mix}, N = {size:,}", loc="left", fontsize=10, fontweight="bold")
        axes.set(xlabel=what.option)
        axes.grid(color="#d8dce0", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("area under held-out accuracy")
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def _half_width(row: dict[str, Any]) -> float:
    """Returns the half-width of the 95 % t-interval of an area; 0 for a single run."""
    num_seeds = len(row["seeds"])
    return float(stats.t.ppf(0.975, num_seeds - 1) * row["area_error"]) if num_seeds > 1 else 0.0


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """Returns the figures of an arena, by name."""
    cells, name = results["cells"], results["config"]["study"]
    if name is not None:
        return {"study": study(cells, name)}
    return {"curves": curves(cells), "picks": picks(cells)}


def sections(results: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the generated sections of an arena: path of the document -> name of the section -> text."""
    cells, name = results["cells"], results["config"]["name"]
    prefix = "arena" if name == "main" else f"arena_{name}"
    page = {prefix: to_markdown(cells), f"{prefix}_origin": origin(results)}
    if name != "main":
        return {"docs/arena-studies.md": page}
    page[f"{prefix}_costs"] = costs_to_markdown(cells)
    page[f"{prefix}_headline"] = headline(cells)
    return {"docs/when-selection-pays.md": page, "README.md": {"arena": headline(cells)}}


def origin(results: dict[str, Any]) -> str:
    """Returns the seeds, the commits and the command of the results."""
    config = results["config"]
    seeds = [config["first_seed"], config["first_seed"] + config["num_seeds"] - 1]
    unsaid = {"out_dir", "num_workers", "seconds_from", "study" if config["study"] is None else "methods"}
    unsaid |= {"name"} if config["name"] in (config["study"], "main") else set()
    flags = {name: value for name, value in config.items() if name not in unsaid}
    words = [
        f"  --{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in flags.items()
    ]
    command = " \\\n".join(["python experiments/arena.py", *words])
    return f"Seeds {seeds[0]} to {seeds[1]}, commit {', '.join(results['commits'])}:\n\n```\n{command}\n```"


def headline(cells: Sequence[dict[str, Any]]) -> str:
    """Returns the short table for README.md and docs/when-selection-pays.md."""
    lines = [
        "| training set | N | uniform | dps | dps at its best decay | instructive | "
        "rollouts that `instructive` needs to reach uniform's final accuracy, as a fraction of uniform's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    by_place: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in cells:
        by_place.setdefault((row["mix"], row["num_prompts"]), {})[row["method"]] = row
    for (mix, size), rows in sorted(by_place.items()):
        if not {"uniform", "dps", "instructive"} <= set(rows):
            continue
        share = 100 * rows["uniform"]["effective_sample_ratio"]
        found = [rows[method]["area"] for method in ("uniform", "dps", "instructive")]
        found.insert(2, max(row["area"] for method, row in rows.items() if _is_dps(method)))
        areas = " | ".join(f"{area:.3f}" for area in found)
        ratio = _times(rows["instructive"].get("ratio_to_uniform"))
        lines.append(f"| {mix}, {share:.0f} % informative | {size:,} | {areas} | {ratio} |")
    num_seeds = sorted({len(row["seeds"]) for row in cells})
    rollouts = max(row["num_rollouts"] for row in cells)
    lines += [
        "",
        "N: number of training prompts. Columns named after methods: held-out accuracy averaged over the course of a "
        f"run (area under the learning curve), mean of {' or '.join(map(str, num_seeds))} runs of {rollouts:,.0f} "
        "rollouts each; the best decay of `dps` is the one with the largest area in these runs. Informative: share of "
        "completion groups with some correct and some wrong completions, under uniform selection.",
    ]
    notes = [f"`{mix}`: {note}" for mix, note in _MIX_NOTES.items() if any(row["mix"] == mix for row in cells)]
    lines[-1] += f" {'; '.join(notes)}." if notes else ""
    return "\n".join(lines) + "\n"
