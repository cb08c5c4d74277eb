"""Refits of a tuned probe: to all rows for keeping, and fold by fold for its temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from classify.estimators import LogitsClassifier, logits_of
from classify.heads.batches import TrainingData
from classify.heads.dense import DenseHead
from classify.heads.many import train_many_heads
from classify.heads.spec import HeadSpec
from classify.probes import LogisticRegressionProbe, TriedPoint
from classify.probes.tuning import measure
from classify.selection.division import Part
from classify.selection.folds import ALWAYS_TRAINED
from classify.streams import Features

UNKNOWN = -np.inf
"""The logit of a class that a model never saw."""


@dataclass(frozen=True)
class HeldOut:
    """Rows that a probe's configuration was measured on without having been fitted to them.

    Attributes
    ----------
    logits : (n, k), :data:`UNKNOWN` for classes that a fold's model never saw
    labels : (n,) positions among the k classes
    """

    logits: NDArray[np.floating]
    labels: NDArray[np.int64]

    def temperature(self) -> float | None:
        """Return the best temperature, over the classes that every fold's model knew.

        None where no row is of such a class.
        """
        known = np.isfinite(self.logits).all(axis=0)
        point = self.point({})
        return point.temperature if known[self.labels].any() else None

    def point(self, hyperparameters: Mapping[str, Any]) -> TriedPoint:
        """Return what hyperparameters reach on these rows; see the class of what is returned."""
        known = np.flatnonzero(np.isfinite(self.logits).all(axis=0))
        return measure(hyperparameters, self.logits[:, known], known, self.labels)


def refit(probe: LogitsClassifier, rows: Part, n_classes: int) -> LogitsClassifier:
    """Return the probe's configuration fitted to other rows (n, d)."""
    fresh = clone(probe)
    if isinstance(fresh, DenseHead):
        return fresh.fit(rows.features, rows.labels, classes=range(n_classes))
    if isinstance(fresh, LogisticRegressionProbe):
        return fresh.fit(rows.features, rows.labels, start=probe)
    return fresh.fit(rows.features, rows.labels)


def all_logits(model: LogitsClassifier, features: Features, n_classes: int) -> NDArray[np.float32]:
    """Return logits (n, k) of features (n, d), with a column for every class there is."""
    logits = np.full((len(features), n_classes), UNKNOWN, np.float32)
    logits[:, model.classes_] = logits_of(model, features)
    return logits


def out_of_fold(
    probe: LogitsClassifier, rows: Part, fold_of: NDArray[np.int64], n_classes: int
) -> HeldOut:
    """Fit the probe's configuration to all folds but one, for each, and take that one's logits.

    ``fold_of`` (n,) are the folds of the rows, see :func:`classify.selection.folds.draw_folds`.
    """
    logits = np.full((len(rows), n_classes), UNKNOWN, np.float32)
    for fold in np.unique(fold_of[fold_of != ALWAYS_TRAINED]):
        held_out = fold_of == fold
        logits[held_out] = _fold_logits(probe, rows, held_out, n_classes)
    there = fold_of != ALWAYS_TRAINED
    return HeldOut(logits[there], rows.labels[there])


def _fold_logits(
    probe: LogitsClassifier, rows: Part, held_out: NDArray[np.bool_], n_classes: int
) -> NDArray[np.float32]:
    """Return the logits of held-out rows; a Dense head's without the price of Keras's ``fit``."""
    training, other = rows.take(~held_out), rows.take(held_out)
    if not isinstance(probe, DenseHead):
        return all_logits(refit(probe, training, n_classes), other.features, n_classes)
    spec = HeadSpec(**{one.name: getattr(probe, one.name) for one in fields(HeadSpec)})
    data = TrainingData(training.features, training.labels, n_classes, other.features, other.labels)
    ((_, head),) = train_many_heads([spec], data)
    return head.validation_logits
