"""Every figure that is ever reported of a model: the only place that knows their formulas.

Labels and predictions are (n,) integers, positions among k classes; logits are (n, k) scores whose
:func:`softmax` is the probability of each class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (n, k) probabilities, each row in [0, 1] with sum 1: exp(z_j) / sum_i exp(z_i)."""
    return np.exp(log_softmax(logits))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logarithms of :func:`softmax`, (n, k), finite wherever the logits are.

    The largest logit of a row is subtracted first, so nothing overflows.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the share of rows, in [0, 1], whose prediction is the label; NaN for no rows."""
    right = np.asarray(labels) == np.asarray(predictions)
    return float(right.mean()) if right.size else float("nan")


def log_losses(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return -ln p(label) of each row, (n,), in nats: 0 is perfect, ln k is guessing."""
    return -np.take_along_axis(log_softmax(logits), labels[:, None], axis=1)[:, 0]


def log_loss(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> float:
    """Return the mean of :func:`log_losses`; NaN for no rows."""
    return float(log_losses(labels, logits).mean()) if len(labels) else float("nan")


def brier_losses(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each row's Brier loss (n,), the sum over classes of (p_j - [j is the label])².

    0 is perfect, 2 is certain and wrong. G. W. Brier (1950), "Verification of forecasts expressed
    in terms of probability", Monthly Weather Review 78, 1-3: the sum over all classes, which for
    two classes is twice the sum that some use.
    """
    misses = softmax(logits)
    misses[np.arange(len(labels)), labels] -= 1
    return np.square(misses).sum(axis=1)


def brier_score(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> float:
    """Return the mean of :func:`brier_losses`, in [0, 2]; NaN for no rows."""
    return float(brier_losses(labels, logits).mean()) if len(labels) else float("nan")


def confusion_matrix(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], n_classes: int
) -> NDArray[np.int64]:
    """Return (k, k) counts: row i, column j holds the rows of class i predicted as class j."""
    cells = np.bincount(labels * n_classes + predictions, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes)


def balanced_accuracy(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], n_classes: int
) -> float:
    """Return :func:`balanced_accuracy_of_counts` of the rows."""
    return float(balanced_accuracy_of_counts(confusion_matrix(labels, predictions, n_classes)))


def macro_f1(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], n_classes: int
) -> float:
    """Return :func:`macro_f1_of_counts` of the rows."""
    return float(macro_f1_of_counts(confusion_matrix(labels, predictions, n_classes)))


def balanced_accuracy_of_counts(counts: NDArray) -> NDArray[np.float64]:
    """Return the mean of the classes' recalls, in [0, 1], over the classes that have rows.

    A class's recall is the share of its rows that are predicted right. ``counts`` are confusion
    matrices (..., k, k), the result is (...); NaN for no rows.
    """
    return _mean_of_seen(_right(counts), counts.sum(axis=-1))


def macro_f1_of_counts(counts: NDArray) -> NDArray[np.float64]:
    """Return the mean F1, in [0, 1], over the classes that have rows or were predicted.

    F1 is 2 TP / (2 TP + FP + FN), of a class's true and false positives and its false negatives.
    ``counts`` are confusion matrices (..., k, k), the result is (...); NaN for no rows.
    """
    return _mean_of_seen(2 * _right(counts), counts.sum(axis=-2) + counts.sum(axis=-1))


@dataclass(frozen=True)
class ClassFigures:
    """Each class on its own: arrays (k,).

    ``support`` is the number of rows of the class, ``n_predicted`` of those predicted as it.
    ``precision`` is the share of the latter that are right, ``recall`` of the former, and ``f1``
    is 2 TP / (support + n_predicted): each in [0, 1], NaN where it would be a share of none.
    """

    support: NDArray[np.int64]
    n_predicted: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def class_figures(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], n_classes: int
) -> ClassFigures:
    """Return precision, recall, F1 and support of every class."""
    counts = confusion_matrix(labels, predictions, n_classes)
    support, n_predicted, right = counts.sum(axis=1), counts.sum(axis=0), _right(counts)
    return ClassFigures(
        support=support,
        n_predicted=n_predicted,
        precision=_share(right, n_predicted),
        recall=_share(right, support),
        f1=_share(2 * right, support + n_predicted),
    )


def missing_classes(labels: NDArray[np.integer], n_classes: int) -> NDArray[np.intp]:
    """Return the positions of the classes that no row has, ascending.

    Balanced accuracy says nothing of them, and macro F1 holds only how often they were predicted.
    """
    return np.flatnonzero(np.bincount(labels, minlength=n_classes) == 0)


def _right(counts: NDArray) -> NDArray:
    """Return the diagonals (..., k) of confusion matrices (..., k, k)."""
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _share(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    """Return part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean_of_seen(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    """Return the mean over the last axis of the shares of a whole above 0."""
    seen = whole > 0
    shares = np.divide(part, whole, out=np.zeros(np.shape(whole)), where=seen)
    return _share(shares.sum(axis=-1), seen.sum(axis=-1))
