"""The library call behind ``learning-curve``: a cache in, curves out, on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from classify.learning_curve.curves import (
    Curve,
    Fitted,
    curve_sizes,
    curves_of,
    draws_of_all,
    draws_of_folds,
    fit_draws,
)
from classify.learning_curve.options import CurveOptions
from classify.learning_curve.page import curve_page
from classify.learning_curve.power_law import FEWEST_SIZES, ImagesNeeded, images_needed
from classify.learning_curve.result import FILES, CurveResult, Measured
from classify.report.page import write_page
from classify.results.output_folder import check_output_folder
from classify.results.runs import REPORT_FILE
from classify.results.training import CacheFacts, Clock
from classify.selection.division import TRAINING_SPLIT, VALIDATION_SPLIT, Part, read_kept
from classify.selection.leakage import rows_to_leave_out
from classify.selection.sealed_test import SealedTest, find_test_split
from data_cache.cache import FeatureCache
from data_cache.console import say
from data_cache.errors import CacheError, DataError
from data_cache.files import whole_folder


def learning_curve(
    cache: Path, output: Path, options: CurveOptions | None = None, *, overwrite: bool = False
) -> CurveResult:
    """Measure learning curves on a cache, write them into the folder ``output``, return them.

    Raises
    ------
    HeadstartError
        See :meth:`data_cache.cache.FeatureCache.open`,
        :func:`classify.results.output_folder.check_output_folder` and
        :func:`classify.selection.sealed_test.find_test_split`. Whatever is raised, ``output`` stays
        as it was.
    DataError
        There are too few rows for folds, or no test to score on.
    """
    options, clock = options or CurveOptions(), Clock()
    check_output_folder(output, FILES, overwrite=overwrite)
    with FeatureCache.open(cache, check="always" if options.verify else "once") as opened:
        facts = CacheFacts(opened.path, opened.classes, opened.recipe, opened.provenance)
        split = find_test_split(opened, options.test_split)
        rows = _labeled_rows(opened, options, split)
        if options.on_test:
            measured = _on_test(opened, split, rows, options, output)
        else:
            measured = _on_folds(rows, len(facts.classes), options)
    needed = {one.probe: _needed(one, options) for one in measured.curves}
    result = CurveResult(facts, options, measured, needed, clock.total)
    with whole_folder(output.resolve(), overwrite=overwrite) as folder:
        result.write(folder)
        write_page(curve_page(result, output.name), folder / REPORT_FILE)
    return result


def _labeled_rows(cache: FeatureCache, options: CurveOptions, test_split: str | None) -> Part:
    """Return all rows that are labeled and not the test's."""
    if TRAINING_SPLIT not in cache.split_names:
        raise CacheError(f"{cache.path} has no split {TRAINING_SPLIT!r} to learn from")
    left_out = rows_to_leave_out(
        cache, test_split, drop_leaks=options.drop_leaks, exclude=options.exclude
    )
    rows = read_kept(cache, TRAINING_SPLIT, left_out)
    if VALIDATION_SPLIT in cache.split_names and test_split != VALIDATION_SPLIT:
        rows = rows.join(read_kept(cache, VALIDATION_SPLIT, left_out))
    if len(np.unique(rows.labels)) < 2:  # noqa: PLR2004
        raise DataError(f"the {len(rows)} labeled rows have one class: expected two or more")
    return rows


def _on_folds(rows: Part, n_classes: int, options: CurveOptions) -> Measured:
    """Measure on folds."""
    sizes = curve_sizes(rows, options, on_folds=True)
    say(f"{len(rows):,} labeled images, {sizes[0]} to {sizes[-1]:,} of them to learn from")
    draws = draws_of_folds(rows, options.n_draws, options.seed)
    fitted = tuple(fit_draws(draws, sizes, n_classes, options))
    return Measured(curves_of(fitted, None), fitted, _n_classes(rows))


def _on_test(
    cache: FeatureCache, split: str | None, rows: Part, options: CurveOptions, output: Path
) -> Measured:
    """Measure on the test, whose labels open once, when everything is fitted."""
    if split is None:
        raise DataError(
            f"{cache.path} has no test split to score on: leave --on-test out, or name the split "
            "with --test-split"
        )
    test = SealedTest(cache, split)
    sizes = curve_sizes(rows, options, on_folds=False)
    say(f"{sizes[0]} to {sizes[-1]:,} labeled images to learn from, {len(test):,} to score on")
    draws = draws_of_all(rows, test.features(), options.n_draws, options.seed)
    fitted = tuple(fit_draws(draws, sizes, len(cache.classes), options))
    opened = test.open(_names(fitted, len(rows)), output)
    curves = curves_of(fitted, opened.labels)
    return Measured(curves, fitted, _n_classes(rows), opened.labels, opened.scorings)


def _n_classes(rows: Part) -> int:
    """Return how many classes have rows."""
    return len(np.unique(rows.labels))


def _names(fitted: Sequence[Fitted], n_most: int) -> list[str]:
    """Return a name for each model that is scored on the test.

    All images are the same ones in every draw: fits to these that chose and predict the same are
    one model.
    """
    models: dict[tuple[object, ...], str] = {}
    for one in fitted:
        chosen = (repr(one.hyperparameters), one.predictions.tobytes())
        own = chosen if one.n == n_most else (one.draw,)
        name = f"{one.probe} on {one.n} images, draw {one.draw + 1}"
        models.setdefault((one.probe, one.n, *own), name)
    return list(models.values())


def _needed(curve: Curve, options: CurveOptions) -> tuple[ImagesNeeded, ...]:
    """Return how many images each target takes; nothing where the sizes are too few to tell."""
    if len(curve.sizes) < FEWEST_SIZES:
        return ()
    return tuple(
        images_needed(curve.sizes, curve.accuracies, target, options.seed)
        for target in options.targets
    )
