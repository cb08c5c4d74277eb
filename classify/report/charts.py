"""Charts as geometry: positions in a drawing of fixed size, which a template writes as SVG.

Colors are left to the page's style sheet, which knows whether it is dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import sqrt
from typing import ClassVar

from classify.report.scales import Scale, spread

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 466, 14, 246
_LEAST_RADIUS, _GREATEST_RADIUS = 3.0, 12.0
_MOST_DOTS = 40


@dataclass(frozen=True)
class Series:
    """A line: n positions, n values, and for a band n lower and n upper bounds.

    ``is_reference`` draws it dashed, without dots: something to compare the others with.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_reference: bool = False


@dataclass(frozen=True)
class Dot:
    """A marked point, and what is said of it when it is pointed at."""

    x: float
    y: float
    radius: float
    says: str


@dataclass(frozen=True)
class Mark:
    """What is drawn of one series: points of its line and of its band as SVG has them."""

    label: str
    css: str
    line: str
    band: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """A drawing of 480 by 300 units.

    Attributes
    ----------
    title, x_label, y_label : what is written; the title also tells what is seen to who cannot see
    x_ticks, y_ticks : positions that are marked, and what is written there
    marks : the series, in the order of the legend
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
    ys = list(chain.from_iterable([*one.y, *one.low, *one.high] for one in series))
    low, high = (min(xs), max(xs)) if axes.is_log_x else spread(xs, margin=0.02)
    horizontal = Scale(low, high, _LEFT, _RIGHT, axes.is_log_x)
    vertical = Scale(*(axes.y_range or spread(ys)), _BOTTOM, _TOP)
    marks = tuple(
        _mark(one, number, horizontal, vertical) for number, one in enumerate(series, start=1)
    )
    return _chart(axes, horizontal, vertical, marks)


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
    bins = Mark("bins of equal size", "series-1", "", "", dots)
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
        css="reference" if series.is_reference else f"series-{number}",
        line=_joined(points),
        band=_band(series, horizontal, vertical),
        dots=tuple(
            Dot(*at, _LEAST_RADIUS, f"{series.label}: {x:,.6g}, {y:.4g}") for at, x, y in said
        ),
    )


def _band(series: Series, horizontal: Scale, vertical: Scale) -> str:
    """Return the outline of a series' band; empty where it has none."""
    upper = [(horizontal(x), vertical(y)) for x, y in zip(series.x, series.high, strict=False)]
    lower = [(horizontal(x), vertical(y)) for x, y in zip(series.x, series.low, strict=False)]
    return _joined([*upper, *reversed(lower)])


def _joined(points: Sequence[tuple[float, float]]) -> str:
    """Return points as SVG's attribute has them."""
    return " ".join(f"{x:g},{y:g}" for x, y in points)
