"""Intervals for every figure that is reported: where the figure of all such images may lie.

Each covers the sampling of test rows alone: not the draw of the training rows, nor the seed. With
``groups`` (n,), rows of one group (a person, a scene) belong together and are drawn together.
The same rows give the same interval. Labels are (n,) positions among k classes, logits (n, k).

How each is made, and how often it held the truth, at a nominal 95%, in simulations with n
from 100 to 10,000, an accuracy from 0.6 to 0.99, and 10 classes, or 20 to 50 of five to two rows
(``tests/stress/test_coverage.py``):

- accuracy: :func:`wilson_interval`. Not simulated but computed: 95% on average over accuracies, and
  93% or more at all of them from n = 407 on. Below that, slivers of accuracy next to the end of an
  interval, 0.24% of all at n = 100 and 0.04% from n = 132 on, have 92.6 to 93%. Its ends of four
  mistakes and more are Wilson's, as in the source: a fourth moved would mend one sliver of four.
- log loss, Brier score, and every mean of bounded values: :func:`mean_interval`, 93% or more. BCa
  fails here: 60 to 90% at an accuracy of 0.99 with up to 300 rows, of which none need be wrong.
- balanced accuracy and macro F1: :func:`counts_interval`, a rescaled stratified BCa that is widened
  in the same way, 93% or more where classes have two rows or more. A class whose rows are all alike
  seems not to vary: 87% at an accuracy of 0.6 where one class of two rows stands among classes of
  110, and less where many classes have one row.
- calibration error: :meth:`classify.statistics.calibration.Reliability.error_interval`, 95% or
  more.
- the same with groups: 93% or more for 50 groups or more, of 10 or 20 rows as good as alike.
- two models on the same rows: :func:`paired_difference_interval` for the accuracy, 94% or more; for
  a loss, :func:`mean_interval` of the rows' differences, bounds (-highest, highest); for others,
  :func:`classify.statistics.bootstrap.bca_interval`, within its limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from classify.statistics import metrics
from classify.statistics.bootstrap import (
    Statistic,
    bca_interval,
    cluster_bca_interval,
    stratified_mean,
)

_N_DRAWS = 2_000
_N_FOR_MEAN = 500
_BLOCK = 2**21
_SEED = 0
_NEXT = 1e-9

# The counts next to a boundary for which Brown, Cai and DasGupta move an end of Wilson's interval:
# up to three, in a sample of no more than 50 up to two.
_FEW = 3
_SMALL = 50

# Stands for m - 2 in a class of m = 2 rows, where 0 would be no distribution.
_LEAST = 0.1


def wilson_interval(n_right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval for a proportion: low and high, within [0, 1].

    With p = ``n_right`` / n and z the normal quantile of (1 + confidence) / 2::

        (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n)

    Of one, two or three mistakes (up to n = 50: one or two) the high end is moved outward, and the
    low end of as few right rows likewise: to the mean, over n, of the Poisson distribution that has
    so many or more in 1 - confidence of all samples. Where so few are to be expected, no sample has
    too few of them, and all the error is in this one tail.

    It covers the sampling of rows alone. E. B. Wilson (1927), "Probable inference, the law of
    succession, and statistical inference", JASA 22, 209-212; the moved ends: L. D. Brown, T. T.
    Cai, A. DasGupta (2001), "Interval estimation for a binomial proportion", Statistical Science
    16, 101-133.

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
    low = min((center - half_width) / scale, _low_end_of_few(n_right, n, confidence))
    high = max((center + half_width) / scale, 1 - _low_end_of_few(n - n_right, n, confidence))
    return max(0.0, low), min(1.0, high)


def _low_end_of_few(count: int, n: int, confidence: float) -> float:
    """Return the moved low end of a share of few; of none, and of many, the share itself."""
    most = _FEW if n > _SMALL else _FEW - 1
    if not 0 < count <= most:
        return count / n
    from scipy.special import gammaincinv

    return float(gammaincinv(count, 1 - confidence)) / n


def mean_interval(
    values: NDArray,
    bounds: tuple[float, float],
    groups: NDArray | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval for the mean of values (n,) that cannot lie outside ``bounds``.

    The low end is a quantile of the weighted means of the values and one more value at the lowest
    bound, with weights drawn from the flat Dirichlet distribution; the high end likewise with the
    highest bound. Of zeros and ones this is the Clopper-Pearson interval. No distribution is known
    that it covers less often than it should. N. Gaffke (2005), "Three test statistics for a
    nonparametric one-sided hypothesis on the mean of a nonnegative variable", Mathematical Methods
    of Statistics 14, 451-467; E. Learned-Miller, P. S. Thomas (2020), "A new confidence interval
    for the mean of a bounded random variable", arXiv:1905.06208.

    With groups, a group's sum and size take the place of a value, and the value at the bound is
    that of a group of mean size: this is no longer covered by the papers, only by simulation.

    Raises
    ------
    ValueError
        There are no values, or one lies outside the bounds.
    """
    lowest, highest = bounds
    if not len(values) or values.min() < lowest or values.max() > highest:
        raise ValueError(f"one value or more was expected, within {lowest:g} and {highest:g}")
    sums, sizes = _sums(values, groups)
    lows, highs = [], []
    for weights, of_bound in _flat_weights(len(sums)):
        total, extra = weights @ sums, of_bound * sizes.mean()
        n = weights @ sizes + extra
        lows.append((total + extra * lowest) / n)
        highs.append((total + extra * highest) / n)
    low, high = (1 - confidence) / 2, (1 + confidence) / 2
    return (
        float(np.quantile(np.concatenate(lows), low)),
        float(np.quantile(np.concatenate(highs), high)),
    )


