"""The Dense head, tuned as the probes are: many heads in one pass, one chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product

import numpy as np

from classify.heads.batches import TrainingData
from classify.heads.dense import DenseHead
from classify.heads.many import train_many_heads
from classify.heads.spec import HeadSpec
from classify.probes.linear import refuse_one_class
from classify.probes.tuning import Rows, TriedPoint, TunedProbe, Tuning, choose, measure

DENSE_GRID: tuple[HeadSpec, ...] = tuple(
    HeadSpec(
        learning_rate=rate, dropout=dropout, weight_decay=decay, standardize=True, epochs=epochs
    )
    for rate, dropout, decay, epochs in product((1e-4, 3e-4, 1e-3), (0.2, 0.5), (0.0, 1.0), (5, 20))
)
"""The configurations without a hidden layer that :func:`tune_dense` tries."""

HIDDEN_GRID: tuple[HeadSpec, ...] = tuple(
    HeadSpec(
        hidden_units=width,
        dropout=dropout,
        learning_rate=3e-4,
        batch_size=128,
        epochs=40,
        patience=4,
        standardize=True,
        weight_decay=0.1,
    )
    for width, dropout in ((480, 0.5), (1024, 0.5), (1024, 0.7))
)
"""The configurations with a hidden layer that :func:`tune_dense_hidden` tries."""

_TRIED = ("learning_rate", "dropout", "weight_decay", "label_smoothing", "hidden_units", "epochs")


def tune_dense(
    training: Rows,
    validation: Rows,
    tuning: Tuning,
    *,
    specs: Sequence[HeadSpec] = DENSE_GRID,
) -> TunedProbe:
    """Train every configuration side by side, choose on validation rows, train the choice again.

    That is for Keras to make the model that is kept, for as many epochs as were best.

    Raises
    ------
    DataError
        The training rows have one class only.
    TrainingError
        The choice diverged.
    """
    refuse_one_class(training[1])
    classes, codes = np.unique(training[1], return_inverse=True)
    specs = [replace(one, class_weight=tuning.class_weight, seed=tuning.seed) for one in specs]
    data = TrainingData(training[0], codes, len(classes), *_known(validation, classes))
    found: dict[int, tuple[HeadSpec, TriedPoint]] = {}
    for position, head in train_many_heads(specs, data):
        spec = replace(head.spec, epochs=head.n_epochs, patience=None)
        tried = {name: getattr(spec, name) for name in _TRIED}
        logits = head.validation_logits
        labels = classes[data.validation_labels]
        found[position] = spec, measure(tried, np.nan_to_num(logits), classes, labels)
    ordered = [found[position] for position in range(len(specs))]
    spec, best = ordered[choose([point for _, point in ordered], tuning.select_by)]
    probe = DenseHead(**asdict(spec)).fit(*training)
    return TunedProbe(probe, best.hyperparameters, tuple(point for _, point in ordered))


def tune_dense_hidden(training: Rows, validation: Rows, tuning: Tuning) -> TunedProbe:
    """Do the same for heads with a hidden layer; see :func:`tune_dense`."""
    return tune_dense(training, validation, tuning, specs=HIDDEN_GRID)


def _known(validation: Rows, classes: np.ndarray) -> Rows:
    """Return the validation rows of classes that have training rows, their labels as codes."""
    known = np.isin(validation[1], classes)
    return validation[0][known], np.searchsorted(classes, validation[1][known])
