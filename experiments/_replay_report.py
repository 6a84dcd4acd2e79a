"""Tables and figures of `replay.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from dps_jax.traces import scores

# Subsets of the visits of a panel, and the words for each that follow the name of the panel.
PANEL_SPLITS = {
    "all": "",
    "trained": ", trained on before",
    "seen at least twice": ", at least twice",
    "never": ", never trained on",
}

# Largest number of characters for the name of a trace in a figure.
_LONGEST_LABEL = 28


def mean_of(results: list[dict[str, Any]], method: str, split: str, name: str) -> tuple[float, float]:
    """Returns the mean and the standard error of a score over seeds."""
    values = [result["scores"][method][split].get(name) for result in results]
    values = [np.nan if value is None else value for value in values]
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def ahead_head(methods: list[str], rows: str) -> tuple[list[str], list[str]]:
    """Returns the methods that the first method is compared with, and the first lines of the table."""
    rivals = [method for method in methods if not method.startswith(methods[0])]
    title = f"Log loss of the best other method minus log loss of {methods[0]}, by {rows}, with 95 % intervals:"
    return rivals, ["", title, "", f"| {rows} | best other | difference | interval |", "|---|---|---:|---:|"]


def ahead_table(sources: dict[str, Any], methods: list[str]) -> list[str]:
    """Returns the lines of a table of the lead of the first method over the best other method, by trace."""
    rivals, lines = ahead_head(methods, "trace")
    if not rivals:
        return []
    for source, found in sources.items():
        rival = min(rivals, key=lambda method: mean_of(found, method, "all", "log_loss")[0])
        lines.append(ahead_line(source, rival, [result["log_loss_minus_first"][rival] for result in found]))
    return lines


def mean_difference(differences: list[list[float]]) -> tuple[float, float, float]:
    """Returns the mean and the 95 % interval of differences; with several seeds, the interval is over seeds."""
    mean, low, high = np.mean(differences, axis=0)
    if len(differences) > 1:
        means = np.asarray(differences)[:, 0]
        spread = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
        low, high = mean - spread, mean + spread
    return float(mean), float(low), float(high)


def ahead_line(label: str, rival: str, differences: list[list[float]]) -> str:
    """Returns the line of the table for one rival."""
    mean, low, high = mean_difference(differences)
    return f"| {label} | {rival} | {mean:.3f} | {low:.3f} to {high:.3f} |"


def panels_ahead_table(panels: dict[str, Any], methods: list[str]) -> list[str]:
    """Returns the lines of the table of leads for panels, for each panel and for all together."""
    rivals, lines = ahead_head(methods, "panel")
    if not rivals:
        return []
    for split, words in PANEL_SPLITS.items():
        named = {name: found for name, found in panels.items() if split in found[methods[0]]}
        groups = [[name] for name in named] + ([list(named)] if len(named) > 1 else [])
        for names in groups:
            rival, differences = next_best(panels, names, rivals, split)
            label = names[0] if len(names) == 1 else f"all {len(names)} panels"
            lines.append(ahead_line(label + words, rival, differences))
    return lines


def next_best(panels: dict[str, Any], names: list[str], rivals: list[str], split: str) -> tuple[str, list[list[float]]]:
    """Returns the rival with the lowest log loss over some panels, and its differences to the first method."""
    loss = lambda method: np.mean([panels[name][method][split]["log_loss"] for name in names])
    rival = min(rivals, key=loss)
    return rival, [panels[name][rival][split]["log_loss_minus_first"] for name in names]


def is_dps(name: str) -> bool:
    """Returns whether a name is that of DPS with a decay from the list."""
    return name.startswith("dps, decay")


def reliability_of(found: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """Returns the reliability table for prompts seen at least twice, over all seeds together."""
    tables = [result["reliability"][method]["seen at least twice"] for result in found]
    lists = ({key: np.asarray(values, np.float64) for key, values in table.items()} for table in tables)
    return scores.pooled_reliability(list(lists))


def fixed_table(sources: dict[str, Any]) -> list[str]:
    """Returns the lines of a table that compares binomial_hmm with its bank of decays and with each single decay."""
    first = next(iter(sources.values()), None)
    prefix = "binomial_hmm, decay "
    names = [name for name in first[0]["scores"] if name.startswith(prefix)] if first else []
    if not names:
        return []
    lines = ["", "Log loss of binomial_hmm with its bank of decays, and with a single decay:", ""]
    lines += [
        f"| trace | bank | {' | '.join(name.removeprefix(prefix) for name in names)} | bank, relative to the best |"
    ]
    lines += ["|---|" + "---:|" * (len(names) + 2)]
    for source, found in sources.items():
        bank, *fixed = (mean_of(found, name, "all", "log_loss")[0] for name in ("binomial_hmm", *names))
        cells = " | ".join(f"{value:.3f}" for value in (bank, *fixed))
        lines.append(f"| {source} | {cells} | {100 * (bank / min(fixed) - 1):+.2f} % |")
    return lines


def mean_and_error(values: np.ndarray) -> str:
    """Returns the mean over seeds and its standard error, as text."""
    if values.size == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / np.sqrt(values.size):.3f}"


def loop_ratios(found: dict[str, list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    """Returns the effective sample ratios of every method in one regime, an array over seeds for each."""
    return {m: np.array([run["effective_sample_ratio"] for run in runs]) for m, runs in found.items()}


def best_dps_ratio(ratios: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the effective sample ratios over seeds of DPS, at the decay with the best mean."""
    return max((values for method, values in ratios.items() if is_dps(method)), key=np.mean)


