"""What training brought forth, and the files of a run that tell of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify import metrics, runs
from classify.comparison import PairedComparison, likely_cause
from classify.estimators import LogitsClassifier
from classify.heads import DenseHead
from classify.plots import draw_confusion_matrix, draw_learning_curves
from classify.probes import LogisticPath, LogisticRegressionProbe
from classify.runs import DENSE, LOGISTIC
from classify.scoring import Score
from classify.selection import Division
from classify.test_log import Scorings
from data_cache.recipe import Provenance, Recipe

TITLES = {DENSE: "Dense head", LOGISTIC: "Logistic regression"}
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
    """The two models, and what they reach on validation rows when fitted to training rows.

    ``dense`` is fitted to the training rows, and so is the probe in ``path``; ``logistic`` is that
    probe refitted, scaler included, to training and validation rows. ``validation`` has the score
    of ``dense`` and of the probe in ``path``; ``comparison`` pairs them in this order.
    """

    dense: DenseHead
    path: LogisticPath
    logistic: LogisticRegressionProbe
    validation: Mapping[str, Score]
    comparison: PairedComparison

    @property
    def kept(self) -> Mapping[str, LogitsClassifier]:
        """The models that the run keeps, by name."""
        return {DENSE: self.dense, LOGISTIC: self.logistic}

    @property
    def selected(self) -> str:
        """Name of the winner on validation: by accuracy, of equals by log loss."""
        scores = self.validation
        return max(scores, key=lambda name: (scores[name].accuracy, -scores[name].log_loss))


@dataclass(frozen=True)
class TestScores:
    """The one look at the test: ids and labels (n,), the score of each model that is kept."""

    split: str
    ids: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    scores: Mapping[str, Score]
    scorings: Scorings | None


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
            runs.write_split(folder, self._ids_by_part())
            self._draw(folder)
        runs.write_metrics(folder, self.metrics(clock))

    def metrics(self, clock: Clock) -> dict[str, Any]:
        """Return what ``metrics.json`` says; the README lists the keys."""
        dense, logistic = (self._model_metrics(name) for name in (DENSE, LOGISTIC))
        path = self.fitted.path
        logistic |= {
            "C": path.probe.C,
            "converged": path.probe.converged_ and self.fitted.logistic.converged_,
            "path": [asdict(point) for point in path.points],
        }
        return {
            **{name: dense[name] for name in dense if name != "fitted_to"},
            DENSE: dense,
            LOGISTIC: logistic,
            "selected": self.fitted.selected,
            "comparison": self._comparison(),
            **self._counts(),
            **self.options,
            **self._origin(),
            "seconds": clock.total,
            "seconds_by_part": clock.parts,
        }

    def _model_metrics(self, name: str) -> dict[str, Any]:
        """Return the figures of one model: validation's, and the test's or None."""
        validation = self.fitted.validation[name]
        figures: dict[str, Any] = {
            "validation_accuracy": validation.accuracy,
            "validation_log_loss": validation.log_loss,
            "test_accuracy": None,
            "test_accuracy_ci95": None,
            "fitted_to": "train" if name == DENSE else "train+validation",
        }
        if self.test is not None:
            right = int((self.test.scores[name].predictions == self.test.labels).sum())
            figures["test_accuracy"] = self.test.scores[name].accuracy
            figures["test_accuracy_ci95"] = metrics.wilson_interval(right, len(self.test.labels))
        return figures

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
        test, model = self.test, self.fitted.dense.model_
        return {
            "n_train": len(self.division.training),
            "n_validation": len(self.division.validation),
            "n_dropped": len(self.division.dropped),
            "n_test": 0 if test is None else len(test.labels),
            "n_classes": len(self.cache.classes),
            "trainable_parameters": sum(int(np.prod(w.shape)) for w in model.trainable_weights),
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
            "versions": _versions(),
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
        return {part: ids.tolist() for part, ids in parts.items()}

    def _draw(self, folder: Path) -> None:
        """Draw the figures: the confusion of the selected model, on the test where it was seen."""
        fitted, name = self.fitted, self.fitted.selected
        draw_learning_curves(
            fitted.dense.history_,
            fitted.validation[LOGISTIC].accuracy,
            folder / runs.CURVES_FILE,
        )
        if self.test is None:
            part, labels, score = "validation", self.division.validation.labels, fitted.validation
        else:
            part, labels, score = "test", self.test.labels, dict(self.test.scores)
        draw_confusion_matrix(
            metrics.confusion_matrix(labels, score[name].predictions, len(self.cache.classes)),
            self.cache.classes,
            f"{TITLES[name]} on {len(labels):,} {part} rows\naccuracy {score[name].accuracy:.3f}",
            folder / runs.CONFUSION_FILE,
        )


def _versions() -> dict[str, str]:
    """Return the versions of the packages that take part, where they are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
