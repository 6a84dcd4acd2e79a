"""The page of the report, from runs and traces; it loads no other files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks, _files, traces
from dps_jax.report import _classes, _overview, _predictions, _prompts, _reliability, _texts
from dps_jax.report._html import Markup, number, table, tag
from dps_jax.report._predictions import Predictions
from dps_jax.report._runs import Run, read_run, with_own_names
from dps_jax.report._script import JS
from dps_jax.report._style import CSS, color
from dps_jax.report._texts import Texts

Progress = Callable[[str], None]


# Marks a page as a report, which may be replaced.
GENERATOR = "dps_jax.report"


def write(
    runs: Sequence[os.PathLike[str] | str],
    out: os.PathLike[str] | str,
    *,
    columns: traces.ColumnNames | None = None,
    threshold: float | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the report on some runs and traces to an HTML file, atomically, and returns the path of the file.

    Args:
      runs: see `page`.
      out: file to write; an existing file is replaced.
      columns: see `page`.
      threshold: see `page`.
      progress: see `page`.

    Raises:
      ValueError: see `page`.
      OSError: if a file cannot be read or written.

    Example:
      >>> import numpy as np
      >>> from dps_jax import report, traces
      >>> learners = traces.simulate_learners(np.random.default_rng(0), num_prompts=40, num_rounds=10, batch_size=8)
      >>> traces.write_trace("log.npz", learners.trace)
      >>> report.write(["log.npz"], "report.html").name
      'report.html'
    """
    text = page(runs, columns=columns, threshold=threshold, progress=progress)
    _files.write_atomically(out, text)
    return Path(out)


def page(
    runs: Sequence[os.PathLike[str] | str],
    *,
    columns: traces.ColumnNames | None = None,
    threshold: float | None = None,
    progress: Progress | None = None,
) -> str:
    """Returns a report on some runs and traces as a self-contained HTML page, which loads no other files.

    The page has the results and curves of runs, the differences between their configs, how well the method of each run
    predicted (by a replay of its trace), and which prompts are stuck, mastered, forgotten or informative now. The same
    files, with the same times of change, give the same page, except that the page of an unfinished run states whether
    its process is running.

    Args:
      runs: folders of runs of experiments/train.py or experiments/train_llm.py, which may be unfinished; or traces,
        files or folders that `traces.read_trace` reads.
      columns: names of the columns of traces, where they differ from the names that trainers use.
      threshold: smallest reward that counts as correct, for traces with a row per completion; None requires rewards of
        0 or 1.
      progress: function that is called with a line of text before every step; None reports nothing.

    Raises:
      ValueError: for no run, or for a file that is missing, damaged or does not fit the others; the message names the
        file.
      OSError: if a file cannot be read.

    Example:
      >>> import numpy as np
      >>> from dps_jax import report, traces
      >>> learners = traces.simulate_learners(np.random.default_rng(0), num_prompts=40, num_rounds=10, batch_size=8)
      >>> traces.write_trace("log.npz", learners.trace)
      >>> text = report.page(["log.npz"])
      >>> "Stuck" in text, "http" in text
      (True, False)
    """
    say = (lambda message: None) if progress is None else progress
    if isinstance(runs, (str, os.PathLike)):
        raise ValueError(f"runs: expected a list of folders and files, got {os.fspath(runs)!r}; put it into a list")
    for run in runs:
        _checks.check_path("runs", run)
    paths = [Path(run) for run in runs]
    if not paths:
        raise ValueError("runs: expected at least one folder of a run or trace, got none; name one")
    found = []
    for path in paths:
        say(f"reading {path}")
        found.append(read_run(path, columns, threshold))
    found = with_own_names(found)
    parts = [_part_of(run, say) for run in found]
    return _document(found, parts)


class _Part(NamedTuple):
    """The results that the page shows of one run.

    Attributes:
      histories: visits sorted by prompt; None without a trace.
      predictions: predictions of the run's method; None if there are none.
      problem: reason why there are no predictions, as a sentence, or "".
      rows: positions of the listed prompts in `histories.ids`, by class.
      texts: texts of the listed prompts.
    """

    histories: _classes.Histories | None = None
    predictions: Predictions | None = None
    problem: str = "There is no trace yet; it is written with the checkpoints."
    rows: dict[int, np.ndarray] = {}  # noqa: RUF012
    texts: Texts = Texts({})


