"""The figure of a comparison: accuracies with their intervals, and every difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from classify.compare_runs.entries import Entry
from classify.compare_runs.pairs import Pair
from classify.results.plots import GRID, INK, save_figure

_AHEAD, _BEHIND, _POINT, _MUTED = "#cfe3cb", "#f3d3c4", "#3b6fb6", "#8a8a8a"
_INCHES_A_ROW = 0.75
_MOST_WITH_NUMBERS = 12


def draw_comparison(entries: Sequence[Entry], pairs: Sequence[Pair], path: Path) -> None:
    """Draw the models from top to bottom: accuracies on the left, differences on the right."""
    height = 1.6 + _INCHES_A_ROW * len(entries)
    figure = Figure(figsize=(8 + _INCHES_A_ROW * len(entries), height), layout="constrained")
    ratios = [4.0, max(2.0, 1.0 * len(entries))]
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=ratios)
    _draw_accuracies(left, entries)
    _draw_differences(right, len(entries), pairs)
    save_figure(figure, path)


def _draw_accuracies(axes: Axes, entries: Sequence[Entry]) -> None:
    """Draw a point with its interval for each model that was tested."""
    for row, entry in enumerate(entries):
        if entry.accuracy is None or entry.interval is None:
            axes.annotate("not tested", (0.5, row), xycoords=("axes fraction", "data"), ha="center")
            continue
        low, high = entry.interval
        axes.plot([low, high], [row, row], color=_POINT, lw=2.2, solid_capstyle="round")
        axes.plot(entry.accuracy, row, "o", color=_POINT, ms=7)
        text, offset = f"{entry.accuracy:.3f}", (0, 8)
        axes.annotate(
            text, (entry.accuracy, row), offset, textcoords="offset points", ha="center", color=INK
        )
    axes.set_yticks(range(len(entries)), [_label(*one) for one in enumerate(entries, start=1)])
    axes.set_ylim(len(entries) - 0.5, -0.6)
    axes.margins(x=0.08)
    axes.set_xlabel("Test accuracy, 95% interval")
    axes.grid(axis="x", color=GRID)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_differences(axes: Axes, n_models: int, pairs: Sequence[Pair]) -> None:
    """Draw the row's accuracy less the column's, shaded where it is beyond chance."""
    for pair in pairs:
        for row, column, sign in ((pair.first, pair.second, 1), (pair.second, pair.first, -1)):
            _draw_cell(axes, row, column, pair, sign, with_text=n_models <= _MOST_WITH_NUMBERS)
    axes.set_xlim(-0.5, n_models - 0.5)
    axes.set_xticks(range(n_models), [str(number) for number in range(1, n_models + 1)])
    axes.set_xlabel("Row less column; shaded: beyond chance")
    axes.tick_params(length=0, labelleft=False)
    axes.spines[:].set_visible(False)


def _draw_cell(
    axes: Axes, row: int, column: int, pair: Pair, sign: int, *, with_text: bool
) -> None:
    """Draw one difference."""
    difference = np.nan if pair.difference is None else sign * pair.difference + 0.0
    if pair.is_beyond_chance:
        color = _AHEAD if difference > 0 else _BEHIND
        axes.fill_between([column - 0.46, column + 0.46], row - 0.42, row + 0.42, color=color, lw=0)
    text = "–" if pair.difference is None else f"{difference:+.3f}"
    if with_text:
        color = INK if pair.is_beyond_chance else _MUTED
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)


def _label(number: int, entry: Entry) -> str:
    """Return what an entry is called in the figure."""
    size = "" if entry.n_parameters is None else f"{entry.n_parameters:,} parameters, "
    cost = f"{entry.n_images:,} images, {size}{entry.seconds:,.0f} s"
    return f"{number}  {entry.approach}\n{cost}"
