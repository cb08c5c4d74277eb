"""How far a model's confidence can be believed, and one number that mends it.

Logits are (n, k) scores whose softmax is the probability of each class; labels are (n,) positions
among the k classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from classify.statistics.metrics import softmax

MOST_BINS = 15
FEWEST_ROWS = 50
"""A bin has this many rows or more (except where there are fewer in all): the interval of the
calibration error takes a bin's mean to be about normal."""

TEMPERATURE_RANGE = (0.01, 100.0)
"""What :func:`fit_temperature` can return. Wide enough for scores within [-1, 1] as well as for
logits in the hundreds; its ends are reached only where no temperature within it is best."""


_N_DRAWS = 10_000


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the temperature T with the least log loss of ``softmax(logits / T)``, smoothed.

    Above 1 the model was too sure of itself, below 1 not sure enough. C. Guo et al. (2017), "On
    calibration of modern neural networks", ICML, arXiv:1706.04599. One more row counts, the mean of
    all rows, whose label is each class in equal parts: rows that are all right, as a few often are,
    would otherwise ask for endless confidence. Of n rows with k = 2 and equal margins, all right,
    the confidence becomes (n + 1/2) / (n + 1).

    The loss is convex in 1 / T, so T is where its slope is zero, solved to a relative 1e-10. Where
    no T within :data:`TEMPERATURE_RANGE` is best, the end next to the best is returned: the highest
    where the logits tell less than nothing. Where T makes no difference (the logits of each row are
    equal) it is 1.

    Raises
    ------
    ValueError
        There are no rows, or a logit is not finite.
    """
    from scipy.optimize import brentq

    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError("a temperature is fitted to one row or more, of finite logits")
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    lowest, highest = TEMPERATURE_RANGE
    if not shifted.any():
        return 1.0
    of_labels = np.take_along_axis(shifted, labels[:, None], axis=1)
    target = (of_labels.sum() + shifted.mean()) / (len(labels) + 1)
    slope = partial(_slope, shifted, target)
    if not slope(log(lowest)) > 0:
        return lowest
    if not slope(log(highest)) < 0:
        return highest
    return exp(brentq(slope, log(lowest), log(highest), xtol=1e-10))


def _slope(logits: NDArray[np.float64], target: float, log_temperature: float) -> float:
    """Return the slope of the log loss in 1 / T: the expected logit less that of the labels."""
    expected = softmax(logits / exp(log_temperature)) * logits
    return float(expected.sum(axis=1).mean() - target)


def apply_temperature(logits: NDArray[np.floating], temperature: float) -> NDArray[np.floating]:
    """Return logits (n, k) of the same predictions, whose softmax is as sure as T makes it."""
    return logits / temperature


@dataclass(frozen=True)
class Reliability:
    """Rows in bins of rising confidence, arrays (m,): what a reliability diagram draws.

    A row's confidence is the probability of the class that it is predicted as. ``confidence`` and
    ``accuracy`` are a bin's means, in [0, 1], and ``n_rows`` its size. ``covariance`` (m, m) is
    that of the bins' gaps, confidence less accuracy, from one draw of rows to another.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    n_rows: NDArray[np.int64]
    covariance: NDArray[np.float64]

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of all rows in each bin, (m,), in (0, 1]."""
        return self.n_rows / self.n_rows.sum()

    @property
    def error(self) -> float:
        """The expected calibration error (ECE), in [0, 1]: the mean |gap|, weighted by rows.

        It is biased upward: see :attr:`error_by_chance`.
        """
        return float(self.share @ np.abs(self.confidence - self.accuracy))

    @property
    def error_by_chance(self) -> float:
        """The :attr:`error` that these rows would give, on average, with no gap in any bin.

        An error near this one says nothing against the model.
        """
        return sqrt(2 / np.pi) * float(self.share @ np.sqrt(self.covariance.diagonal()))

    def error_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval for the error that endless rows would give in these bins.

        The bootstrap fails here: what it adds to |gap| is the same bias once more. Instead, with
        gaps g = true gaps + e and e normal with ``covariance``: by the triangle inequality the
        error is above the true one by at most the mean |e|, and by convexity it is below it by at
        most the mean of ± e, whichever signs. The upper quantiles of these two make the ends. So
        it covers at least as often as it should, more often where the model is calibrated.
        """
        level = (1 + confidence) / 2
        weighted = self.covariance * np.outer(self.share, self.share)
        noise = np.random.default_rng(0).multivariate_normal(
            np.zeros(len(weighted)), weighted, size=_N_DRAWS, method="eigh"
        )
        above = float(np.quantile(np.abs(noise).sum(axis=1), level))
        below = NormalDist().inv_cdf(level) * sqrt(np.abs(weighted).sum())
        return max(0.0, self.error - above), min(1.0, self.error + below)