def _part_of(run: Run, say: Progress) -> _Part:
    visits = run.visits
    if visits is None:
        return _Part()
    say(f"{run.name}: replaying {visits.ids.size:,} visits of {visits.num_prompts:,} prompts")
    predictions, problem = None, ""
    try:
        predictions = _predictions.predict(run)
    except (ValueError, OSError) as error:
        problem = f"The method could not be replayed: {error}"
    histories = _classes.histories(visits)
    rows = _prompts.listed(run, histories, predictions)
    ids = histories.ids[np.concatenate(list(rows.values()))]
    say(f"{run.name}: reading the texts of {ids.size} prompts")
    return _Part(histories, predictions, problem, rows, _texts.texts_of(run, np.sort(ids)))


def _document(runs: Sequence[Run], parts: Sequence[_Part]) -> str:
    names = ", ".join(run.name for run in runs)
    sections: dict[str, list[Any]] = {
        "Overview": [_overview.summary(runs), _notes(runs), _overview.options(runs)],
        "Curves": [_overview.curves(runs), _overview.phases(runs)],
        "Predictions": _predicted(runs, parts),
        "Prompts": [
            tag("p", _prompts.EXPLANATION, class_="soft") if any(part.histories for part in parts) else None,
            *(
                _prompts.section(run, place, part.histories, part.rows, part.texts, part.predictions)
                for place, (run, part) in enumerate(zip(runs, parts, strict=True))
                if part.histories is not None
            ),
        ],
    }
    shown = {name: content for name, content in sections.items() if any(content)}
    links = [tag("a", name, href=f"#{name.lower()}") for name in shown]
    body = [tag("section", tag("h2", name), content, id=name.lower()) for name, content in shown.items()]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=GENERATOR),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"dps_jax: {names}"),
        tag("style", Markup(CSS)),
    )
    footer = "Made by python -m dps_jax.report. The page is one file, which loads no others."
    content = tag(
        "body",
        tag("header", tag("h1", names), tag("nav", links, aria_label="Parts of the page")),
        tag("main", body),
        tag("footer", footer),
        tag("script", Markup(JS)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, content, lang='en')}\n"


def _notes(runs: Sequence[Run]) -> list[Markup]:
    """Returns notes on runs that have not ended, and on traces that end before the metrics."""
    found = []
    for run in runs:
        if run.progress:
            words = f"{run.name} is unfinished: {run.progress}"
            if _overview.accuracy_before(run) is None:
                words += " Its held-out accuracy before the first round is written when it ends."
            found.append(tag("p", words, class_="warning"))
        if run.records and run.rounds.size and run.rounds[-1] < run.records[-1]["round"]:
            words = (
                f"{run.name}: the trace ends with round {run.rounds[-1]}, the metrics with {run.records[-1]['round']}."
            )
            found.append(tag("p", words, class_="warning"))
    return found


def _predicted(runs: Sequence[Run], parts: Sequence[_Part]) -> list[Any]:
    """Returns scores, reliability and confusion of the predictions of all runs."""
    rows, diagrams, tables, problems = [], [], [], []
    head: list[str] = []
    for index, (run, part) in enumerate(zip(runs, parts, strict=True)):
        found = part.predictions
        if part.problem:
            problems.append(tag("p", f"{run.name}: {part.problem}", class_="warning"))
        if found is not None:
            scores = found.scores()
            head = ["run", "predictor", "visits", *scores]
            key = tag("i", class_=f"key {color(index)}")
            rows.append([[key, run.name], found.predictor, f"{found.counts.size:,}", *map(number, scores.values())])
            note = " ".join([f"Predictions of {found.predictor}.", *found.notes])
            diagrams.append(_reliability.diagram(run.name, color(index), found.reliability(), note))
        logged = [record["confusion"] for record in run.records if record.get("confusion")]
        counts = np.sum(logged, axis=0) if logged else np.zeros((3, 3), int)
        if counts.sum():
            tables.append(_reliability.confusion(run.name, counts, "Logged by the run."))
        elif found is not None:
            words = f"By the replay of {found.predictor}."
            tables.append(_reliability.confusion(run.name, found.confusion(), words))
    words = (
        "Every visit is predicted from the visits of earlier rounds, before the predictor observes its outcome. "
        "Reliability: visits in bins of predicted P(0 < m < G) against the share of them that were informative, with "
        "Wilson's 95 % intervals; well calibrated predictions are on the diagonal up to chance. The distance by chance "
        "is the distance from the diagonal that perfectly calibrated predictions would have by sampling noise alone."
    )
    grid = lambda figures: tag("div", figures, class_="grid-of narrow") if figures else None
    if not rows and not tables:
        return problems
    return [
        tag("p", words, class_="soft"),
        problems,
        table(head, rows, caption="Scores of the predictions") if rows else None,
        tag("h3", "Calibration of P(0 < m < G)") if diagrams else None,
        grid(diagrams),
        tag("h3", "Predicted and observed solve states"),
        grid(tables),
    ]
