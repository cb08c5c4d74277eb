"""The bootstrap, for any statistic: what it would have been on other rows drawn the same way.

A statistic is a function of the rows' weights: given (b, n), how often each of the n rows was
drawn, it returns its (b,) values, one for each resample. A weight of 1 everywhere gives the
statistic of the rows themselves. The same seed gives the same interval.

The intervals are BCa (bias-corrected and accelerated): B. Efron (1987), "Better bootstrap
confidence intervals", JASA 82, 171-185; the acceleration of several strata as in SciPy's
``bootstrap``. They cover what resampling can show: where a rare event (a mistake of a model that
is nearly always right) did not happen in the rows, no resample has it, and the interval is too
short. :mod:`classify.statistics.intervals` mends that for the figures that are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From weights (b, n) to values (b,)."""

N_DRAWS = 2_000
_BLOCK = 2**21
_FEWEST = 2
_ROUNDING = 1e-12
_NORMAL = NormalDist()


def bca_interval(
    statistic: Statistic,
    strata: NDArray[np.integer],
    *,
    counts: NDArray[np.integer] | None = None,
    rescaled: bool = False,
    confidence: float = 0.95,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Return low and high of a statistic; rows are drawn within their stratum (their class).

    ``strata`` (n,) names each row's stratum; all alike draws from all rows. With ``counts`` (n,),
    each row stands for that many equal ones, which is faster, and the weights sum accordingly.
    The strata's sizes are taken as given, not as drawn. A stratum of one row does not vary.

    As many rows are drawn as the stratum has, m, so the variance of their mean is short by the
    factor (m - 1) / m, which tells where strata are many and small. ``rescaled`` draws m - 1 rows,
    each of weight m / (m - 1), which makes it right. J. N. K. Rao, C. F. J. Wu (1988), "Resampling
    inference with complex survey data", JASA 83, 231-241; J. N. K. Rao, C. F. J. Wu, K. Yue (1992),
    "Some recent work on resampling methods for complex surveys", Survey Methodology 18, 209-217.

    A statistic that is the same in every resample has the interval of that one value; where a
    resample's value is NaN, so are both ends.

    Raises
    ------
    ValueError
        There are fewer than two rows.
    """
    counts = np.ones(len(strata), np.int64) if counts is None else counts
    if counts.sum() < _FEWEST:
        raise ValueError(f"{counts.sum()} rows: expected two or more to resample")
    parts = _parts(strata)
    draws = _draws(statistic, parts, counts, int(rescaled), n_draws, seed)
    observed = float(statistic(counts[None].astype(np.float64))[0])
    left_out = _leave_one_out(statistic, counts)
    return _bca_ends(draws, observed, _acceleration(left_out, parts, counts), confidence)


def stratified_mean(
    statistic: Statistic,
    strata: NDArray[np.integer],
    counts: NDArray[np.integer],
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> float:
    """Return the mean of a statistic over resamples, drawn as for :func:`bca_interval`.

    Less the statistic of the rows themselves, it tells the statistic's bias in so many rows.
    """
    return float(_draws(statistic, _parts(strata), counts, 0, n_draws, seed).mean())


def cluster_bca_interval(
    statistic: Statistic,
    groups: NDArray,
    *,
    confidence: float = 0.95,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Return low and high of a statistic whose rows come in groups (n,) that belong together.

    Whole groups are drawn, and left out whole for the acceleration; otherwise as
    :func:`bca_interval`, for rows whose neighbors of the same group tell nearly the same.

    Raises
    ------
    ValueError
        There are fewer than two groups.
    """
    names, group_of_row = np.unique(groups, return_inverse=True)
    if len(names) < _FEWEST:
        raise ValueError(f"{len(names)} groups: expected two or more to resample")

    def of_groups(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        n_at_once = max(1, _BLOCK // len(groups))
        blocks = range(0, len(weights), n_at_once)
        return np.concatenate(
            [statistic(weights[i : i + n_at_once][:, group_of_row]) for i in blocks]
        )

    one_stratum = np.zeros(len(names), np.int64)
    return bca_interval(of_groups, one_stratum, confidence=confidence, n_draws=n_draws, seed=seed)


def _bca_ends(
    draws: NDArray[np.float64], observed: float, acceleration: float, confidence: float
) -> tuple[float, float]:
    """Return the BCa ends from a statistic's draws (b,), its value and its acceleration."""
    if np.isnan(draws).any() or np.isnan(observed):
        return float("nan"), float("nan")
    tie = _ROUNDING * np.abs(draws).max()
    below = ((draws < observed - tie).mean() + (draws <= observed + tie).mean()) / 2
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / len(draws)), 1 - 0.5 / len(draws)))
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    levels = [_adjusted_level(bias, acceleration, end) for end in (-z, z)]
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def _adjusted_level(bias: float, acceleration: float, z: float) -> float:
    """Return Phi(z0 + (z0 + z) / (1 - a (z0 + z))): 1 where the denominator has no meaning."""
    shrink = 1 - acceleration * (bias + z)
    return _NORMAL.cdf(bias + (bias + z) / shrink) if shrink > 0 else 1.0


