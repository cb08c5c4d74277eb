"""A fitted model measured on labeled rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classify import metrics
from classify.estimators import LogitsClassifier


@dataclass(frozen=True)
class Score:
    """What a model reaches on rows: predictions (n,), accuracy in [0, 1], log loss in nats.

    The log loss is over the rows whose class the model knows; with none it is NaN. The accuracy is
    over all rows.
    """

    predictions: NDArray
    accuracy: float
    log_loss: float


def score(model: LogitsClassifier, features: NDArray[np.floating], labels: NDArray) -> Score:
    """Measure a fitted model on features (n, d) and labels (n,)."""
    logits = model.logits(features)
    predictions = model.classes_[logits.argmax(axis=1)]
    codes = np.searchsorted(model.classes_, labels).clip(max=len(model.classes_) - 1)
    known = model.classes_[codes] == labels
    return Score(
        predictions=predictions,
        accuracy=metrics.accuracy(labels, predictions),
        log_loss=metrics.log_loss(codes[known], logits[known]) if known.any() else float("nan"),
    )
