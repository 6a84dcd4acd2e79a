"""Reliability diagrams with intervals, and confusion matrices of solve states."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dps_jax.report._html import NONE, Markup, percent, table, tag
from dps_jax.viz._calibration import wilson

_SIZE, _MARGIN = 300, 44
STATES = ("unsolved", "partially solved", "solved")


def _place(share: float) -> tuple[float, float]:
    """Returns the horizontal and the vertical position of a share in the drawing."""
    length = share * (_SIZE - _MARGIN - 24)
    return _MARGIN + length, _SIZE - _MARGIN - length


def diagram(name: str, color: str, found: Mapping[str, np.ndarray], note: str) -> Markup:
    """Returns the diagram of observed against predicted shares of informative visits, with 95 % intervals and a table.

    Args:
      name: name of the run.
      color: class of the style sheet.
      found: table as returned by `scores.reliability`.
      note: sentences under the title.
    """
    drawing = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        across, up = _place(value)
        right, top = _place(1)
        drawing.append(tag("line", class_="grid", x1=_MARGIN, x2=f"{right:.1f}", y1=f"{up:.1f}", y2=f"{up:.1f}"))
        drawing.append(
            tag("line", class_="grid", y1=f"{top:.1f}", y2=_SIZE - _MARGIN, x1=f"{across:.1f}", x2=f"{across:.1f}")
        )
        drawing.append(
            tag("text", f"{100 * value:.0f} %", x=_MARGIN - 6, y=f"{up:.1f}", dy="0.32em", text_anchor="end")
        )
        drawing.append(
            tag("text", f"{100 * value:.0f} %", x=f"{across:.1f}", y=_SIZE - _MARGIN + 16, text_anchor="middle")
        )
    (left, bottom), (right, top) = _place(0), _place(1)
    drawing.append(tag("line", class_="diagonal", x1=left, y1=bottom, x2=f"{right:.1f}", y2=f"{top:.1f}"))
    middle = (_MARGIN + right) / 2
    drawing.append(tag("text", "predicted", class_="label", x=f"{middle:.0f}", y=_SIZE - 6, text_anchor="middle"))
    low, high = wilson(found["share"], found["visits"])
    largest, rows = max(int(np.max(found["visits"])), 1), []
    for index in np.flatnonzero(found["visits"]):
        predicted, share, visits = (float(found[key][index]) for key in ("predicted", "share", "visits"))
        words = [
            percent(predicted),
            percent(share),
            f"{percent(low[index])} to {percent(high[index])}",
            f"{visits:,.0f}",
        ]
        rows.append(words)
        across, up = _place(predicted)[0], _place(share)[1]
        ends = [f"{_place(float(bound[index]))[1]:.1f}" for bound in (low, high)]
        title = tag("title", f"predicted {words[0]}, observed {words[1]} ({words[2]}), {words[3]} visits")
        drawing.append(tag("path", class_=f"curve {color}", d=f"M{across:.1f} {ends[0]}V{ends[1]}"))
        radius = 2.5 + 5.5 * np.sqrt(visits / largest)
        drawing.append(
            tag("circle", title, class_=f"dot {color}", cx=f"{across:.1f}", cy=f"{up:.1f}", r=f"{radius:.1f}")
        )
    label = f"Reliability diagram of {name}: predicted and observed shares of informative visits, as listed below."
    svg = tag("svg", drawing, viewBox=f"0 0 {_SIZE} {_SIZE}", class_="square", role="img", aria_label=label)
    head = ("predicted", "observed", "95 % interval", "visits")
    numbers = tag("details", tag("summary", "Numbers"), table(head, rows, caption=f"Reliability, {name}"))
    caption = tag("figcaption", tag("strong", name), " ", tag("span", note, class_="note"))
    return tag("figure", caption, svg, numbers)


def confusion(name: str, counts: np.ndarray, note: str) -> Markup:
    """Returns the table of visits by predicted (row) and observed (column) solve state, with cells shaded by share.

    Args:
      name: name of the run.
      counts: number of visits, int [3, 3].
      note: sentences under the title.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    rows = []
    for state, row, of_row in zip(STATES, counts.tolist(), shares.tolist(), strict=True):
        cells = [
            tag(
                "td",
                tag("b", percent(share, 0) if sum(row) else NONE),
                tag("br"),
                f"{count:,}",
                style=f"--share:{share:.3f}",
            )
            for count, share in zip(row, of_row, strict=True)
        ]
        rows.append(tag("tr", tag("th", state, scope="row"), cells))
    head = tag(
        "tr", tag("th", "predicted ↓ observed →", scope="col"), [tag("th", state, scope="col") for state in STATES]
    )
    hits = f"{percent(np.trace(counts) / counts.sum())} of {counts.sum():,} visits as predicted."
    caption = tag("figcaption", tag("strong", name), " ", tag("span", f"{hits} {note}", class_="note"))
    return tag(
        "figure",
        caption,
        tag("div", tag("table", tag("thead", head), tag("tbody", rows), class_="confusion"), class_="scroll"),
    )
