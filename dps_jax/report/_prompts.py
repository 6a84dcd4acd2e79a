"""The section "Prompts": the number of prompts in each class over rounds, and tables with texts and outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np

from dps_jax.report import _charts, _classes
from dps_jax.report._classes import Histories
from dps_jax.report._html import NONE, Markup, percent, shortened, tag
from dps_jax.report._predictions import Predictions
from dps_jax.report._runs import Run
from dps_jax.report._texts import Texts
from dps_jax.traces.replay import Visits

MAX_ROWS = 30
MAX_CHARACTERS = 400
MAX_STRIP = 24
EXPLANATION = (
    f"Outcomes are the last {MAX_STRIP} visits of a prompt: the height of a bar is the share of completions that were "
    "correct. Correct is that share over all visits. P(informative) is predicted for the next visit."
)
# Classes that have tables, in the order of the page.
_LISTED = (_classes.STUCK, _classes.FORGOTTEN, _classes.INFORMATIVE, _classes.MASTERED)
_ORDERS = {
    _classes.STUCK: "the most visited",
    _classes.FORGOTTEN: "the last visited",
    _classes.INFORMATIVE: "the most probably informative",
    _classes.MASTERED: "the last visited",
}
# If a text has at least so many lines of one length before its last line, these lines are a raster.
_RASTER_LINES = 6
# Distance and width of the bars of a strip, and height of the strip.
_STEP, _BAR, _HEIGHT = 6, 5, 18


def listed(run: Run, found: Histories, predictions: Predictions | None) -> dict[int, np.ndarray]:
    """Returns the prompts to list in each class, as positions in `found.ids`, at most MAX_ROWS per class."""
    visits = run.visits
    assert visits is not None
    ends = found.starts[1:] - 1
    classes, num_visits = found.classes[ends], np.diff(found.starts)
    last_round = visits.rounds[found.order[ends]]
    keys: dict[int, Any] = dict.fromkeys(_LISTED, last_round)
    keys[_classes.STUCK] = num_visits
    if predictions is not None:
        keys[_classes.INFORMATIVE] = predictions.next_informative[found.ids]
    return {
        index: rows[np.lexsort((rows, -keys[index][rows]))][:MAX_ROWS]
        for index in _LISTED
        for rows in [np.flatnonzero(classes == index)]
    }


def strip(rounds: np.ndarray, successes: np.ndarray, counts: np.ndarray) -> Markup:
    """Returns a bar for each of the last visits of a prompt; its height is the share of correct completions.

    A visit without correct completions has a bar of minimum height.

    Args:
      rounds: round of each visit in the trace, [R].
      successes: number of correct completions of each visit, [R].
      counts: number of completions of each visit, [R].
    """
    cut = max(0, rounds.size - MAX_STRIP)
    paths = {"none": "", "hit": "", "all": ""}
    words = []
    for place, row in enumerate(range(cut, rounds.size)):
        hits, size = int(successes[row]), int(counts[row])
        kind = "all" if hits == size else "hit" if hits else "none"
        height = max(2.0, round(_HEIGHT * hits / size, 1))
        paths[kind] += f"M{place * _STEP} {_HEIGHT}v-{height:g}h{_BAR}v{height:g}z"
        words.append(f"{rounds[row]}: {hits}/{size}")
    width = _STEP * (rounds.size - cut)
    text = f"{'last ' if cut else ''}{rounds.size - cut} visits, round: correct. {', '.join(words)}"
    parts = [tag("path", class_="track", d=f"M0 0h{width - 1}v{_HEIGHT}H0z")]
    parts += [tag("path", class_=name, d=path) for name, path in paths.items() if path]
    box = {"viewBox": f"0 0 {width} {_HEIGHT}", "width": width, "height": _HEIGHT}
    return tag("svg", tag("title", text), parts, class_="strip", role="img", **box)


def _row(run: Run, found: Histories, row: int, texts: Texts, predictions: Predictions | None) -> Markup:
    """Returns the table row of a prompt; the attribute data-value of a cell has the number to sort by."""
    visits = run.visits
    assert visits is not None
    index = int(found.ids[row])
    of_prompt = found.order[found.starts[row] : found.starts[row + 1]]
    successes, counts = visits.successes[of_prompt], visits.counts[of_prompt]
    rounds = run.rounds[visits.rounds[of_prompt]]
    share = successes.sum() / counts.sum()
    cells = [tag("td", visits.prompt_ids[index], data_value=int(visits.prompt_ids[index]))]
    if texts.of:
        cells.append(tag("td", _text(texts.of.get(index, NONE)), class_="prompt"))
    cells.append(tag("td", strip(rounds, successes, counts)))
    if run.groups is not None:
        cells.append(tag("td", group_name(run, texts, index)))
    if texts.broken is not None:
        cells.append(tag("td", "wrong" if index in texts.broken else "right"))
    cells += [
        tag("td", rounds.size),
        tag("td", int(rounds[-1])),
        tag("td", f"{successes[-1]} of {counts[-1]}", data_value=f"{successes[-1] / counts[-1]:.4f}"),
        tag("td", percent(share, 0), data_value=f"{share:.4f}"),
    ]
    if predictions is not None:
        chance = float(predictions.next_informative[index])
        cells.append(tag("td", percent(chance, 0), data_value=f"{chance:.4f}"))
    return tag("tr", cells)


def _text(text: str) -> list[Markup | str]:
    """Returns the text of a prompt, shortened if it is long; a raster is set in small type above the question."""
    raster, _, question = text.rpartition("\n")
    if raster.count("\n") >= _RASTER_LINES and len(set(map(len, raster.splitlines()))) == 1:
        return [tag("pre", raster), question]
    return [shortened(text, MAX_CHARACTERS)]


def group_name(run: Run, texts: Texts, index: int) -> str:
    """Returns the name of the prompt group of a prompt, or its number if the groups have no names."""
    assert run.groups is not None
    group = int(run.groups[index])
    return texts.group_names[group] if 0 <= group < len(texts.group_names) else f"group {group}"


def _head(run: Run, texts: Texts, predictions: Predictions | None) -> Markup:
    names = ["id"]
    names += ["prompt", "outcomes"] if texts.of else ["outcomes"]
    names += [] if run.groups is None else ["group"]
    names += [] if texts.broken is None else ["reference"]
    names += ["visits", "last round", "last outcome", "correct"]
    names += [] if predictions is None else ["P(informative)"]
    return tag("tr", [tag("th", name, scope="col") for name in names])


def _class_table(
    run: Run, found: Histories, index: int, rows: np.ndarray, total: int, texts: Texts, predictions: Predictions | None
) -> Markup:
    """Returns the table of the prompts in a class, in an element that the reader can open and close."""
    name = _classes.NAMES[index]
    words = f"{name.capitalize()}: {total:,} {'prompt' if total == 1 else 'prompts'}"
    if texts.broken is not None and index == _classes.STUCK and total:
        is_stuck = found.classes[found.starts[1:] - 1] == index
        num_broken = sum(int(prompt) in texts.broken for prompt in found.ids[is_stuck])
        words += f", {num_broken:,} of them with a wrong reference"
    if total > rows.size:
        words += f"; {_ORDERS[index]} {rows.size} are listed"
    key, shown = tag("i", class_=f"key {name}"), tag("span", class_="shown soft")
    head = tag("summary", key, words, shown)
    if not total:
        return tag("details", head, tag("p", _classes.DEFINITIONS[name]), class_="class")
    body = [_row(run, found, int(row), texts, predictions) for row in rows]
    of_class = tag("table", tag("thead", _head(run, texts, predictions)), tag("tbody", body), class_="sortable")
    box = tag("div", of_class, class_="scroll", tabindex="0", role="region", aria_label=words)
    return tag("details", head, box, class_="class", open=index != _classes.MASTERED)


def _over_rounds(run: Run, visits: Visits, counts: np.ndarray) -> Markup:
    """Returns the chart of the number of prompts in each class after each round."""
    layers = [
        _charts.Series(name, name, run.rounds.astype(np.float64), counts[:, index].astype(np.float64))
        for index, name in enumerate(_classes.NAMES)
        if counts[:, index].any()
    ]
    note = f"Of {visits.num_prompts:,} prompts, after every round."
    return _charts.stacked_chart(f"Classes of prompts, {run.name}", layers, x_label="round", note=note)


def _definitions(totals: np.ndarray) -> Markup:
    rows = []
    for index, name in enumerate(_classes.NAMES):
        if name == "unvisited" and not totals[index]:
            continue
        rows.append(tag("dt", tag("i", class_=f"key {name}"), f"{name}: {totals[index]:,}"))
        rows.append(tag("dd", _classes.DEFINITIONS[name]))
    return tag("dl", rows, class_="classes")


def section(
    run: Run, place: int, found: Histories, rows: dict[int, np.ndarray], texts: Texts, predictions: Predictions | None
) -> Markup:
    """Returns the part of the page about the prompts of a run.

    Args:
      run: run with visits.
      place: position of the run on the page.
      found: visits of the run, sorted by prompt.
      rows: result of `listed`.
      texts: texts of the listed prompts.
      predictions: predictions of the run's method, or None.
    """
    visits = run.visits
    assert visits is not None
    totals = np.bincount(found.of_prompts(visits.num_prompts), minlength=len(_classes.NAMES))
    counts = _classes.counts_over_rounds(visits, found)
    tables = [_class_table(run, found, index, rows[index], int(totals[index]), texts, predictions) for index in _LISTED]
    part = f"prompts-{place}"
    label = f"Filter the prompts of {run.name} by text, id or group"
    words = {"placeholder": "Filter by text, id or group", "aria_label": label}
    entry = tag("input", type="search", data_filters=part, hidden=True, **words)
    return tag(
        "section",
        tag("h3", run.name),
        tag("p", texts.reason, class_="soft") if texts.reason else None,
        tag("div", _over_rounds(run, visits, counts), _definitions(totals), class_="grid-of"),
        tag("p", entry),
        tables,
        id=part,
    )
