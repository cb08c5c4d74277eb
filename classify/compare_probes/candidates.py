"""Candidates: every probe on every cache, tuned, refitted and measured without the test's labels.

The features of one cache are in memory at a time, or streamed, and of the fitted models only the
best so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.compare_probes.options import CompareOptions, SelectBy
from classify.compare_probes.refits import HeldOut, all_logits, out_of_fold, refit
from classify.compare_probes.shared_rows import Entrant, ReadRows, SharedRows
from classify.estimators import LogitsClassifier
from classify.probes import PROBES, TriedPoint
from classify.selection.division import Part
from classify.selection.folds import draw_folds
from classify.streams import Features
from data_cache.console import progress


@dataclass(frozen=True)
class Candidate:
    """A probe on a cache.

    Attributes
    ----------
    name : the probe's, with the cache's and a colon in front where there are several caches
    entrant : the cache
    probe : name in :data:`classify.probes.PROBES`
    hyperparameters : the choice
    points : everything that was tried
    validation : what the choice reached on validation rows, by which it was chosen
    n_validation : how many these are
    out_of_fold : the choice, held out fold by fold, on the training rows
    test_logits : (n, k) of the model refitted to training and validation rows; None without test
    seed_predictions : those of the further seeds on the test, (n,) each
    n_parameters : numbers that were learned; None for a model that keeps its rows
    seconds : that all this took
    """

    name: str
    entrant: Entrant
    probe: str
    hyperparameters: Mapping[str, Any]
    points: tuple[TriedPoint, ...]
    validation: TriedPoint
    n_validation: int
    out_of_fold: HeldOut = field(repr=False)
    test_logits: NDArray[np.float32] | None = field(repr=False)
    seed_predictions: tuple[NDArray[np.int64], ...] = field(repr=False)
    n_parameters: int | None
    seconds: float

    @property
    def held_out(self) -> TriedPoint:
        """What the choice reaches on all rows, each held out: validation rows, others by fold.

        A mean over rows; the log losses are those at the best temperature of either part.
        """
        parts = (self.out_of_fold.point(self.hyperparameters), self.validation)
        sizes = (len(self.out_of_fold.labels), self.n_validation)
        accuracy = np.average([one.accuracy for one in parts], weights=sizes)
        log_loss = np.average([one.log_loss for one in parts], weights=sizes)
        return replace(parts[0], accuracy=float(accuracy), log_loss=float(log_loss))

    def merit(self, select_by: SelectBy) -> tuple[float, float]:
        """Return what the winner has most of."""
        found = self.held_out
        merits = (found.accuracy, -found.log_loss)
        return merits if select_by == "accuracy" else merits[::-1]


@dataclass(frozen=True)
class Field:
    """All candidates, and the one that won, with its model."""

    candidates: tuple[Candidate, ...]
    winner: Candidate
    model: LogitsClassifier


def fit_candidates(shared: SharedRows, options: CompareOptions, streams: ExitStack) -> Field:
    """Fit every probe to every cache; choose the winner.

    Caches whose features are streamed stay open until ``streams`` ends: the winner may need its.

    Raises
    ------
    DataError
        There is nothing to learn from, or too few rows for the folds.
    TrainingError
        A head diverged.
    """
    fitted, by = _fitted(shared, options, streams), options.select_by
    n_all = len(shared.entrants) * len(options.probes)
    with progress("Fitting probes", total=n_all, unit="probes") as advance:
        winner, kept = next(fitted)
        found = [winner]
        advance(1)
        for candidate, model in fitted:
            found.append(candidate)
            if candidate.merit(by) > winner.merit(by):
                winner, kept = candidate, model
            advance(1)
    return Field(tuple(found), winner, kept)


def _fitted(
    shared: SharedRows, options: CompareOptions, streams: ExitStack
) -> Iterator[tuple[Candidate, LogitsClassifier]]:
    """Yield every candidate with its model."""
    training = shared.division.training
    fold_of = draw_folds(
        training.labels, training.groups, n_folds=options.n_folds, seed=options.seed
    )
    for entrant in shared.entrants:
        rows = shared.read(entrant, streams)
        for probe in options.probes:
            name = shared.model_name(entrant, probe)
            task = _Task(name, entrant, rows, fold_of, len(shared.classes), options)
            yield task.fit(probe)


@dataclass(frozen=True)
class _Task:
    """What a candidate is fitted to."""

    name: str
    entrant: Entrant
    rows: ReadRows
    fold_of: NDArray[np.int64]
    n_classes: int
    options: CompareOptions

    def fit(self, probe: str) -> tuple[Candidate, LogitsClassifier]:
        """Tune a probe, refit it, and measure what can be measured without test labels."""
        started = time.perf_counter()
        training, validation = self.rows.training, self.rows.validation
        tuned = PROBES[probe](_pair(training), _pair(validation), self.options.tuning())
        held_out = out_of_fold(tuned.probe, training, self.fold_of, self.n_classes)
        model = refit(tuned.probe, self.rows.labeled, self.n_classes)
        candidate = Candidate(
            name=self.name,
            entrant=self.entrant,
            probe=probe,
            hyperparameters=tuned.hyperparameters,
            points=tuned.points,
            validation=tuned.point,
            n_validation=len(validation),
            out_of_fold=held_out,
            test_logits=self._test_logits(model),
            seed_predictions=tuple(self._of_other_seeds(tuned.probe, self.rows.labeled)),
            n_parameters=n_learned(model),
            seconds=round(time.perf_counter() - started, 3),
        )
        return candidate, model

    def _test_logits(self, model: LogitsClassifier) -> NDArray[np.float32] | None:
        """Return the logits of the test rows, if they are to be scored."""
        features = self.rows.test
        return None if features is None else all_logits(model, features, self.n_classes)

    def _of_other_seeds(self, probe: LogitsClassifier, rows: Part) -> Iterator[NDArray[np.int64]]:
        """Yield the test predictions of the same configuration with the further seeds."""
        if not draws_anything(probe, len(rows)):
            return
        for seed in range(self.options.seed + 1, self.options.seed + self.options.n_seeds):
            model = refit(probe.set_params(seed=seed), rows, self.n_classes)
            logits = self._test_logits(model)
            if logits is not None:
                yield logits.argmax(axis=1)


def _pair(part: Part) -> tuple[Features, NDArray[np.int64]]:
    """Return features and labels as probes take them."""
    return part.features, part.labels


def draws_anything(probe: LogitsClassifier, n_rows: int) -> bool:
    """Tell whether the seed makes a difference to a probe that is fitted to so many rows."""
    parameters = probe.get_params()
    return "seed" in parameters and parameters.get("n_landmarks", 0) < n_rows


def n_learned(model: LogitsClassifier) -> int | None:
    """Return how many numbers a model learned; None for one that keeps its training rows."""
    if hasattr(model, "model_"):
        return int(model.model_.count_params())
    if not hasattr(model, "coef_"):
        return None
    return int(model.coef_.size + model.intercept_.size)
