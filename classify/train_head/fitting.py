"""How a run's two models are fitted to parts: the one recipe for training, for folds and refits."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from sklearn.base import clone

from classify.heads.dense import DenseHead, OnEpoch
from classify.heads.spec import HeadSpec
from classify.probes import LogisticPath, LogisticRegressionProbe, logistic_path
from classify.selection.division import Part


def choose_logistic(training: Part, validation: Part, class_weight: str | None) -> LogisticPath:
    """Fit logistic regressions to training rows, and choose C on validation rows."""
    return logistic_path(
        (training.features, training.labels),
        (validation.features, validation.labels),
        class_weight=class_weight,
    )


def refit_logistic(path: LogisticPath, rows: Part) -> LogisticRegressionProbe:
    """Return the chosen logistic regression refitted to rows, those of classes that it knows."""
    known = rows.take(np.isin(rows.labels, path.probe.classes_))
    return clone(path.probe).fit(known.features, known.labels, start=path.probe)


def fit_dense(
    spec: HeadSpec,
    n_classes: int,
    training: Part,
    validation: Part | None = None,
    *,
    start: DenseHead | None = None,
    on_epoch: OnEpoch | None = None,
) -> DenseHead:
    """Train the Dense head; see :meth:`classify.heads.dense.DenseHead.fit`."""
    head = DenseHead(**{one.name: getattr(spec, one.name) for one in fields(HeadSpec)})
    return head.fit(
        training.features,
        training.labels,
        classes=range(n_classes),
        validation_data=None if validation is None else (validation.features, validation.labels),
        on_epoch=on_epoch,
        start=start,
    )


def for_epochs(spec: HeadSpec, n_epochs: int) -> HeadSpec:
    """Return the configuration that trains for a number of epochs, whatever happens."""
    return replace(spec, epochs=n_epochs, patience=None)
