"""The figure of learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from classify.learning_curve.curves import Curve
from classify.learning_curve.options import CurveOptions
from classify.results.plots import GRID, INK, save_figure

_COLORS = ("#3b6fb6", "#d1672b", "#5b8a4a", "#8a5aa8", "#a8873b", "#3b9aa8", "#a83b5e", "#666666")


def draw_curves(curves: Sequence[Curve], options: CurveOptions, path: Path) -> None:
    """Draw the mean accuracy of each curve, and its band, against the number of images."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(curves):
        color = _COLORS[number % len(_COLORS)]
        label = one.probe.replace("_", " ")
        axes.plot(one.sizes, one.mean, "o-", color=color, ms=4, lw=1.8, label=label)
        axes.fill_between(one.sizes, *one.band, color=color, alpha=0.15, lw=0)
    for target in options.targets:
        axes.axhline(target, color=INK, ls="--", lw=1)
    axes.set_xscale("log")
    axes.set_xticks(sorted({n for one in curves for n in one.sizes.tolist()}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Labeled images, for fitting and for choosing")
    place = "the test" if options.on_test else "folds that were left out"
    axes.set_ylabel(f"Accuracy on {place}")
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Mean of {options.n_draws} draws; shaded: 95% of further draws", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, path)