def _parts(strata: NDArray[np.integer]) -> list[NDArray[np.intp]]:
    """Return the positions of each stratum's rows."""
    return [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]


def _draws(
    statistic: Statistic,
    parts: list[NDArray[np.intp]],
    counts: NDArray,
    n_fewer: int,
    n_draws: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return the statistic (n_draws,) of resamples, as :func:`_resample` draws them."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            statistic(_resample(rng, parts, counts, size, n_fewer))
            for size in _block_sizes(n_draws, len(counts))
        ]
    )


def _block_sizes(n_resamples: int, n_rows: int) -> Iterator[int]:
    """Yield sizes that sum to ``n_resamples``, each few enough to hold in memory at once."""
    largest = max(1, _BLOCK // n_rows)
    for start in range(0, n_resamples, largest):
        yield min(largest, n_resamples - start)


def _resample(
    rng: np.random.Generator,
    parts: list[NDArray[np.intp]],
    counts: NDArray,
    size: int,
    n_fewer: int,
) -> NDArray[np.float64]:
    """Return weights (size, n), which sum to each part's size; ``n_fewer`` rows than it are drawn.

    From a part of one row, that row is drawn.
    """
    weights = np.empty((size, len(counts)))
    for part in parts:
        n_rows = counts[part].sum()
        n_drawn = max(1, n_rows - n_fewer)
        weights[:, part] = _drawn(rng, counts[part], n_drawn, size) * (n_rows / n_drawn)
    return weights


def _drawn(rng: np.random.Generator, counts: NDArray, n_drawn: int, size: int) -> NDArray[np.int64]:
    """Return how often each row is drawn, (size, n), in ``n_drawn`` draws."""
    n = len(counts)
    if counts.sum() != n:
        return rng.multinomial(n_drawn, counts / counts.sum(), size=size)
    rows = rng.integers(0, n, size=(size, n_drawn), dtype=np.int32)
    offsets = n * np.arange(size, dtype=np.int64)[:, None]
    return np.bincount((rows + offsets).ravel(), minlength=size * n).reshape(size, n)


def _leave_one_out(statistic: Statistic, counts: NDArray) -> NDArray[np.float64]:
    """Return the statistic (n,) with one of each row left out."""
    values, start = [], 0
    for size in _block_sizes(len(counts), len(counts)):
        weights = np.tile(counts.astype(np.float64), (size, 1))
        weights[np.arange(size), np.arange(start, start + size)] -= 1
        values.append(statistic(weights))
        start += size
    return np.concatenate(values)


def _acceleration(left_out: NDArray, parts: list[NDArray[np.intp]], counts: NDArray) -> float:
    """Return a sixth of the skewness of what the rows do to the statistic, 0 where nothing."""
    influence = np.empty(len(left_out))
    for part in parts:
        n, mean = counts[part].sum(), np.average(left_out[part], weights=counts[part])
        influence[part] = (n - 1) / n * (mean - left_out[part])
    largest = np.abs(influence).max()
    if not largest > 0:
        return 0.0
    influence /= largest
    return float(counts @ influence**3 / (6 * (counts @ influence**2) ** 1.5))
