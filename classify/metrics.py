"""Every figure that is ever reported of a model: the only place that knows their formulas.

Labels and predictions are (n,) integers, positions among k classes; logits are (n, k) scores whose
:func:`softmax` is the probability of each class.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

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


def log_loss(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> float:
    """Return the mean over rows of -ln p(label), in nats: 0 is perfect, ln k is guessing."""
    return float(-np.take_along_axis(log_softmax(logits), labels[:, None], axis=1).mean())


def confusion_matrix(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], n_classes: int
) -> NDArray[np.int64]:
    """Return (k, k) counts: row i, column j holds the rows of class i predicted as class j."""
    cells = np.bincount(labels * n_classes + predictions, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes)


def balanced_accuracy(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], n_classes: int
) -> float:
    """Return the mean of the classes' recalls, in [0, 1], over the classes that have rows.

    A class's recall is the share of its rows that are predicted right. NaN for no rows.
    """
    counts = confusion_matrix(labels, predictions, n_classes)
    sizes = counts.sum(axis=1)
    seen = sizes > 0
    return float((counts.diagonal()[seen] / sizes[seen]).mean()) if seen.any() else float("nan")


def macro_f1(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], n_classes: int
) -> float:
    """Return the mean F1, in [0, 1], over the classes that have rows or were predicted.

    F1 is 2 TP / (2 TP + FP + FN), of a class's true and false positives and its false negatives.
    NaN for no rows.
    """
    counts = confusion_matrix(labels, predictions, n_classes)
    sizes = counts.sum(axis=0) + counts.sum(axis=1)
    seen = sizes > 0
    return float((2 * counts.diagonal()[seen] / sizes[seen]).mean()) if seen.any() else float("nan")


def wilson_interval(n_right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval for a proportion: low and high, within [0, 1].

    With p = ``n_right`` / n and z the normal quantile of (1 + confidence) / 2::

        (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n)

    It covers the sampling of rows alone. E. B. Wilson (1927), "Probable inference, the law of
    succession, and statistical inference", JASA 22, 209-212.

    Raises
    ------
    ValueError
        n is not positive, or ``n_right`` is not within [0, n].
    """
    if not 0 <= n_right <= n or n == 0:
        raise ValueError(f"{n_right} right of {n}: expected 0 <= right <= n and n > 0")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = n_right / n
    center = share + z**2 / (2 * n)
    half_width = z * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return max(0.0, (center - half_width) / scale), min(1.0, (center + half_width) / scale)


def mcnemar_mid_p(n_only_first: int, n_only_second: int) -> float:
    """Return the exact McNemar mid-p value of two models on the same rows, in (0, 1].

    Of the rows that exactly one model gets right, ``n_only_first`` are the first's. If neither
    model is better, their number B is binomial(n, 1/2), with n both counts' sum. The value is
    P(|B - n/2| > d) + P(|B - n/2| = d) / 2, d being what was seen; 1 where the models never
    differ. Rows are taken to be independent.

    M. W. Fagerland, S. Lydersen, P. Laake (2013), "The McNemar test for binary matched-pairs
    data: mid-p and asymptotic are better than exact conditional", BMC Med Res Methodol 13:91.
    """
    from scipy.stats import binom

    n, fewer = n_only_first + n_only_second, min(n_only_first, n_only_second)
    if n == 0:
        return 1.0
    as_seen = float(binom.pmf(fewer, n, 0.5))
    if n_only_first == n_only_second:
        return 1 - as_seen / 2
    return 2 * float(binom.cdf(fewer, n, 0.5)) - as_seen
