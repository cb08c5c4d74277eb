"""Charts as geometry: positions in a drawing of fixed size, which a template writes as SVG.

Colors are left to the page's style sheet, which knows whether it is dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from math import isfinite, sqrt
from typing import ClassVar

from classify.report.scales import Scale, spread

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 466, 14, 246
_LEAST_RADIUS, _GREATEST_RADIUS, _ROW_RADIUS = 3.0, 12.0, 4.0
_MOST_DOTS = 40
_N_COLORS = 8
_ROW_LEFT, _ROW_HEIGHT, _AT_LABEL, _AT_VALUE = 14, 44, 16, 27
_APART = 3
_BELOW_AXIS = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Series:
    """A line: n positions, n values, and for a band n lower and n upper bounds.

    Bounds that are NaN leave a gap in the band. ``is_reference`` draws the line dashed, without
    dots: something to compare the others with.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_reference: bool = False


@dataclass(frozen=True)
class RowSeries:
    """A value for each row of a chart, NaN for none, and the ends of its whisker, NaN as well."""

    label: str
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Dot:
    """A marked point, and what is said of it when it is pointed at."""

    x: float
    y: float
    radius: float
    says: str


@dataclass(frozen=True)
class Mark:
    """What is drawn of one series: points of its lines and of its bands as SVG has them."""

    label: str
    css: str
    lines: tuple[str, ...]
    bands: tuple[str, ...]
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """A drawing, 480 units wide.

    Attributes
    ----------
    title, x_label, y_label : what is written; the title also tells what is seen to who cannot see
    x_ticks, y_ticks : positions that are marked, and what is written there
    marks : the series, in the order of the legend
    rows : positions of rows, and what is written at the left end of each
    """

    kind: ClassVar[str] = "chart"
    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT
    rows: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Axes:
    """What is written at both axes; ``y_range`` fixes the vertical one."""

    title: str
    x_label: str
    y_label: str
    is_log_x: bool = False
    y_range: tuple[float, float] | None = None


def line_chart(axes: Axes, series: Sequence[Series]) -> Chart:
    """Draw one line or more; each has a point at least."""
    xs = list(chain.from_iterable(one.x for one in series))
    ys = list(
        filter(isfinite, chain.from_iterable([*one.y, *one.low, *one.high] for one in series))
    )
    low, high = (min(xs), max(xs)) if axes.is_log_x else spread(xs, margin=0.02)
    horizontal = Scale(low, high, _LEFT, _RIGHT, axes.is_log_x)
    vertical = Scale(*(axes.y_range or spread(ys)), _BOTTOM, _TOP)
    marks = tuple(
        _mark(one, number, horizontal, vertical) for number, one in enumerate(series, start=1)
    )
    return _chart(axes, horizontal, vertical, marks)


def row_chart(title: str, x_label: str, rows: Sequence[str], series: Sequence[RowSeries]) -> Chart:
    """Draw a row for each name, with the values that each series has for it, and their whiskers.

    A row without any value says so.
    """
    values = chain.from_iterable([*one.values, *one.low, *one.high] for one in series)
    known = list(filter(isfinite, values)) or [0.0, 1.0]
    horizontal = Scale(*spread(known), _ROW_LEFT, _RIGHT)
    bottom = _TOP + _ROW_HEIGHT * len(rows)
    marks = tuple(
        _row_mark(one, number, horizontal, rows) for number, one in enumerate(series, start=1)
    )
    has_value = [any(isfinite(one.values[row]) for one in series) for row in range(len(rows))]
    names = tuple(
        (_TOP + _ROW_HEIGHT * row + _AT_LABEL, name if is_known else f"{name}: none")
        for row, (name, is_known) in enumerate(zip(rows, has_value, strict=True))
    )
    chart = Chart(title, x_label, "", horizontal.ticks(), (), marks, rows=names)
    return replace(chart, left=_ROW_LEFT, bottom=bottom, height=bottom + _BELOW_AXIS)


