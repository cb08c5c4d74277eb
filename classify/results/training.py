"""What training brought forth, and the files of a run that tell of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.estimators import LogitsClassifier
from classify.heads.dense import DenseHead
from classify.probes import LogisticPath
from classify.results import runs
from classify.results.plots import draw_confusion_matrix, draw_learning_curves
from classify.results.runs import DENSE, LOGISTIC
from classify.selection.division import TRAINING_SPLIT, VALIDATION_SPLIT, Division, Part
from classify.selection.test_log import Scorings
from classify.statistics import metrics
from classify.statistics.intervals import wilson_interval
from classify.statistics.scoring import Score
from classify.train_head.champion import CHAMPION
from classify.train_head.comparison import PairedComparison, likely_cause
from classify.train_head.out_of_fold import FoldScore, OutOfFold
from classify.train_head.refit import FITTED_TO, Refit, learners
from classify.train_head.suspects import HEADER as SUSPECTS_HEADER
from data_cache.recipe import Provenance, Recipe

TITLES = {DENSE: "Dense head", LOGISTIC: "Logistic regression"}
_HEADLINE = (
    "validation_accuracy",
    "validation_log_loss",
    "test_accuracy",
    "test_accuracy_ci95",
    "trainable_parameters",
)
"""The figures of the Dense head that ``metrics.json`` has at its top too."""

_PACKAGES = ("headstart", "numpy", "tensorflow", "keras", "scikit-learn", "h5py")


@dataclass
class Clock:
    """Seconds by part of the work, and in all."""

    parts: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Time the body as a part."""
        started = time.perf_counter()
        yield
        self.parts[part] = round(time.perf_counter() - started, 3)

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return round(time.perf_counter() - self._started, 3)


@dataclass(frozen=True)
class CacheFacts:
    """What a run keeps of the cache that it learnt from."""

    path: Path
    classes: tuple[str, ...]
    recipe: Recipe
    provenance: Provenance


@dataclass(frozen=True)
class FittedModels:
    """The two models: what they reach when fitted to training rows, and what the run keeps.

    Attributes
    ----------
    dense, path : the Dense head, and the path of logistic regressions whose probe is the best,
        fitted to the training rows
    validation : the score of ``dense`` and of the probe in ``path`` on validation rows
    comparison : of the two, in this order
    kept : the models that the run keeps, by name, refitted
    refit : the rows that they were refitted to; ``refit_rows`` are those of the test among them
    temperatures : for each model; None where none could be fitted
    folds : what cross-validation found, or None
    """

    dense: DenseHead
    path: LogisticPath
    validation: Mapping[str, Score]
    comparison: PairedComparison
    kept: Mapping[str, LogitsClassifier]
    refit: Refit
    refit_rows: Part | None
    temperatures: Mapping[str, float | None]
    folds: OutOfFold | None

    @property
    def selected(self) -> str:
        """Name of the winner out of fold, else on validation: by accuracy, of equals by log loss.

        See :attr:`classify.train_head.out_of_fold.OutOfFold.selected`.
        """
        if self.folds is not None:
            return self.folds.selected
        scores = self.validation
        return max(scores, key=lambda name: (scores[name].accuracy, -scores[name].log_loss))


