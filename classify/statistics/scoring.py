"""A fitted model measured on labeled rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.estimators import LogitsClassifier, logits_of
from classify.statistics import metrics


@dataclass(frozen=True)
class Score:
    """What a model reaches on rows: predictions (n,), accuracy in [0, 1], log loss in nats.

    ``confidences`` (n,) float64 are the probabilities of what is predicted. The log loss is over
    the rows whose class the model knows; with none it is NaN. The accuracy is over all rows.
    """

    predictions: NDArray
    confidences: NDArray[np.float64]
    accuracy: float
    log_loss: float


def score(model: LogitsClassifier, features: Any, labels: NDArray) -> Score:
    """Measure a fitted model on features (n, d), which may be streamed, and labels (n,)."""
    return score_logits(logits_of(model, features), labels, model.classes_)


def score_logits(logits: NDArray[np.floating], labels: NDArray, classes: NDArray) -> Score:
    """Measure logits (n, k) on labels (n,); ``classes`` (k,), sorted, are what the columns mean."""
    predictions = classes[logits.argmax(axis=1)]
    known, codes = known_codes(classes, labels)
    return Score(
        predictions=predictions,
        confidences=metrics.softmax(logits).max(axis=1),
        accuracy=metrics.accuracy(labels, predictions),
        log_loss=metrics.log_loss(codes, logits[known]) if known.any() else float("nan"),
    )


def known_codes(classes: NDArray, labels: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which labels (n,) are among sorted ``classes`` (k,), a mask, and their positions."""
    codes = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    known = classes[codes] == labels
    return known, codes[known]
