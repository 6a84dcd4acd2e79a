"""Charts as inline SVG; the script of the page shows their values under the pointer and by the arrow keys."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dps_jax.report._html import Markup, number, percent, tag

WIDTH, HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 40
MAX_POINTS = 300


class Series(NamedTuple):
    """A curve.

    Attributes:
      name: name in the legend.
      color: class of the style sheet: "s0" to "s7", or the name of a class of prompts.
      x: increasing positions, [T].
      y: values, [T]; NaN if there is none.
      error: standard errors, drawn as a band, [T]; None draws no band.
      average: moving average, [T], beside which `y` is drawn faintly; None draws only `y`.
    """

    name: str
    color: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None
    average: np.ndarray | None = None


class Axis(NamedTuple):
    """A linear axis.

    Attributes:
      low: smallest value.
      high: largest value.
      start: position of `low`, in units of the drawing.
      stop: position of `high`, in units of the drawing.
    """

    low: float
    high: float
    start: float
    stop: float

    def place(self, values: Any) -> np.ndarray:
        """Returns the positions of values, in units of the drawing."""
        share = (np.asarray(values, np.float64) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns evenly spaced round numbers from `low` to `high`, roughly as many as `about`."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def thinned(series: Series) -> Series:
    """Returns a curve of at most `MAX_POINTS` points, each the mean of neighbouring points."""
    size = series.x.size
    if size <= MAX_POINTS:
        return series
    bins = np.arange(size) * MAX_POINTS // size

    def mean(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        is_known = np.isfinite(values)
        sums, known = np.bincount(bins, np.where(is_known, values, 0.0)), np.bincount(bins, is_known)
        return np.divide(sums, known, out=np.full(MAX_POINTS, np.nan), where=known > 0)

    x, y = mean(series.x), mean(series.y)
    assert x is not None
    assert y is not None
    return series._replace(x=x, y=y, error=mean(series.error), average=mean(series.average))


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Returns the SVG path of a line through points, with gaps at NaNs."""
    words, is_open = [], False
    for one, other in zip(x.tolist(), y.tolist(), strict=True):
        if not math.isfinite(other):
            is_open = False
            continue
        words.append(f"{'L' if is_open else 'M'}{one:.1f} {other:.1f}")
        is_open = True
    return "".join(words)


