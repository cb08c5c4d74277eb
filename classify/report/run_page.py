"""The page of a run, from the files in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.report.charts import Axes, Series, line_chart, reliability_chart
from classify.report.origin import origin_section
from classify.report.page import (
    Block,
    Cell,
    Gallery,
    Matrix,
    Page,
    Picture,
    Section,
    Sentences,
    Table,
    Tile,
    Words,
    interval_cells,
    number_cell,
    write_page,
)
from classify.report.tables import TextTable, as_block, plain, read_text_table
from classify.report.thumbnails import Find, find_images, thumbnail
from classify.results import runs
from classify.results.runs import RunFolder, ScoredRows
from classify.statistics import metrics
from classify.statistics.calibration import reliability_of

Names = Sequence[str]

_MOST_PICTURES = 24
_MOST_CLASSES = 40


def write_report(folder: Path, name: str) -> None:
    """Write ``report.html`` into a run's folder, whose other files are written.

    ``name`` is what the run is called; the folder may have another name until it is finished.
    """
    run = runs.open_run(folder)
    source = run.metrics.get("provenance", {}).get("source", "")
    write_page(run_page(run, name, find_images(source)), folder / runs.REPORT_FILE)


def run_page(run: RunFolder, name: str, find: Find) -> Page:
    """Return the page of a run; ``find`` finds its images for the thumbnails."""
    sections = (
        _models(run),
        _comparison(run),
        _curves(run),
        _folds(run),
        _sweep(run),
        *_test_sections(run, find),
        _suspects(run, find),
        _details(run),
    )
    kept = tuple(section for section in sections if section.blocks)
    return Page(f"Run {name}", _lead(run), _tiles(run), kept)


def _lead(run: RunFolder) -> str:
    """Say in one sentence what was learned from what."""
    told = run.metrics
    source = told.get("provenance", {}).get("source", "its source")
    words = f"{told['n_train']:,} images of {source} to train on, {len(run.classes)} classes"
    if told.get("refit") == "all":
        words += ", and in the end the models were fitted to all rows, the test's too"
    recipe = told.get("recipe")
    if not recipe:
        return f"{words}."
    whose = "the selected model's features are" if run.kind == runs.COMPARISON_KIND else "features"
    return f"{words}; {whose} of {recipe['backbone']} at {recipe['image_size']} pixels."


def _tiles(run: RunFolder) -> tuple[Tile, ...]:
    """Return the figures in large letters."""
    told, figures = run.metrics, run.metrics[run.selected]
    validation = Tile(
        "Validation accuracy",
        f"{figures['validation_accuracy']:.4f}",
        f"{told['n_validation']:,} rows; what was chosen by it is flattered by it",
    )
    selected = Tile("Selected", plain(run.selected), "by rows other than the test's")
    if figures.get("test_accuracy") is None:
        learned = told.get("refit") == "all"
        why = "the models learned its rows in the end" if learned else "the test was not scored"
        return (Tile("Test accuracy", "–", why), selected, validation)
    low, high = figures["test_accuracy_ci95"]
    interval = f"95% interval {low:.4f} to {high:.4f}, {told['n_test']:,} rows"
    return (
        Tile("Test accuracy", f"{figures['test_accuracy']:.4f}", interval),
        selected,
        validation,
        *_scorings(told.get("test_scorings")),
    )


def _scorings(told: Mapping[str, Any] | None) -> tuple[Tile, ...]:
    """Say how often the test was looked at."""
    if not told:
        return ()
    words = "models so far: the more, the more the best of them is flattered"
    return (Tile("Scored on this test", f"{told['last']:,}", words),)


def _models(run: RunFolder) -> Section:
    """Compare the models of the run."""
    names = [one for one in run.metrics if isinstance(run.metrics[one], dict)]
    names = [one for one in names if "validation_accuracy" in run.metrics[one]]
    figures = [run.metrics[name] for name in names]
    tests = interval_cells([_test_interval(one) for one in figures])
    rows = tuple(
        (
            Cell(plain(name) + (" (selected)" if name == run.selected else "")),
            number_cell(one["validation_accuracy"]),
            number_cell(one.get("validation_log_loss")),
            test,
            number_cell(one.get("temperature"), 3),
            number_cell(one.get("trainable_parameters"), 0),
        )
        for name, one, test in zip(names, figures, tests, strict=True)
    )
    columns = ("model", "validation", "log loss", "test, 95% interval", "temperature", "parameters")
    note = "The intervals cover the sampling of test rows alone."
    return Section("Models", (Table("What each model reaches", columns, rows, note),))


def _test_interval(figures: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Return a model's test accuracy between the ends of its interval."""
    if figures.get("test_accuracy") is None:
        return None
    low, high = figures["test_accuracy_ci95"]
    return low, figures["test_accuracy"], high


def _comparison(run: RunFolder) -> Section:
    """Show every figure of a comparison, and say what its tests allow to be said."""
    said = list(run.metrics.get("conclusions", ()))
    how, differences = map(Words, said[:1]), tuple(said[1:])
    table = _table(run.path / runs.COMPARISON_FILE, "Every figure of every model")
    return Section("Comparison", (*how, *((Sentences(differences),) if said else ()), *table))


def _table(path: Path, caption: str) -> tuple[Block, ...]:
    """Return a table that is in a file; nothing where there is no such file."""
    table = read_text_table(path)
    return () if table is None else (as_block(table, caption),)


