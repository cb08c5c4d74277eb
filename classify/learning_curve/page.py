"""The page of learning curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from math import isnan

from classify.learning_curve.curves import Curve
from classify.learning_curve.result import CurveResult
from classify.report.charts import Axes, Chart, Series, line_chart
from classify.report.origin import origin_section
from classify.report.page import (
    Cell,
    Page,
    Section,
    Sentences,
    Table,
    Tile,
    Words,
    interval_cells,
    number_cell,
)
from classify.report.tables import plain
from classify.results.training import package_versions

_MOST_BANDS = 3
"""The bands of more curves would cover each other."""


def curve_page(result: CurveResult, name: str) -> Page:
    """Return the page of learning curves; ``name`` is what their folder is called."""
    sections = (
        Section("Accuracy", (_chart(result), Words(result.how()), _table(result))),
        Section("What the curves say", (Sentences(tuple(result.sentences())),)),
        _settings(result),
        origin_section(
            {"cache": result.cache.path, "seconds": result.seconds},
            asdict(result.cache.recipe),
            asdict(result.cache.provenance),
            package_versions(),
        ),
    )
    return Page(f"Learning curve: {name}", _lead(result), tuple(_tiles(result)), sections)


def _lead(result: CurveResult) -> str:
    """Say in one sentence what was measured on what."""
    recipe = result.cache.recipe
    n_most = max(int(one.sizes[-1]) for one in result.measured.curves)
    return (
        f"Up to {n_most:,} labeled images of {result.cache.provenance.source} to learn from, "
        f"{result.measured.n_classes} classes; features of {recipe.backbone} at "
        f"{recipe.image_size} pixels."
    )


def _tiles(result: CurveResult) -> Iterator[Tile]:
    """Yield what each probe reaches with all images."""
    for one in result.measured.curves:
        low, high = (float(end[-1]) for end in one.band)
        band = "" if isnan(low) else f", 95% band {low:.4f} to {high:.4f}"
        note = f"accuracy with all {int(one.sizes[-1]):,} images{band}"
        yield Tile(plain(one.probe), f"{one.mean[-1]:.4f}", note)


def _chart(result: CurveResult) -> Chart:
    """Draw accuracy against the number of images, and the targets."""
    curves, options = result.measured.curves, result.options
    is_banded = len(curves) <= _MOST_BANDS
    ends = [min(int(one.sizes[0]) for one in curves), max(int(one.sizes[-1]) for one in curves)]
    targets = [
        Series(f"target {target:g}", ends, [target] * 2, is_reference=True)
        for target in options.targets
    ]
    place = "the test" if options.on_test else "folds left out"
    shaded = "shaded: 95% of further draws" if is_banded else "the bands are in the table"
    axes = Axes(
        f"Mean of {options.n_draws} draws; {shaded}",
        "Labeled images, for fitting and for choosing",
        f"Accuracy on {place}",
        is_log_x=True,
    )
    return line_chart(axes, [*(_series(one, is_banded=is_banded) for one in curves), *targets])


def _series(curve: Curve, *, is_banded: bool) -> Series:
    """Return a curve as it is drawn."""
    low, high = (end.tolist() for end in curve.band) if is_banded else ((), ())
    return Series(plain(curve.probe), curve.sizes.tolist(), curve.mean.tolist(), low, high)


def _table(result: CurveResult) -> Table:
    """Show every number of images of every probe, with the bands on one scale."""
    points = [
        (one.probe, *figures)
        for one in result.measured.curves
        for figures in zip(one.sizes.tolist(), one.mean, one.sd, *one.band, strict=True)
    ]
    bands = interval_cells(
        [
            None if isnan(low) else (float(low), float(mean), float(high))
            for _, _, mean, _, low, high in points
        ]
    )
    rows = tuple(
        (
            Cell(plain(probe)),
            number_cell(n, 0),
            number_cell(n / result.measured.n_classes, 1),
            number_cell(float(mean)) if band.bar is None else band,
            number_cell(float(sd)),
        )
        for (probe, n, mean, sd, *_), band in zip(points, bands, strict=True)
    )
    columns = ("probe", "images", "images a class", "accuracy, 95% band", "SD of draws")
    return Table("What each number of images gives", columns, rows)


def _settings(result: CurveResult) -> Section:
    """Show what was asked for, and what each draw of all images chose."""
    options = asdict(result.options)
    asked = tuple(
        (Cell(plain(name)), Cell(_text(value)))
        for name, value in options.items()
        if value not in (None, ())
    )
    n_most = {one.probe: int(one.sizes[-1]) for one in result.measured.curves}
    chosen = tuple(
        (
            Cell(plain(one.probe)),
            number_cell(one.draw + 1, 0),
            number_cell(one.accuracy(result.measured.labels)),
            Cell(json.dumps(dict(one.hyperparameters))),
        )
        for one in result.measured.fitted
        if one.n == n_most[one.probe]
    )
    columns = ("probe", "draw", "accuracy", "hyperparameters")
    return Section(
        "Settings",
        (
            Table("What was chosen with all images", columns, chosen),
            Table("What was asked for", ("option", "value"), asked),
        ),
    )


def _text(value: object) -> str:
    """Return an option as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