def _area(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Returns the SVG path of the area between two lines, without points at which one of them is NaN."""
    is_known = np.isfinite(low) & np.isfinite(high)
    x, low, high = x[is_known], low[is_known], high[is_known]
    if not x.size:
        return ""
    return _path(np.append(x, x[::-1]), np.append(high, low[::-1])) + "Z"


def _axes(x: Axis, y: Axis, x_label: str, y_format: Callable[[float], str]) -> list[Markup]:
    found = []
    for value in ticks(y.low, y.high):
        place = f"{float(y.place(value)):.1f}"
        found.append(tag("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=place, y2=place))
        found.append(tag("text", y_format(value), x=_LEFT - 6, y=place, dy="0.32em", text_anchor="end"))
    for value in ticks(x.low, x.high):
        found.append(
            tag("text", _tick(value), x=f"{float(x.place(value)):.1f}", y=HEIGHT - _BOTTOM + 16, text_anchor="middle")
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    found.append(tag("text", x_label, class_="label", x=middle, y=HEIGHT - 5, text_anchor="middle"))
    return found


def _range(values: Sequence[np.ndarray], *, from_zero: bool) -> tuple[float, float]:
    """Returns the lower and the upper end of an axis for values, with some room; the ends always differ."""
    everything = np.concatenate([part[np.isfinite(part)] for part in values])
    low, high = float(everything.min()), float(everything.max())
    if from_zero:
        low = min(low, 0.0)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0 and from_zero else low - room), high + room


def _extent(values: np.ndarray) -> np.ndarray:
    """Returns the smallest and the largest value to show, [2], without outliers such as rounds that compile."""
    values = values[np.isfinite(values)]
    usual = np.quantile(values, [0.03, 0.97])
    room = 2 * (usual[1] - usual[0])
    is_usual = (room == 0) | ((values >= usual[0] - room) & (values <= usual[1] + room))
    return np.array([values[is_usual].min(), values[is_usual].max()])


def _readings(curves: Sequence[Series], x: Axis, *, is_share: bool) -> str:
    """Returns the values that the script shows, as JSON: name, colour, positions and values of each curve."""
    show = percent if is_share else lambda value: number(value, 4)
    rows = []
    for curve in curves:
        is_known = np.isfinite(curve.y)
        values = [show(value) for value in curve.y[is_known].tolist()]
        if curve.error is not None:
            errors = [show(value) for value in curve.error[is_known].tolist()]
            values = [f"{value} ± {error}" for value, error in zip(values, errors, strict=True)]
        at = [float(f"{value:.6g}") for value in curve.x[is_known].tolist()]
        rows.append({"name": curve.name, "color": curve.color, "x": at, "y": values})
    return json.dumps({"axis": list(map(float, x)), "series": rows}, ensure_ascii=False, separators=(",", ":"))


def legend(curves: Sequence[Series]) -> Markup:
    """Returns the legend of curves: their colours and names."""
    return tag("ul", [tag("li", tag("i", class_=f"key {c.color}"), c.name) for c in curves], class_="legend")


def _figure(
    title: str, note: str, drawing: list[Markup], readings: str, x_name: str, curves: Sequence[Series]
) -> Markup:
    names = ", ".join(curve.name for curve in curves)
    svg = tag(
        "svg",
        drawing,
        tag("g", class_="cursor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="plot",
        role="img",
        tabindex="0",
        aria_label=f"{title}: {names}. {note} The arrow keys read values.",
        data_readings=readings,
        data_x=x_name,
    )
    caption = tag("figcaption", tag("strong", title), " ", tag("span", note, class_="note"))
    return tag("figure", caption, svg, legend(curves), tag("div", class_="tip", aria_live="polite"))


def line_chart(
    title: str,
    curves: Sequence[Series],
    *,
    x_label: str,
    note: str = "",
    is_share: bool = False,
    from_zero: bool = True,
) -> Markup | None:
    """Returns a chart of curves; None if no curve has a point.

    Args:
      title: title of the chart.
      curves: curves to draw.
      x_label: label of the horizontal axis, which also precedes the values that the script shows.
      note: sentence under the title.
      is_share: whether values are shares, which are shown in percent.
      from_zero: whether the vertical axis includes 0.
    """
    curves = [thinned(curve) for curve in curves if np.any(np.isfinite(curve.y))]
    if not curves:
        return None
    ranges = [_extent(c.y if c.error is None else c.y + np.nan_to_num(c.error)) for c in curves]
    low, high = _range(ranges, from_zero=from_zero)
    y = Axis(low, min(high, 1.02) if is_share and high <= 1.1 else high, HEIGHT - _BOTTOM, _TOP)
    first, last = min(float(curve.x.min()) for curve in curves), max(float(curve.x.max()) for curve in curves)
    x = Axis(first, last + (0.02 * (last - first) or 1.0), _LEFT, WIDTH - _RIGHT)
    drawing = _axes(x, y, x_label, percent_tick if is_share else _tick)
    for curve in curves:
        places, heights = x.place(curve.x), y.place(np.clip(curve.y, y.low, y.high))
        if curve.error is not None:
            below, above = y.place(curve.y - curve.error), y.place(curve.y + curve.error)
            drawing.append(tag("path", class_=f"band {curve.color}", d=_area(places, below, above)))
        is_faint = curve.average is not None
        drawing.append(
            tag("path", class_=f"curve {curve.color}{' faint' if is_faint else ''}", d=_path(places, heights))
        )
        if curve.average is not None:
            drawing.append(
                tag(
                    "path",
                    class_=f"curve {curve.color}",
                    d=_path(places, y.place(np.clip(curve.average, y.low, y.high))),
                )
            )
        if np.isfinite(curve.y).sum() <= 40 and not is_faint:
            dots = zip(places.tolist(), heights.tolist(), strict=True)
            drawing += [
                tag("circle", class_=f"dot {curve.color}", cx=f"{one:.1f}", cy=f"{other:.1f}", r=3)
                for one, other in dots
                if math.isfinite(other)
            ]
    return _figure(title, note, drawing, _readings(curves, x, is_share=is_share), x_label, curves)


def percent_tick(value: float) -> str:
    """Returns a share as a percentage with at most four digits, for a tick."""
    return f"{100 * value:.4g} %"


def stacked_chart(title: str, curves: Sequence[Series], *, x_label: str, note: str = "") -> Markup:
    """Returns a chart of stacked counts, all with the same `x`; the first one is at the bottom."""
    curves = [thinned(curve) for curve in curves]
    tops = np.cumsum([curve.y for curve in curves], axis=0)
    x_values = curves[0].x
    last = float(x_values[-1]) if x_values.size > 1 else float(x_values[0]) + 1
    x = Axis(float(x_values[0]), last, _LEFT, WIDTH - _RIGHT)
    y = Axis(0.0, max(float(tops[-1].max()), 1.0), HEIGHT - _BOTTOM, _TOP)
    drawing = _axes(x, y, x_label, _tick)
    places = x.place(x_values)
    for index, curve in enumerate(curves):
        below = y.place(tops[index - 1] if index else np.zeros(x_values.size))
        drawing.append(tag("path", class_=f"layer {curve.color}", d=_area(places, below, y.place(tops[index]))))
    return _figure(title, note, drawing, _readings(curves, x, is_share=False), x_label, curves)