def accuracy_interval(
    labels: NDArray, predictions: NDArray, groups: NDArray | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval for the accuracy: Wilson's, or with groups :func:`mean_interval`."""
    right = labels == predictions
    if groups is None:
        return wilson_interval(int(right.sum()), len(right), confidence)
    return mean_interval(right, (0, 1), groups, confidence)


def log_loss_interval(
    labels: NDArray[np.integer],
    logits: NDArray[np.floating],
    groups: NDArray | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval for the log loss, in nats, by :func:`mean_interval`.

    A loss has no bound; :func:`highest_log_loss` stands in for it.
    """
    losses, highest = metrics.log_losses(labels, logits), highest_log_loss(labels, logits)
    return mean_interval(losses, (0, highest), groups, confidence)


def highest_log_loss(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> float:
    """Return a loss, in nats, above which another row is hardly to be expected.

    It is what the surest row would have lost if its second most probable class had been right, or
    the highest loss there is if that is more.
    """
    second = np.partition(metrics.log_softmax(logits), -2, axis=1)[:, -2]
    return float(max(metrics.log_losses(labels, logits).max(), -second.min()))


def brier_interval(
    labels: NDArray[np.integer],
    logits: NDArray[np.floating],
    groups: NDArray | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval for the Brier score, which is within [0, 2], by :func:`mean_interval`."""
    return mean_interval(
        metrics.brier_losses(labels, logits).clip(0, 2), (0, 2), groups, confidence
    )


def balanced_accuracy_interval(
    labels: NDArray[np.integer],
    predictions: NDArray[np.integer],
    n_classes: int,
    groups: NDArray | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval for the balanced accuracy, as :func:`counts_interval`."""
    figure = metrics.balanced_accuracy_of_counts
    return counts_interval(figure, (labels, predictions), n_classes, groups, confidence)


def macro_f1_interval(
    labels: NDArray[np.integer],
    predictions: NDArray[np.integer],
    n_classes: int,
    groups: NDArray | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval for the macro F1, as :func:`counts_interval`."""
    figure = metrics.macro_f1_of_counts
    return counts_interval(figure, (labels, predictions), n_classes, groups, confidence)


def counts_interval(
    figure: Callable[[NDArray], NDArray[np.float64]],
    rows: tuple[NDArray[np.integer], NDArray[np.integer]],
    n_classes: int,
    groups: NDArray | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval for a figure of the confusion matrix of rows: (labels, predictions).

    ``figure`` maps matrices (..., k, k) to values (...) in [0, 1], falling with mistakes. The
    interval is the union of two. One is :func:`classify.statistics.bootstrap.bca_interval`, each
    class being a stratum, rescaled, or :func:`~classify.statistics.bootstrap.cluster_bca_interval`
    with groups. The other one knows that a mistake is possible where none was made: the figure with
    Dirichlet weights on each class's rows (or flat ones on the groups), its low end with one more
    row of the rarest class (or a group of mean size) gone wrong, both moved against the bias that
    the weights add and that of the figure in so few rows, which the bootstrap tells.

    The weights of a class of m rows vary as m - 1 rows drawn with replacement do. The row gone
    wrong may weigh more than a small class can lose: classes nearly as rare share it.

    Raises
    ------
    ValueError
        There are fewer than two rows, or fewer than two groups.
    """
    cells = rows[0] * n_classes + rows[1]
    counts = metrics.confusion_matrix(*rows, n_classes)
    observed = float(figure(counts))
    if groups is None:
        seen = np.flatnonzero(counts)
        classes, n_seen = seen // n_classes, counts.ravel()[seen]
        statistic = _of_cells(figure, seen, n_classes)
        bca = bca_interval(statistic, classes, counts=n_seen, rescaled=True, confidence=confidence)
        bias = stratified_mean(statistic, classes, n_seen, _N_FOR_MEAN) - observed
        low, high = _smooth_ends(figure, _smooth_classes(counts), observed, bias, confidence)
    else:
        statistic = _of_cells(figure, cells, n_classes)
        bca = cluster_bca_interval(statistic, groups, confidence=confidence)
        draws = _smooth_groups(cells, groups, n_classes)
        low, high = _smooth_ends(figure, draws, observed, None, confidence)
    return min(bca[0], observed, max(low, 0.0)), max(bca[1], observed, min(high, 1.0))


def paired_difference_interval(
    n: int, n_only_first: int, n_only_second: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval for the accuracy of one model less another's on the same n rows.

    Of the rows that exactly one model gets right, ``n_only_first`` are the first's. The ends are
    the differences that the score test for paired proportions just does not reject. T. Tango
    (1998), "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 891-908. For rows in groups, take
    :func:`mean_interval` of right-with-first less right-with-second, bounds (-1, 1).

    Raises
    ------
    ValueError
        A count is negative, or their sum is above n, or n is 0.
    """
    from scipy.optimize import brentq

    if min(n_only_first, n_only_second) < 0 or n_only_first + n_only_second > n or n == 0:
        raise ValueError(f"{n_only_first} and {n_only_second} of {n} rows: impossible counts")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    seen = (n_only_first - n_only_second) / n

    def excess(difference: float, side: int) -> float:
        gap, spread = _tango_score(n, n_only_first, n_only_second, difference)
        return gap - side * z * spread

    low = -1.0 if seen == -1 else brentq(excess, -1, seen - _NEXT, args=(1,), xtol=1e-12)
    high = 1.0 if seen == 1 else brentq(excess, seen + _NEXT, 1, args=(-1,), xtol=1e-12)
    return float(low), float(high)


def _tango_score(
    n: int, n_only_first: int, n_only_second: int, difference: float
) -> tuple[float, float]:
    """Return Tango's numerator at a difference, and its standard error if that were the truth."""
    linear = (2 * n - n_only_first + n_only_second) * difference - n_only_first - n_only_second
    constant = -n_only_second * difference * (1 - difference)
    share = (sqrt(max(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * (2 * share + difference * (1 - difference))
    return n_only_first - n_only_second - n * difference, sqrt(max(variance, 0))


def _sums(
    values: NDArray, groups: NDArray | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the groups' sums and sizes; each value on its own where there are no groups."""
    if groups is None:
        return values.astype(np.float64), np.ones(len(values))
    group_of_row = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(group_of_row, weights=values).astype(np.float64)
    return sums, np.bincount(group_of_row).astype(np.float64)


def _flat_weights(n: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield weights (b, n), and (b,) for one more: flat Dirichlet once divided by their sum."""
    rng = np.random.default_rng(_SEED)
    n_at_once = max(1, _BLOCK // n)
    for start in range(0, _N_DRAWS, n_at_once):
        size = min(n_at_once, _N_DRAWS - start)
        yield rng.standard_exponential((size, n)), rng.standard_exponential(size)


def _of_cells(
    figure: Callable[[NDArray], NDArray[np.float64]], cells: NDArray[np.integer], n_classes: int
) -> Statistic:
    """Return a figure of confusion matrices as a statistic of rows that lie in cells (n,)."""
    n_at_once = max(1, _BLOCK // n_classes**2)

    def of(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        blocks = range(0, len(weights), n_at_once)
        return np.concatenate(
            [figure(_matrices(weights[i : i + n_at_once], cells, n_classes)) for i in blocks]
        )

    return of


def _matrices(
    weights: NDArray[np.float64], cells: NDArray[np.integer], n_classes: int
) -> NDArray[np.float64]:
    """Return confusion matrices (b, k, k) of rows in cells (n,), with weights (b, n)."""
    shape = (len(weights), n_classes, n_classes)
    places = cells + n_classes**2 * np.arange(len(weights))[:, None]
    matrices = np.zeros(shape)
    matrices += np.bincount(places.ravel(), weights.ravel(), matrices.size).reshape(shape)
    return matrices


def _smooth_classes(counts: NDArray[np.int64]) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield matrices (b, k, k) with Dirichlet weights in every class, and (b,) extra rows.

    In a class of m rows, each has the concentration (m - 2) / m, with which the variance of a share
    is the unbiased one, 1 / (m - 1) of what a single row's is.
    """
    rng = np.random.default_rng(_SEED)
    cells, k = np.flatnonzero(counts), len(counts)
    n_at_once = max(1, _BLOCK // k**2)
    sizes = counts.sum(axis=1, keepdims=True)
    shapes = counts * np.maximum(sizes - 2, _LEAST) / np.maximum(sizes, 1)
    for start in range(0, _N_DRAWS, n_at_once):
        size = min(n_at_once, _N_DRAWS - start)
        matrices = np.zeros((size, k, k))
        weights = rng.standard_gamma(shapes.ravel()[cells], (size, len(cells)))
        matrices.reshape(size, -1)[:, cells] = weights
        matrices *= sizes / np.maximum(matrices.sum(axis=2, keepdims=True), 1e-300)
        yield matrices, rng.standard_exponential(size)


def _smooth_groups(
    cells: NDArray[np.integer], groups: NDArray, n_classes: int
) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield matrices (b, k, k) with flat Dirichlet weights on the groups, and (b,) extra rows."""
    names, group_of_row = np.unique(groups, return_inverse=True)
    n_at_once = max(1, _BLOCK // max(len(cells), n_classes**2))
    for weights, extra in _flat_weights(len(names)):
        for start in range(0, len(weights), n_at_once):
            block = slice(start, start + n_at_once)
            matrices = _matrices(weights[block][:, group_of_row], cells, n_classes)
            yield matrices, extra[block] * len(cells) / len(names)


def _smooth_ends(
    figure: Callable[[NDArray], NDArray[np.float64]],
    draws: Iterator[tuple[NDArray, NDArray]],
    observed: float,
    bias: float | None,
    confidence: float,
) -> tuple[float, float]:
    """Return the ends from smooth draws: the low one from those with more mistakes.

    They are moved against the bias of the draws and that of what was observed, the same if None.
    """
    as_seen, with_mistakes = [], []
    for matrices, extra in draws:
        as_seen.append(figure(matrices))
        _add_mistakes(matrices, extra)
        with_mistakes.append(figure(matrices))
    values = np.concatenate(as_seen)
    of_draws = values.mean() - observed
    shift = of_draws + (of_draws if bias is None else bias)
    low = np.quantile(np.concatenate(with_mistakes), (1 - confidence) / 2)
    return float(low - shift), float(np.quantile(values, (1 + confidence) / 2) - shift)


def _add_mistakes(matrices: NDArray[np.float64], extra: NDArray[np.float64]) -> None:
    """Add ``extra`` (b,) wrong rows of the rarest class to matrices (b, k, k), in place.

    Classes less than twice as large share them, so that each loses as much of its recall. Rows of
    one are mistaken for the next rarest.
    """
    sizes = matrices.sum(axis=2).mean(axis=0)
    rarest_first = np.argsort(np.where(sizes > 0, sizes, np.inf), kind="stable")
    classes = rarest_first[: max(2, np.count_nonzero(sizes))]
    smallest = sizes[classes[0]]
    rare = classes[: np.count_nonzero((sizes > 0) & (sizes < 2 * smallest))]
    shares = sizes[rare] / (smallest * len(rare))
    matrices[:, rare, np.roll(classes, -1)[: len(rare)]] += extra[:, None] * shares
