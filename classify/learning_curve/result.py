"""Learning curves on paper: a table that is printed, CSV, JSON, and a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.learning_curve.curves import Curve, Fitted
from classify.learning_curve.figure import draw_curves
from classify.learning_curve.options import CurveOptions
from classify.learning_curve.power_law import FEWEST_SIZES, MOST_TIMES, ImagesNeeded
from classify.results.runs import REPORT_FILE, write_table
from classify.results.summary import align
from classify.results.training import CacheFacts, package_versions
from classify.selection.test_log import Scorings

CURVE_FILE, DRAWS_FILE = "learning_curve.csv", "draws.csv"
FACTS_FILE, FIGURE_FILE = "learning_curve.json", "learning_curve.png"
FILES = frozenset({CURVE_FILE, DRAWS_FILE, FACTS_FILE, FIGURE_FILE, REPORT_FILE})
"""Everything that the folder of a learning curve holds."""

NEARLY = 0.01
"""An accuracy within this of that with all images is nearly as good."""


@dataclass(frozen=True)
class Measured:
    """The curves, and every fit behind them.

    ``n_classes`` have labeled images. ``labels`` (m,) are the test's, and ``scorings`` how often it
    was scored; None on folds.
    """

    curves: tuple[Curve, ...]
    fitted: tuple[Fitted, ...]
    n_classes: int
    labels: NDArray[np.int64] | None = None
    scorings: Scorings | None = None


@dataclass(frozen=True)
class CurveResult:
    """Everything that there is to tell; ``needed`` is by probe."""

    cache: CacheFacts
    options: CurveOptions
    measured: Measured
    needed: Mapping[str, tuple[ImagesNeeded, ...]]
    seconds: float

    @property
    def text(self) -> str:
        """What ``learning-curve`` prints, without a last line end."""
        return "\n".join([*align(list(self._text_rows())), "", self.how(), *self.sentences()])

    def write(self, folder: Path) -> None:
        """Write every file into ``folder``, but for the page."""
        write_table(folder / CURVE_FILE, self._header(), self._rows())
        _write_draws(folder / DRAWS_FILE, self.measured)
        facts = json.dumps(self._facts(), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / FACTS_FILE).write_text(facts + "\n", encoding="utf-8")
        draw_curves(self.measured.curves, self.options, folder / FIGURE_FILE)

    def _text_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the cells of the printed table: a row for each number of images."""
        curves = self.measured.curves
        names = (word for one in curves for word in (one.probe, "95% band"))
        yield ("images", "a class", *names)
        for n in sorted({n for one in curves for n in one.sizes.tolist()}):
            figures = (cell for one in curves for cell in _cells(one, n))
            yield (f"{n:,}", f"{n / self.measured.n_classes:.4g}", *figures)

    def how(self) -> str:
        """Say what was measured."""
        place = "the test" if self.options.on_test else "folds that were left out"
        return (
            f"Means of {self.options.n_draws} draws, scored on {place}; of 100 further draws, 95 "
            "would lie in the band, which is - where all draws reached the same. Images: all that "
            "were labeled, for fitting and for choosing."
        )

    def sentences(self) -> Iterator[str]:
        """Yield what the curves say."""
        for one in self.measured.curves:
            yield _nearly_all(one)
            yield from (_words(one, needed) for needed in self.needed[one.probe])
            if self.options.targets and len(one.sizes) < FEWEST_SIZES:
                yield (
                    f"{one.probe}: {len(one.sizes)} numbers of images are too few to say how many "
                    f"a target takes: expected {FEWEST_SIZES} or more"
                )
        if self.measured.scorings is not None:
            yield f"{self.measured.scorings.sentence()}."

    def _header(self) -> list[str]:
        """Return the header of ``learning_curve.csv``."""
        return [
            *("probe", "images", "images_a_class", "draws"),
            *("accuracy", "sd", "band95_low", "band95_high"),
        ]

    def _rows(self) -> Iterator[tuple[object, ...]]:
        """Yield the rows of ``learning_curve.csv``."""
        for one in self.measured.curves:
            figures = zip(one.sizes.tolist(), one.mean, one.sd, *one.band, strict=True)
            for n, *rest in figures:
                a_class = n / self.measured.n_classes
                yield (one.probe, n, a_class, len(one.accuracies), *map(_number, rest))

    def _facts(self) -> dict[str, Any]:
        """Return what ``learning_curve.json`` says."""
        scorings = self.measured.scorings
        return {
            "format": "headstart-learning-curve",
            "format_version": 1,
            **asdict(self.options),
            "curves": [
                {
                    "probe": one.probe,
                    "images": one.sizes.tolist(),
                    "accuracies": one.accuracies.tolist(),
                    "images_for_targets": [asdict(found) for found in self.needed[one.probe]],
                }
                for one in self.measured.curves
            ],
            "test_scorings": scorings and asdict(scorings),
            "cache": str(self.cache.path),
            "classes": self.cache.classes,
            "recipe": asdict(self.cache.recipe),
            "provenance": asdict(self.cache.provenance),
            "versions": package_versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": self.seconds,
        }


def _cells(curve: Curve, n: int) -> tuple[str, str]:
    """Return the mean and the band at a number of images; dashes where there is none."""
    (at,) = np.nonzero(curve.sizes == n)
    if not len(at):
        return "-", "-"
    low, high = (float(end[at[0]]) for end in curve.band)
    return f"{curve.mean[at[0]]:.4f}", "-" if isnan(low) else f"{low:.4f} to {high:.4f}"


def _number(value: float) -> float | None:
    """Return a number, None in place of NaN."""
    return None if isnan(value) else float(value)


def _write_draws(path: Path, measured: Measured) -> None:
    """Write every fit: what it chose, and what it reached."""
    rows = []
    for one in measured.fitted:
        chosen = json.dumps(dict(one.hyperparameters))
        rows.append((one.probe, one.n, one.draw + 1, one.accuracy(measured.labels), chosen))
    write_table(path, ["probe", "images", "draw", "accuracy", "hyperparameters"], rows)


def _nearly_all(curve: Curve) -> str:
    """Say how few of the images are nearly as good as all."""
    mean, n_most = curve.mean, int(curve.sizes[-1])
    at = int(np.flatnonzero(mean >= mean[-1] - NEARLY)[0])
    n = int(curve.sizes[at])
    if n == n_most:
        return f"{curve.probe}: no fewer images than all {n_most:,} come within {NEARLY:g} of them"
    return (
        f"{curve.probe}: {n:,} images ({n / n_most:.0%}) give {mean[at]:.4f}, within {NEARLY:g} of "
        f"what all {n_most:,} give"
    )


def _words(curve: Curve, needed: ImagesNeeded) -> str:
    """Say how many images a target takes."""
    start = f"{curve.probe}: accuracy {needed.target:g}"
    most = f"more than {MOST_TIMES * int(curve.sizes[-1]):,}"
    if needed.n is None:
        return f"{start} is beyond what these can tell: {most} images, or never with this probe"
    low, high = (most if end is None else f"{_rounded(end):,}" for end in (needed.low, needed.high))
    if_so = ", if the curve goes on so" if needed.n > curve.sizes[-1] else ""
    return f"{start} takes about {_rounded(needed.n):,} images (95% band {low} to {high}){if_so}"


def _rounded(n: int) -> int:
    """Return a number to two significant digits: no more is known of it."""
    return round(n, 2 - len(str(n)))