def _curves(run: RunFolder) -> Section:
    """Draw loss and accuracy against the epoch."""
    history = read_text_table(run.path / runs.HISTORY_FILE)
    charts = () if history is None else tuple(_curve_charts(history))
    return Section("Learning curves", charts)


def _curve_charts(history: TextTable) -> Iterator[Block]:
    """Yield a chart for the loss and one for the accuracy."""
    epochs = history.numbers("epoch")
    for name in ("loss", "accuracy"):
        lines = [
            Series(label, epochs, values)
            for label, column in (("training", name), ("validation", f"val_{name}"))
            if len(values := history.numbers(column)) and np.isfinite(values).all()
        ]
        if lines:
            yield line_chart(Axes(name.capitalize(), "Epoch", name.capitalize()), lines)


def _folds(run: RunFolder) -> Section:
    """Show what each fold gave."""
    caption = "A row for each model, repeat and fold"
    return Section("Folds", _table(run.path / runs.FOLDS_FILE, caption))


def _sweep(run: RunFolder) -> Section:
    """Show what was tried."""
    caption = "The heads that were tried, best on validation first"
    return Section("Sweep", _table(run.path / runs.SWEEP_FILE, caption))


def _test_sections(run: RunFolder, find: Find) -> tuple[Section, ...]:
    """Show what the selected model does on the test."""
    scored = run.test_predictions()
    if scored is None:
        return ()
    return (
        Section("Confusion", _confusion(scored, run.classes)),
        Section("Calibration", _calibration(scored)),
        Section("Most confident mistakes", _mistakes(scored, find)),
    )


def _confusion(scored: ScoredRows, classes: Names) -> tuple[Block, ...]:
    """Return the confusion matrix, or in words that it is too large, and the per-class figures."""
    at = {name: position for position, name in enumerate(classes)}
    labels, predictions = (
        np.array([at[name] for name in names]) for names in (scored.classes, scored.predictions)
    )
    per_class = _per_class(labels, predictions, classes)
    if len(classes) > _MOST_CLASSES:
        return (Words(f"{len(classes)} classes are too many for a matrix."), per_class)
    counts = metrics.confusion_matrix(labels, predictions, len(classes))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    matrix = Matrix(
        "Test rows by class and prediction",
        tuple(classes),
        tuple(map(tuple, counts.tolist())),
        tuple(map(tuple, shares.round(4).tolist())),
    )
    return matrix, per_class


def _per_class(labels: NDArray[np.int64], predictions: NDArray[np.int64], names: Names) -> Table:
    """Return precision, recall, F1 and the number of rows of each class."""
    found = metrics.class_figures(labels, predictions, len(names))
    shares = zip(found.precision, found.recall, found.f1, strict=True)
    rows = tuple(
        (Cell(name), *(number_cell(_known(one), 3) for one in three), number_cell(n, 0))
        for name, three, n in zip(names, shares, found.support, strict=True)
    )
    return Table("Each class", ("class", "precision", "recall", "F1", "rows"), rows)


def _known(share: float) -> float | None:
    """Return a share, or None for a share of nothing."""
    return None if isnan(share) else float(share)


def _calibration(scored: ScoredRows) -> tuple[Block, ...]:
    """Draw how far confidence can be believed, and say it in numbers."""
    if not scored.confidences:
        return ()
    found = reliability_of(np.array(scored.confidences), np.array(scored.right))
    low, high = found.error_interval()
    words = (
        f"Equal-mass ECE {found.error:.4f}, 95% interval {low:.4f} to {high:.4f}; by chance alone, "
        f"without any true gap, it would be {found.error_by_chance:.4f}."
    )
    bins = (one.tolist() for one in (found.confidence, found.accuracy, found.n_rows))
    return reliability_chart(*bins), Words(words)


def _mistakes(scored: ScoredRows, find: Find) -> tuple[Block, ...]:
    """Show the wrong predictions that the model was surest of."""
    if not scored.confidences:
        return ()
    confidences, wrong = np.array(scored.confidences), np.flatnonzero(np.invert(scored.right))
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")][:_MOST_PICTURES]
    pictures = tuple(
        Picture(
            (
                scored.ids[row],
                f"{scored.classes[row]}, taken for {scored.predictions[row]}",
                f"confidence {confidences[row]:.3f}",
            ),
            thumbnail(scored.ids[row], find),
        )
        for row in worst
    )
    return (Gallery(f"{len(wrong):,} of {len(scored.ids):,} are wrong", pictures),)


def _suspects(run: RunFolder, find: Find) -> Section:
    """Show the rows that are likely mislabeled."""
    table = read_text_table(run.path / runs.SUSPECTS_FILE)
    if table is None:
        return Section("", ())
    names = ("id", "class", "suggested_class", "suggested_confidence")
    rows = list(zip(*map(table.column, names), strict=True))
    pictures = tuple(
        Picture(
            (found, f"labeled {label}, looks like {other}", f"confidence {float(sure):.3f}"),
            thumbnail(found, find),
        )
        for found, label, other, sure in rows[:_MOST_PICTURES]
    )
    caption = f"{len(rows):,} rows out of fold, the most suspect first"
    return Section("Likely mislabeled", (Gallery(caption, pictures),))


def _details(run: RunFolder) -> Section:
    """List what the run was made from."""
    told = run.metrics
    recipe, provenance, versions = (
        told.get(name) or {} for name in ("recipe", "provenance", "versions")
    )
    own = {name: told.get(name) for name in ("created", "seconds")}
    return origin_section(own, recipe, provenance, versions)
