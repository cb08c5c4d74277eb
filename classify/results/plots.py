"""The figures of a run, as PNG files; drawn without a display and without global state."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

_TRAINING, _VALIDATION, _REFERENCE = "#3b6fb6", "#d1672b", "#5b8a4a"
INK, GRID = "#333333", "#e6e6e6"
_DOTS_PER_INCH = 130
_POINTS_PER_INCH = 72
_MOST_MARKERS = 40
_MOST_LETTERS = 18
_MOST_WITH_COUNTS = 25
_MOST_SLANTED = 15
_DARK = 0.35
"""A share of the true class from which on a cell is dark."""


def draw_learning_curves(
    history: Mapping[str, Sequence[float]],
    logistic_accuracy: float | None,
    path: Path,
    title: str = "Learning curves of the Dense head",
) -> None:
    """Draw loss and accuracy against the epoch.

    ``history`` is :attr:`classify.heads.dense.DenseHead.history_` with validation figures;
    ``logistic_accuracy`` is what the cross-check reaches on the same validation rows, where there
    is one.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _draw_curves(loss, history, "loss")
    loss.set_ylabel("Cross-entropy (nats)")
    loss.set_ylim(bottom=0)
    _draw_curves(accuracy, history, "accuracy")
    accuracy.set_ylabel("Accuracy")
    if logistic_accuracy is not None:
        label = "validation, logistic regression"
        accuracy.axhline(logistic_accuracy, color=_REFERENCE, ls="--", lw=1.8, label=label)
    figure.suptitle(title)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save_figure(figure, path)


def draw_confusion_matrix(
    counts: NDArray[np.int64], classes: Sequence[str], title: str, path: Path
) -> None:
    """Draw a confusion matrix: ``counts`` (k, k), a row for each true class.

    The shade is the share of the row, so rare classes show as well as frequent ones, on a scale of
    square roots, so errors show beside the diagonal. Small matrices have the counts written in.
    """
    side = float(np.clip(2.6 + 0.55 * len(classes), 5, 16))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    _name_classes(axes, classes, points_each=_POINTS_PER_INCH * side / len(classes))
    if len(classes) <= _MOST_WITH_COUNTS:
        _write_counts(axes, counts, shares)
    axes.set_title(title, parse_math=False, pad=12)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1%", "10%", "25%", "50%", "100%"])
    bar.set_label("Share of the true class")
    bar.outline.set_visible(False)
    save_figure(figure, path)


def _draw_curves(axes: Axes, history: Mapping[str, Sequence[float]], name: str) -> None:
    """Draw one figure of the history, in training and in validation."""
    n_epochs = len(history[name])
    style: dict[str, Any] = {"marker": "o", "ms": 4 if n_epochs <= _MOST_MARKERS else 0, "lw": 1.8}
    epochs = range(1, n_epochs + 1)
    axes.plot(epochs, history[name], color=_TRAINING, label="training, with dropout", **style)
    axes.plot(epochs, history[f"val_{name}"], color=_VALIDATION, label="validation", **style)
    axes.set_xlabel("Epoch")
    axes.set_xlim(0.5, n_epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)


def _name_classes(axes: Axes, classes: Sequence[str], points_each: float) -> None:
    """Put the classes' names on both axes, in letters that fit a cell of ``points_each``."""
    names = [_plain(name) for name in classes]
    style: dict[str, Any] = {"fontsize": float(np.clip(0.6 * points_each, 3, 10))}
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    upright = {"rotation": 90}
    positions = range(len(names))
    turned = slant if len(names) <= _MOST_SLANTED else upright
    axes.set_xticks(positions, names, parse_math=False, **style, **turned)
    axes.set_yticks(positions, names, parse_math=False, **style)
    axes.tick_params(length=0)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    axes.spines[:].set_visible(False)


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    """Write every count but zeros into its cell, light on dark."""
    size = float(np.clip(180 / len(counts), 7, 11))
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > _DARK else INK
        text = f"{counts[row, column]}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def _plain(name: str) -> str:
    """Return a class name on one line and not too long."""
    line = "".join("·" if unicodedata.category(one)[0] == "C" else one for one in name)
    return line if len(line) <= _MOST_LETTERS else line[: _MOST_LETTERS - 1] + "…"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; letters that no font has become boxes, without a warning each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        FigureCanvasAgg(figure).print_figure(path, dpi=_DOTS_PER_INCH)