@dataclass(frozen=True)
class TestScores:
    """The one look at the test: ids and labels (n,), the score of each model that is kept.

    ``champion`` is the score of an earlier run's model that was looked at too.
    """

    split: str
    ids: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    scores: Mapping[str, Score]
    scorings: Scorings | None
    champion: Score | None = None

    def contest(self, selected: str) -> dict[str, Score]:
        """Return the scores of the ``new`` model, the one selected, and of the ``champion``."""
        scores = {"new": self.scores[selected]}
        return scores if self.champion is None else scores | {CHAMPION: self.champion}

    def columns(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """Return the columns of ``test_predictions.csv``; labels are positions in ``classes``."""
        columns = {
            "id": [one.decode() for one in self.ids.tolist()],
            "class": [classes[label] for label in self.labels],
        }
        rival = {} if self.champion is None else {CHAMPION: self.champion}
        for name, score in {**self.scores, **rival}.items():
            columns[name] = [classes[label] for label in score.predictions]
            columns[f"{name}_confidence"] = [f"{one:.6g}" for one in score.confidences]
        return columns


@dataclass(frozen=True)
class TrainingResult:
    """Everything that a run is written from; ``test`` is None where the test was left alone."""

    cache: CacheFacts
    options: Mapping[str, Any]
    division: Division
    fitted: FittedModels
    test: TestScores | None

    def write(self, folder: Path, clock: Clock) -> None:
        """Write every file of the run into ``folder``; the metrics last, with all seconds."""
        with clock.time("write"):
            for name, model in self.fitted.kept.items():
                model.save(folder / runs.MODEL_FILES[name])
            runs.write_history(folder, self.fitted.dense.history_)
            runs.write_split(folder, self._ids_by_part(), self._learned_by())
            if self.test is not None:
                runs.write_test_predictions(folder, self.test.columns(self.cache.classes))
            if self.fitted.folds is not None:
                self._write_folds(folder, self.fitted.folds)
            self._draw(folder)
        runs.write_metrics(folder, self.metrics(clock))

    def metrics(self, clock: Clock) -> dict[str, Any]:
        """Return what ``metrics.json`` says; the README lists the keys."""
        dense, logistic = (self._model_metrics(name) for name in (DENSE, LOGISTIC))
        path, refitted = self.fitted.path, self.fitted.kept[LOGISTIC]
        dense["epochs"] = self.fitted.dense.best_epoch_
        logistic |= {
            "C": path.probe.C,
            "converged": path.probe.converged_ and getattr(refitted, "converged_", False),
            "path": [asdict(point) for point in path.points],
            "n_rows_for_C": path.n_rows,
        }
        return {
            "kind": runs.HEAD_KIND,
            **{name: dense[name] for name in _HEADLINE},
            DENSE: dense,
            LOGISTIC: logistic,
            "selected": self.fitted.selected,
            "comparison": self._comparison(),
            "folds": None if self.fitted.folds is None else self.fitted.folds.facts(),
            **self._counts(),
            **self.options,
            **self._origin(),
            "seconds": clock.total,
            "seconds_by_part": clock.parts,
        }

    def _model_metrics(self, name: str) -> dict[str, Any]:
        """Return the figures of one model, what it was fitted to, and its size."""
        fitted = self.fitted
        return {
            **model_figures(name, fitted.validation[name], self.test),
            "fitted_to": "+".join(FITTED_TO[fitted.refit][name]),
            "temperature": fitted.temperatures[name],
            "temperature_from": "validation" if fitted.folds is None else "out-of-fold",
            "trainable_parameters": _n_trainable(fitted.kept[name]),
        }

    def _comparison(self) -> dict[str, Any]:
        """Return the paired comparison on validation."""
        comparison, fitted = self.fitted.comparison, self.fitted
        return {
            **asdict(comparison),
            "first": DENSE,
            "second": LOGISTIC,
            "is_beyond_noise": comparison.is_beyond_noise,
            "likely_cause": likely_cause(comparison, fitted.dense, fitted.path),
        }

    def _counts(self) -> dict[str, Any]:
        """Return the numbers of rows, classes and parameters."""
        test = self.test
        return {
            "n_train": len(self.division.training),
            "n_validation": len(self.division.validation),
            "n_dropped": len(self.division.dropped),
            "n_test": 0 if test is None else len(test.labels),
            "n_classes": len(self.cache.classes),
            "non_trainable_parameters": self.cache.provenance.backbone_parameters,
        }

    def _origin(self) -> dict[str, Any]:
        """Return where everything came from."""
        scorings = self.test and self.test.scorings
        return {
            "validation_drawn": self.division.drawn,
            "test_split": None if self.test is None else self.test.split,
            "test_scorings": scorings and asdict(scorings),
            "classes": self.cache.classes,
            "cache": str(self.cache.path),
            "recipe": asdict(self.cache.recipe),
            "provenance": asdict(self.cache.provenance),
            "versions": package_versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _ids_by_part(self) -> dict[str, list[bytes]]:
        """Return the ids of each part."""
        parts = {
            "train": self.division.training.ids,
            "validation": self.division.validation.ids,
            "test": np.empty(0, "S1") if self.test is None else self.test.ids,
            "dropped": self.division.dropped.ids,
        }
        if self.fitted.refit_rows is not None:
            parts["refit"] = self.fitted.refit_rows.ids
        return {part: ids.tolist() for part, ids in parts.items()}

    def _learned_by(self) -> dict[str, Sequence[str]]:
        """Return the names of the models that were fitted to each row of each part."""
        n_test = 0 if self.test is None else len(self.test.labels)
        told: dict[str, Sequence[str]] = {
            "test": [""] * n_test,
            "dropped": [""] * len(self.division.dropped),
        }
        parts = {
            "train": ("train", self.division.training),
            "validation": ("validation", self.division.validation),
            "refit": ("test", self.fitted.refit_rows),
        }
        for part, (name, rows) in parts.items():
            if rows is not None:
                told[part] = learners(self.fitted.kept, self.fitted.refit, name, rows.labels)
        return told

    def _write_folds(self, folder: Path, folds: OutOfFold) -> None:
        """Write what cross-validation found, and the rows that look mislabeled by it."""
        header = [one.name for one in fields(FoldScore)]
        rows = (astuple(score) for score in folds.scores)
        runs.write_table(folder / runs.FOLDS_FILE, header, rows)
        is_drawn = self.division.drawn | (folds.positions < len(self.division.training))
        splits = np.where(is_drawn, TRAINING_SPLIT, VALIDATION_SPLIT)
        table = folds.suspects.table(splits, folds.rows.ids, self.cache.classes)
        runs.write_table(folder / runs.SUSPECTS_FILE, SUSPECTS_HEADER, table)

    def _draw(self, folder: Path) -> None:
        """Draw the figures: the confusion of the selected model, on the test where it was seen."""
        fitted, name = self.fitted, self.fitted.selected
        draw_learning_curves(
            fitted.dense.history_,
            fitted.validation[LOGISTIC].accuracy,
            folder / runs.CURVES_FILE,
        )
        if self.test is None:
            rows = ScoredPart(
                "validation", self.division.validation.labels, fitted.validation[name]
            )
        else:
            rows = ScoredPart("test", self.test.labels, self.test.scores[name])
        rows.draw_confusion(TITLES[name], self.cache.classes, folder)


@dataclass(frozen=True)
class ScoredPart:
    """A model's score on the rows of a part, with their labels (n,)."""

    part: str
    labels: NDArray[np.int64]
    score: Score

    def draw_confusion(self, title: str, classes: Sequence[str], folder: Path) -> None:
        """Draw the confusion matrix into the folder of a run."""
        n_rows, accuracy = len(self.labels), self.score.accuracy
        draw_confusion_matrix(
            metrics.confusion_matrix(self.labels, self.score.predictions, len(classes)),
            classes,
            f"{title} on {n_rows:,} {self.part} rows\naccuracy {accuracy:.3f}",
            folder / runs.CONFUSION_FILE,
        )


def model_figures(name: str, validation: Score, test: TestScores | None) -> dict[str, Any]:
    """Return the figures of a model: those of validation, and those of the test, or None."""
    figures: dict[str, Any] = {
        "validation_accuracy": validation.accuracy,
        "validation_log_loss": validation.log_loss,
        "test_accuracy": None,
        "test_accuracy_ci95": None,
    }
    if test is not None:
        right = int((test.scores[name].predictions == test.labels).sum())
        figures["test_accuracy"] = test.scores[name].accuracy
        figures["test_accuracy_ci95"] = wilson_interval(right, len(test.labels))
    return figures


def title_of(model: str) -> str:
    """Return what a model of a run is called in prose; its name may have its cache's in front."""
    probe = model.rpartition(":")[2]
    return TITLES.get(probe, probe.replace("_", " ").capitalize())


def n_parameters(weights: Iterable[Any]) -> int:
    """Return how many numbers are in arrays or variables."""
    return sum(int(np.prod(one.shape)) for one in weights)


def _n_trainable(model: LogitsClassifier) -> int:
    """Return the number of parameters of one of a run's models."""
    if isinstance(model, DenseHead):
        return n_parameters(model.model_.trainable_weights)
    return n_parameters([getattr(model, name) for name in ("coef_", "intercept_")])


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that take part, where they are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