def lead_in_closed_loop(found: dict[str, list[dict[str, Any]]]) -> tuple[np.ndarray, float]:
    """Returns the lead of the first method over the best decay of DPS by seed, and its share of the oracle's lead."""
    ratios = loop_ratios(found)
    best = best_dps_ratio(ratios)
    lead = next(values for method, values in ratios.items() if not is_dps(method)) - best
    return lead, float(np.mean(lead) / np.mean(ratios["oracle"] - best))


def findings(results: dict[str, Any]) -> str:
    """Returns a list that states how often the first method is ahead in the tables."""
    methods = results["config"]["methods"]
    first = methods[0]
    rivals = [method for method in methods if not method.startswith(first)]
    lines = []
    if results["sources"] and rivals:
        sources = results["sources"].values()
        lowest = {
            score: sum(
                mean_of(found, first, "all", score)[0] < min(mean_of(found, rival, "all", score)[0] for rival in rivals)
                for found in sources
            )
            for score in ("log_loss", "brier")
        }
        lines.append(
            f"* **Traces.** `{first}` has the lowest log loss on {lowest['log_loss']} of {len(sources)} traces, and "
            f"the lowest Brier score on {lowest['brier']}."
        )
    if results["panels"] and rivals:
        panels = results["panels"]
        lead = lambda names: mean_difference(next_best(panels, names, rivals, "all")[1])
        leads, every = [lead([name]) for name in panels], lead(list(panels))
        lines.append(
            f"* **All prompts.** In log loss over all visits of a panel, `{first}` is significantly better than the "
            f"next best method on {sum(low > 0 for _, low, _ in leads)} of {len(leads)} panels (the 95 % interval of "
            f"the difference does not contain 0), on a par on {sum(low <= 0 <= high for _, low, high in leads)} and "
            f"worse on {sum(high < 0 for _, _, high in leads)}. Over all panels together, its log loss is lower by "
            f"{every[0]:.4f} nats per visit ({every[1]:.4f} to {every[2]:.4f})."
        )
    loops = [lead_in_closed_loop(found) for found in results["closed_loop"].values()]
    if loops:
        leads, shares = [np.mean(lead) for lead, _ in loops], [share for _, share in loops]
        lines.append(
            f"* **Closed loop.** In {len(loops)} regimes, the share of informative completion groups is "
            f"{min(leads):.3f} to {max(leads):.3f} higher with `{first}` than with `dps` at its best decay. This lead "
            f"is {min(shares):.0%} to {max(shares):.0%} of the gap between that `dps` and the oracle."
        )
    return "\n".join(lines) + "\n"


