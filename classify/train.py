"""Train on a cache: the Dense head, its cross-check, the choice between them, one look at the test.

:func:`train_head` is the one call behind the command ``train-head``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from classify import runs
from classify.comparison import compare
from classify.head_spec import HeadSpec
from classify.heads import DenseHead
from classify.leakage import rows_to_leave_out
from classify.probes import LogisticPath, LogisticRegressionProbe, logistic_path
from classify.results import CacheFacts, Clock, FittedModels, TestScores, TrainingResult
from classify.runs import DENSE, LOGISTIC, Run, load_run
from classify.scoring import score
from classify.sealed_test import SealedTest, find_test_split
from classify.selection import Division, Part, RareClass, divide
from data_cache.cache import FeatureCache
from data_cache.console import import_keras, progress, say


@dataclass(frozen=True)
class RowOptions:
    """Which rows of a cache do what.

    Attributes
    ----------
    seed : draws the validation rows, and all that training draws
    validation_split : share of the training rows drawn for validation where the cache has no split
        ``val``, in (0, 1)
    rare_class : see :data:`classify.selection.RareClass`
    test_split : name of the test split; by default ``test`` where there is one
    no_test : leave the test alone
    drop_leaks : leave out training and validation rows that have a copy in the test, or nearly
    exclude : a CSV with the columns ``split`` and ``id`` of rows to leave out
    verify : read the whole cache and compare its digest first, even if it was done before
    """

    seed: int = 0
    validation_split: float = 0.2
    rare_class: RareClass = "keep"
    test_split: str | None = None
    no_test: bool = False
    drop_leaks: bool = False
    exclude: str | None = None
    verify: bool = False


@dataclass(frozen=True)
class TrainingOptions(HeadSpec, RowOptions):
    """What a user may choose: the Dense head's configuration, and which rows do what.

    ``class_weight`` also holds for the cross-check.
    """

    def head(self) -> DenseHead:
        """Return the Dense head, untrained."""
        return DenseHead(**{one.name: getattr(self, one.name) for one in fields(HeadSpec)})


@dataclass(frozen=True)
class Job:
    """A training job between reading its rows and writing its run; ``test`` is under seal."""

    cache: CacheFacts
    division: Division
    test: SealedTest | None
    output: Path
    overwrite: bool
    clock: Clock


def train_head(
    cache: Path, output: Path, options: TrainingOptions | None = None, *, overwrite: bool = False
) -> Run:
    """Train both models on a cache, write the run folder ``output``, and return it.

    Raises
    ------
    HeadstartError
        See :meth:`data_cache.cache.FeatureCache.open`, :func:`classify.runs.check_output`,
        :func:`classify.selection.divide`, :func:`classify.sealed_test.find_test_split` and
        :meth:`classify.heads.DenseHead.fit`. Whatever is raised, ``output`` stays as it was.
    """
    options = options or TrainingOptions()
    with begin(cache, output, options, overwrite=overwrite) as job:
        return finish(job, options)


@contextmanager
def begin(cache: Path, output: Path, options: RowOptions, *, overwrite: bool) -> Iterator[Job]:
    """Yield a job, its cache open; see :func:`train_head` for what is raised."""
    clock = Clock()
    runs.check_output(output, overwrite=overwrite)
    with FeatureCache.open(cache, check="always" if options.verify else "once") as features:
        facts = CacheFacts(features.path, features.classes, features.recipe, features.provenance)
        split = find_test_split(features, options.test_split)
        test = None if split is None or options.no_test else SealedTest(features, split)
        with clock.time("read"):
            division = _divide(features, options, split)
        yield Job(facts, division, test, output, overwrite, clock)


def finish(
    job: Job,
    options: TrainingOptions,
    *,
    more_metrics: Mapping[str, Any] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Run:
    """Fit both models, score them, write the run, and return it.

    ``more_metrics`` go to ``metrics.json`` too; ``write_more`` may add files to the run's folder.
    """
    fitted = fit_models(job.division, len(job.cache.classes), options, job.clock)
    with job.clock.time("test"):
        scores = None if job.test is None else score_test(job.test, fitted, job.output)
    facts = {**asdict(options), **(more_metrics or {})}
    result = TrainingResult(job.cache, facts, job.division, fitted, scores)
    with runs.new_run(job.output, overwrite=job.overwrite) as folder:
        if write_more:
            write_more(folder)
        result.write(folder, job.clock)
    return load_run(job.output)


def fit_models(
    division: Division, n_classes: int, options: TrainingOptions, clock: Clock
) -> FittedModels:
    """Fit both models and measure them on validation rows."""
    training, validation = division.training, division.validation
    with clock.time("logistic_regression"):
        path, logistic = _fit_logistic(training, validation, options)
    with clock.time("tensorflow_import"):
        import_keras()
    with clock.time("dense"):
        dense = _fit_dense(division, n_classes, options)
    scores = {
        name: score(model, validation.features, validation.labels)
        for name, model in ((DENSE, dense), (LOGISTIC, path.probe))
    }
    comparison = compare(validation.labels, *(one.predictions for one in scores.values()))
    return FittedModels(dense, path, logistic, scores, comparison)


def score_test(test: SealedTest, fitted: FittedModels, run: Path) -> TestScores:
    """Open the seal and score the models that are kept, after every choice was made."""
    features = test.features()
    opened = test.open(tuple(fitted.kept), run)
    return TestScores(
        split=test.split,
        ids=test.ids,
        labels=opened.labels,
        scores={name: score(one, features, opened.labels) for name, one in fitted.kept.items()},
        scorings=opened.scorings,
    )


def _divide(cache: FeatureCache, options: RowOptions, test_split: str | None) -> Division:
    """Return training and validation rows, and say how many there are."""
    division = divide(
        cache,
        fraction=options.validation_split,
        seed=options.seed,
        rare_class=options.rare_class,
        test_split=test_split,
        left_out=rows_to_leave_out(
            cache, test_split, drop_leaks=options.drop_leaks, exclude=options.exclude
        ),
    )
    origin = "drawn from them" if division.drawn else "the cache's own split"
    say(
        f"{len(division.training):,} rows to train on, {len(division.validation):,} to validate "
        f"on ({origin})"
    )
    return division


def _fit_logistic(
    training: Part, validation: Part, options: TrainingOptions
) -> tuple[LogisticPath, LogisticRegressionProbe]:
    """Choose C on validation rows; return that, and the probe refitted to all rows."""
    path = logistic_path(
        (training.features, training.labels),
        (validation.features, validation.labels),
        class_weight=options.class_weight,
    )
    known = validation.take(np.isin(validation.labels, path.probe.classes_))
    rows = training.join(known)
    refitted = clone(path.probe).fit(rows.features, rows.labels, start=path.probe)
    return path, refitted


def _fit_dense(division: Division, n_classes: int, options: TrainingOptions) -> DenseHead:
    """Train the Dense head, with a progress bar on a terminal."""
    validation = (division.validation.features, division.validation.labels)
    with progress("Training", total=options.epochs, unit="epochs") as advance:
        return options.head().fit(
            division.training.features,
            division.training.labels,
            classes=range(n_classes),
            validation_data=validation,
            on_epoch=lambda _epoch, _row: advance(1),
        )