def reliability(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray | None = None,
    n_bins: int | None = None,
) -> Reliability:
    """Return :func:`reliability_of` the confidences that the logits (n, k) give."""
    right = logits.argmax(axis=1) == labels
    return reliability_of(softmax(logits).max(axis=1, initial=0), right, groups, n_bins)


def reliability_of(
    confidence: NDArray[np.floating],
    right: NDArray[np.bool_],
    groups: NDArray | None = None,
    n_bins: int | None = None,
) -> Reliability:
    """Return rows of confidence (n,), right or wrong, in bins of as many rows each as can be.

    There are ``n_bins`` bins; by default :data:`MOST_BINS` (as C. Guo et al., 2017), or fewer so
    that each has :data:`FEWEST_ROWS`. Equal bins of mass rather than of width: R. Roelofs et al.
    (2022), "Mitigating bias in calibration error estimation", AISTATS, arXiv:2012.08668. Rows of
    equal confidence share a bin, whatever their order, so there can be fewer bins, of unequal size.

    With groups (n,), the covariance is of groups that are drawn whole; a bin's variance is not
    taken to be less than that of as many rows without groups.

    Raises
    ------
    ValueError
        There are no rows.
    """
    if not len(right):
        raise ValueError("there are no rows: expected some to measure calibration on")
    bins = _equal_mass_bins(confidence, n_bins or _n_bins(len(right)))
    n_rows = np.bincount(bins)
    accuracy = np.bincount(bins, weights=right) / n_rows
    variances = _proportion_variances(accuracy, n_rows)
    covariance = np.diag(variances)
    if groups is not None:
        covariance = _group_covariance(confidence - right, bins, groups)
        np.fill_diagonal(covariance, np.maximum(covariance.diagonal(), variances))
    return Reliability(
        confidence=np.bincount(bins, weights=confidence) / n_rows,
        accuracy=accuracy,
        n_rows=n_rows,
        covariance=covariance,
    )


def _n_bins(n: int) -> int:
    """Return the number of bins for n rows, when nobody asks for another."""
    return min(MOST_BINS, max(1, n // FEWEST_ROWS))


def _equal_mass_bins(confidence: NDArray[np.floating], n_bins: int) -> NDArray[np.intp]:
    """Return each row's bin (n,), 0 to m - 1 without gaps, of about as many rows each."""
    starts = np.sort(confidence)[len(confidence) * np.arange(1, n_bins) // n_bins]
    bins = np.searchsorted(starts, confidence, side="right")
    return np.unique(bins, return_inverse=True)[1]


def _proportion_variances(
    accuracy: NDArray[np.float64], n_rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the variances (m,) of the bins' accuracies, as of proportions of independent rows.

    Two right and two wrong rows are added to a bin, so that it is not 0 where all are right.
    A. Agresti, B. A. Coull (1998), "Approximate is better than 'exact' for interval estimation of
    binomial proportions", The American Statistician 52, 119-126.
    """
    smoothed = (n_rows * accuracy + 2) / (n_rows + 4)
    return smoothed * (1 - smoothed) / n_rows


def _group_covariance(
    gaps: NDArray[np.floating], bins: NDArray[np.intp], groups: NDArray
) -> NDArray[np.float64]:
    """Return the covariance (m, m) of the bins' mean gaps, if groups are independent.

    Each bin's mean is a ratio of the groups' sums, so what a group adds to its error is the sum of
    its rows' distances from the mean, over the bin's size.
    """
    group_of_row = np.unique(groups, return_inverse=True)[1]
    n_groups, n_rows = int(group_of_row.max()) + 1, np.bincount(bins)
    distances = (gaps - (np.bincount(bins, weights=gaps) / n_rows)[bins]) / n_rows[bins]
    places = group_of_row * len(n_rows) + bins
    sums = np.bincount(places, weights=distances, minlength=n_groups * len(n_rows))
    by_group = sums.reshape(n_groups, len(n_rows))
    return by_group.T @ by_group * n_groups / max(1, n_groups - 1)