def to_markdown(results: dict[str, Any]) -> str:
    """Returns all tables, with their explanations."""
    config = results["config"]
    methods, num_seeds = config["methods"], config["num_seeds"]
    named = [method for method in methods if method != "binomial_hmm, counts only"]
    lines = ["Log loss of the number m of correct completions, in nats per visit:", ""]
    lines += [
        f"| trace | visits | {' | '.join(methods)} | best dps | oracle |",
        "|---|" + "---:|" * (len(methods) + 3),
    ]
    for source, found in results["sources"].items():
        means = {method: mean_of(found, method, "all", "log_loss")[0] for method in (*methods, "oracle")}
        best_dps = min(
            (mean_of(found, name, "all", "log_loss")[0] for name in found[0]["scores"] if is_dps(name)),
            default=np.nan,
        )
        lowest = min(means[method] for method in named)
        cells = [f"**{means[m]:.3f}**" if means[m] == lowest else f"{means[m]:.3f}" for m in methods]
        visits = sum(result["scores"][methods[0]]["all"]["visits"] for result in found)
        hindsight = f"{best_dps:.3f}" if np.isfinite(best_dps) else ""
        lines.append(f"| {source} | {visits:,} | {' | '.join(cells)} | {hindsight} | {means['oracle']:.3f} |")
    sizes = " | ".join(str(results["state_bytes"][method]) for method in methods)
    lines.append(f"| *bytes per prompt* | | {sizes} | | |")
    lines += ahead_table(results["sources"], methods) + fixed_table(results["sources"])
    lines += [
        "",
        "Brier score of P(0 < m < G), and in brackets the reliability error for prompts visited at least twice before, "
        "over all seeds. The last column is the reliability error that chance alone would cause if the predictions of "
        f"{methods[0]} were correct:",
        "",
    ]
    lines += [f"| trace | {' | '.join(methods)} | chance |", "|---|" + "---:|" * (len(methods) + 1)]
    for source, found in results["sources"].items():
        cells = []
        for method in methods:
            error = scores.distance_in_bins(reliability_of(found, method))
            cells.append(f"{mean_of(found, method, 'all', 'brier')[0]:.3f} ({error:.3f})")
        chance = scores.chance_in_bins(reliability_of(found, methods[0]))
        lines.append(f"| {source} | {' | '.join(cells)} | {chance:.3f} |")
    if results["panels"]:
        lines += [
            "",
            "Panels: predictions of all prompts, given the visits that the run trained on; log loss, and in brackets "
            "the Brier score and reliability error of P(0 < m < G). A row without a qualifier has all visits of a "
            "panel; the others have visits of prompts that the run had trained on before, at least twice, or never:",
            "",
            f"| panel | visits | {' | '.join(methods)} | best dps |",
            "|---|" + "---:|" * (len(methods) + 2),
        ]
        for name, found in results["panels"].items():
            for split, words in PANEL_SPLITS.items():
                of = {m: s[split] for m, s in found.items() if split in s}
                if not of:
                    continue
                best = min((s["log_loss"] for m, s in of.items() if is_dps(m)), default=np.nan)
                cell = lambda s: f"{s['log_loss']:.3f} ({s['brier']:.3f}, {s['reliability_error']:.3f})"
                cells = " | ".join(cell(of[method]) for method in methods)
                visits = of[methods[0]]["groups"]
                lines.append(f"| {name}{words} | {visits:,} | {cells} | {best:.3f} |")
        lines += panels_ahead_table(results["panels"], methods)
    if results["closed_loop"]:
        first = next(iter(results["closed_loop"].values()))
        names = [name for name in first if not is_dps(name)]
        lines += [
            "",
            f"Closed loop: effective sample ratio, mean and standard error over {config['num_loop_seeds']} seeds. "
            f"`lead` is the ratio of {names[0]} minus the ratio of dps at its best decay; `share of gap` is this lead "
            "divided by the lead of the oracle over the same dps:",
            "",
            f"| regime | {' | '.join(names)} | best dps | lead | share of gap |",
            "|---|" + "---:|" * (len(names) + 3),
        ]
        for regime, found in results["closed_loop"].items():
            ratio = loop_ratios(found)
            best = best_dps_ratio(ratio)
            lead, share = lead_in_closed_loop(found)
            cells = [mean_and_error(ratio[m]) for m in names]
            cells += [f"{np.mean(best):.3f}", mean_and_error(lead), f"{share:.0%}"]
            lines.append(f"| {regime} | {' | '.join(cells)} |")
        lines += [
            "",
            "Regret per pick; share of the prompts that were ever picked; and, at the end of the run, the largest "
            "number of rounds since a prompt was last picked (all rounds, if some prompt was never picked). Means over "
            f"{config['num_loop_seeds']} seeds:",
            "",
        ]
        lines += [f"| regime | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
        for regime, found in results["closed_loop"].items():
            mean = lambda method, name, found=found: np.mean([run[name] for run in found[method]])
            cells = [
                f"{mean(m, 'regret'):.3f}; {mean(m, 'coverage'):.0%}; {mean(m, 'longest_wait'):.0f}" for m in names
            ]
            lines.append(f"| {regime} | {' | '.join(cells)} |")
    simulated = f"{num_seeds} traces of every regime. " if config["regimes"] else ""
    apart = ", apart from `binomial_hmm, counts only`" if len(named) < len(methods) else ""
    lines += [
        "",
        f"{simulated}Bold: the lowest of the methods{apart}. `best dps`: the best decay in hindsight. Each visit is "
        "scored at its own number of completions. `visits` is the number of scored visits of a row, over all its "
        "traces. *bytes per prompt*: size of the state with six prompt groups and without features.",
    ]
    return "\n".join(lines) + "\n"


def _short(source: str) -> str:
    """Returns the name of a trace, shortened to its end if it is long, for figures."""
    return source if len(source) <= _LONGEST_LABEL else f"...{source[3 - _LONGEST_LABEL :]}"


def plot(results: dict[str, Any], folder: Path) -> None:
    """Plots skill by method and source, and reliability diagrams of three methods."""
    sources, methods = results["sources"], results["config"]["methods"]
    if not sources:
        return
    figure = Figure(figsize=(1.3 * len(sources) + 3, 4), layout="constrained")
    axes = figure.subplots()
    for index, method in enumerate(methods):
        color = f"C{index}" if index < 10 else "0.3"  # the default color cycle has ten colors
        skill = (
            [
                1
                - (mean_of(f, method, "all", "log_loss")[0] - mean_of(f, "oracle", "all", "log_loss")[0])
                / (mean_of(f, "constant", "all", "log_loss")[0] - mean_of(f, "oracle", "all", "log_loss")[0])
                for f in sources.values()
            ]
            if "constant" in methods
            else []
        )
        axes.plot(skill, marker="o", linestyle=":", color=color, label=method)
    axes.set(ylabel="skill: 0 base rate, 1 oracle", ylim=(-0.5, 1.05))
    axes.set_xticks(range(len(sources)), [_short(source) for source in sources], rotation=30)
    figure.legend(fontsize="x-small", loc="outside right upper")
    figure.savefig(folder / "skill.png", dpi=120)
    shown = [method for method in ("binomial_hmm", "arcsine", "dps") if method in methods]
    columns = min(len(sources), 5)
    lines = -(-len(sources) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for panel, (source, found) in zip(grid.flat, sources.items(), strict=False):
        panel.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
        for index, method in enumerate(shown):
            table = found[0]["reliability"][method]
            pairs = zip(table["predicted"], table["share"], table["visits"], strict=True)
            points = [(p, s) for p, s, v in pairs if p is not None and v >= 20]
            if points:
                panel.plot(*zip(*points, strict=True), marker=".", color=f"C{index}", label=method)
        panel.set_title(_short(source), fontsize="small")
    for panel in list(grid.flat)[len(sources) :]:
        panel.set_visible(False)
    figure.supxlabel("predicted P(0 < m < G)", fontsize="small")
    figure.supylabel("observed share with 0 < m < G", fontsize="small")
    labelled = [panel for panel in grid.flat if panel.get_legend_handles_labels()[1]]
    if labelled:
        labelled[0].legend(fontsize="x-small")
    figure.savefig(folder / "reliability.png", dpi=120)
