"""The sections "Overview" and "Curves" of the page: results, differences between the configs, and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dps_jax.report import _charts, _configs
from dps_jax.report._charts import Series
from dps_jax.report._html import NONE, Markup, number, percent, table, tag
from dps_jax.report._runs import PHASES, Run
from dps_jax.report._style import color
from dps_jax.training._figures import column, moving_average

# Rounds that take more than this many times the median are assumed to have compiled a program.
_SLOW = 10


def _method(run: Run) -> str:
    return NONE if run.config is None else str(run.config.get("selector", {}).get("method", NONE))


def _rounds(run: Run) -> int:
    if run.config is None:
        return run.rounds.size
    return 1 + max((record["round"] for record in run.records), default=-1)


def _rollouts(run: Run) -> int:
    if run.config is None and run.visits is not None:
        return int(run.visits.counts.sum())
    return int(np.nansum(column(run.records, "rollouts")))


def _ratio(run: Run) -> float | None:
    if run.config is None and run.visits is not None:
        visits = run.visits
        return float(np.mean((visits.successes > 0) & (visits.successes < visits.counts)))
    ratios = column(run.records, "effective_sample_ratio")
    return float(np.nanmean(ratios)) if np.any(np.isfinite(ratios)) else None


def accuracy_before(run: Run) -> float | None:
    """Returns the held-out accuracy before the first round, or None; it is known once the run has ended."""
    found = (run.summary or {}).get("test_accuracies")
    value = found.get("0") if isinstance(found, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def _accuracy(run: Run) -> str:
    """Returns the text of the held-out accuracy before the first round, if it is known, and at the last evaluation."""
    known = [record for record in run.records if record.get("test_accuracy") is not None]
    before = accuracy_before(run)
    if not known:
        return percent(before)
    last = known[-1]
    error = last.get("test_accuracy_error")
    words = percent(last["test_accuracy"]) + ("" if error is None else f" ± {percent(error)}")
    words = words if before is None else f"{percent(before)} → {words}"
    return words if last is run.records[-1] else f"{words} (after {last['round'] + 1} rounds)"


def summary(runs: Sequence[Run]) -> Markup:
    """Returns the table of the runs."""
    head = (
        *("run", "status", "method", "rounds", "rollouts", "held-out accuracy (± standard error)"),
        *("effective sample ratio", "last change"),
    )
    rows = []
    for index, run in enumerate(runs):
        state = tag("span", run.status, class_="badge open" if run.progress else "badge")
        name = tag("span", tag("i", class_=f"key {color(index)}"), run.name, class_="run")
        accuracy, when = (tag("span", words, class_="day") for words in (_accuracy(run), run.when))
        numbers = (f"{_rounds(run):,}", f"{_rollouts(run):,}", accuracy, percent(_ratio(run)))
        rows.append([name, state, _method(run), *numbers, when])
    return table(head, rows, caption="Runs and traces")


def options(runs: Sequence[Run]) -> list[Markup]:
    """Returns the table of the options that differ between the runs, and the table of all options."""
    with_config = [run for run in runs if run.config is not None]
    found = []
    head = ["option", *(run.name for run in with_config)]
    configs = [run.config for run in with_config]
    if len(with_config) > 1:
        different = _configs.differences(configs)
        rows = [[name, *map(_value, values)] for name, values in different.items()]
        words = "Options that differ between the runs" if rows else "The configs of the runs do not differ"
        found.append(table(head, rows, caption=words) if rows else tag("p", f"{words}."))
    changes = [
        f"{run.name}: {change['option']} was {_value(change['was'])}, and {_value(change['is'])} from round "
        f"{change['round']} on."
        for run in with_config
        for change in (run.config or {}).get("changes", ())
    ]
    found += [tag("p", words) for words in changes]
    if with_config:
        flat = [_configs.flat(config) for config in configs if config is not None]
        names = sorted({name for values in flat for name in values})
        rows = [[name, *(_value(values.get(name)) for values in flat)] for name in names]
        found.append(tag("details", tag("summary", "All options"), table(head, rows, caption="Options of the runs")))
    return found


def _value(value: Any) -> str:
    if value is None:
        return NONE
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _evaluations(run: Run, index: int, *, by_rollouts: bool) -> Series:
    """Returns the curve of held-out accuracy against rollouts or rounds."""
    values, errors = column(run.records, "test_accuracy"), column(run.records, "test_accuracy_error")
    costs = np.nancumsum(column(run.records, "rollouts")) if by_rollouts else column(run.records, "round") + 1
    is_known = np.isfinite(values)
    x, y, error = costs[is_known], values[is_known], np.nan_to_num(errors[is_known])
    before = accuracy_before(run)
    if before is not None:
        x, y, error = np.append(0.0, x), np.append(before, y), np.append(error[:1] if error.size else 0.0, error)
    return Series(run.name, color(index), x, y, error)


def _per_round(run: Run, index: int, values: np.ndarray) -> Series:
    """Returns the curve of a metric over rounds, with its moving average."""
    window = max(1, values.size // 15)
    average = moving_average(values, window) if window > 1 else None
    return Series(run.name, color(index), column(run.records, "round"), values, average=average)


def _lengths(run: Run) -> np.ndarray:
    tokens, rollouts = column(run.records, "completion_tokens"), column(run.records, "rollouts")
    return np.divide(tokens, rollouts, out=np.full(tokens.shape, np.nan), where=rollouts > 0)


def _seconds(run: Run) -> np.ndarray:
    """Returns the seconds of every round; NaN for rounds that are assumed to have compiled a program."""
    seconds = np.sum([column(run.records, name) for name in PHASES], axis=0)
    is_known = np.isfinite(seconds)
    if not is_known.any():
        return seconds
    return np.where(seconds > _SLOW * np.median(seconds[is_known]), np.nan, seconds)


def curves(runs: Sequence[Run]) -> Markup | None:
    """Returns the charts of the metrics, or None if no run has metrics."""
    shown = [(index, run) for index, run in enumerate(runs) if run.records]
    if not shown:
        return None
    accuracy = {"is_share": True, "note": "Share of completions that are correct; the band is ± one standard error."}
    of_test = lambda by_rollouts: [_evaluations(run, index, by_rollouts=by_rollouts) for index, run in shown]
    of_rounds = lambda values_of: [_per_round(run, index, values_of(run)) for index, run in shown]
    entry = lambda name: of_rounds(lambda run: column(run.records, name))
    note = "Values of every round, and their moving average."
    charts = [
        _charts.line_chart("Held-out accuracy by rollouts", of_test(True), x_label="rollouts", **accuracy),
        _charts.line_chart("Held-out accuracy by rounds", of_test(False), x_label="round", **accuracy),
        _charts.line_chart(
            "Effective sample ratio",
            entry("effective_sample_ratio"),
            x_label="round",
            is_share=True,
            note="Share of the completion groups that are informative, 0 < m < G.",
        ),
        _charts.line_chart("Reward", entry("reward"), x_label="round", note="Mean over the completions of a round."),
        _charts.line_chart("Loss", entry("loss"), x_label="round", note=note, from_zero=False),
        _charts.line_chart("Entropy", entry("entropy"), x_label="round", note="Nats per sampled token."),
        _charts.line_chart("Gradient norm", entry("grad_norm"), x_label="round", note="Before clipping."),
        _charts.line_chart("Tokens per completion", of_rounds(_lengths), x_label="round", note=note),
        _charts.line_chart(
            "Seconds per round",
            of_rounds(_seconds),
            x_label="round",
            note=f"Without rounds of more than {_SLOW} times the median, which compile programs.",
        ),
    ]
    return tag("div", [chart for chart in charts if chart is not None], class_="grid-of")


def phases(runs: Sequence[Run]) -> Markup | None:
    """Returns the table of the seconds of each phase of a round, or None if no run has them."""
    rows = []
    for index, run in enumerate(runs):
        seconds = [column(run.records, name) for name in PHASES]
        if not run.records or not all(np.any(np.isfinite(values)) for values in seconds):
            continue
        medians = [float(np.nanmedian(values)) for values in seconds]
        total = sum(medians) or 1.0
        parts = [
            tag("i", class_=f"s{place + 4}", style=f"width:{100 * value / total:.1f}%")
            for place, value in enumerate(medians)
        ]
        bar = tag("div", parts, class_="bar", aria_hidden="true")
        rows.append(
            [
                [tag("i", class_=f"key {color(index)}"), run.name],
                bar,
                *(number(value, 2) for value in (*medians, total)),
            ]
        )
    if not rows:
        return None
    words = [[tag("i", class_=f"key s{place + 4}"), name.removesuffix("_s")] for place, name in enumerate(PHASES)]
    head = ["run", "shares", *words, "all"]
    return table(head, rows, caption="Seconds per phase of a round, medians over rounds")