def reliability_chart(
    confidences: Sequence[float], accuracies: Sequence[float], counts: Sequence[int]
) -> Chart:
    """Draw how often predictions of a confidence are right; a bin's area shows its rows."""
    axes = Axes("Reliability", "Confidence", "Share that is right")
    horizontal, vertical = Scale(0, 1, _LEFT, _RIGHT), Scale(0, 1, _BOTTOM, _TOP)
    most = max(counts, default=1)
    dots = tuple(
        Dot(
            horizontal(confidence),
            vertical(accuracy),
            round(max(_LEAST_RADIUS, _GREATEST_RADIUS * sqrt(n / most)), 1),
            f"confidence {confidence:.3f}, right {accuracy:.3f}, {n:,} rows",
        )
        for confidence, accuracy, n in zip(confidences, accuracies, counts, strict=True)
    )
    diagonal = Series("as sure as right", (0, 1), (0, 1), is_reference=True)
    bins = Mark("bins of equal size", "series-1", (), (), dots)
    return _chart(axes, horizontal, vertical, (bins, _mark(diagonal, 2, horizontal, vertical)))


def _chart(axes: Axes, horizontal: Scale, vertical: Scale, marks: tuple[Mark, ...]) -> Chart:
    """Put a chart together."""
    return Chart(
        axes.title, axes.x_label, axes.y_label, horizontal.ticks(), vertical.ticks(), marks
    )


def _mark(series: Series, number: int, horizontal: Scale, vertical: Scale) -> Mark:
    """Return what is drawn of a series."""
    points = [(horizontal(x), vertical(y)) for x, y in zip(series.x, series.y, strict=True)]
    has_dots = not series.is_reference and len(points) <= _MOST_DOTS
    said = zip(points, series.x, series.y, strict=True) if has_dots else ()
    return Mark(
        label=series.label,
        css="reference" if series.is_reference else _color(number),
        lines=(_joined(points),),
        bands=tuple(_bands(series, horizontal, vertical)),
        dots=tuple(
            Dot(*at, _LEAST_RADIUS, f"{series.label}: {x:,.6g}, {y:.4g}") for at, x, y in said
        ),
    )


def _bands(series: Series, horizontal: Scale, vertical: Scale) -> Iterator[str]:
    """Yield the outline of each part of a series' band that has no gap."""
    bounds = zip(series.x, series.low, series.high, strict=False)
    for is_known, part in groupby(bounds, key=lambda one: isfinite(one[1]) and isfinite(one[2])):
        if is_known:
            xs, lows, highs = zip(*part, strict=True)
            upper = [(horizontal(x), vertical(y)) for x, y in zip(xs, highs, strict=True)]
            lower = [(horizontal(x), vertical(y)) for x, y in zip(xs, lows, strict=True)]
            yield _joined([*upper, *reversed(lower)])


def _row_mark(series: RowSeries, number: int, horizontal: Scale, rows: Sequence[str]) -> Mark:
    """Return the dots and whiskers of a series; a series stands a little below the one before."""
    lines, dots = [], []
    for row, (value, low, high) in enumerate(
        zip(series.values, series.low, series.high, strict=True)
    ):
        y = _TOP + _ROW_HEIGHT * row + _AT_VALUE + _APART * (number - 1)
        if isfinite(low) and isfinite(high):
            lines.append(_joined([(horizontal(low), y), (horizontal(high), y)]))
        if isfinite(value):
            says = f"{rows[row]}, {series.label}: {value:.4g}"
            dots.append(Dot(horizontal(value), y, _ROW_RADIUS, says))
    return Mark(series.label, _color(number), tuple(lines), (), tuple(dots))


def _color(number: int) -> str:
    """Return the class of a series in the style sheet, by its number from 1."""
    return f"series-{(number - 1) % _N_COLORS + 1}"


def _joined(points: Sequence[tuple[float, float]]) -> str:
    """Return points as SVG's attribute has them."""
    return " ".join(f"{x:g},{y:g}" for x, y in points)
