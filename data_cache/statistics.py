"""What the features of a split look like: gathered in one pass while it is written."""

from __future__ import annotations

from dataclasses import dataclass, fields

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.hdf5 import write_column

_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean, standard deviation (of the population), least and greatest value of each feature.

    Each is (d,) float64; all are zero for a split without rows.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]


class StatisticsAccumulator:
    """Gathers :class:`FeatureStatistics` block by block, in float64.

    Blocks are joined as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm
    for Computing Sample Variances" (1979): with n rows so far and m more, delta the difference of
    their means, mean += delta m / (n + m) and M2 += M2_block + delta^2 n m / (n + m).
    """

    def __init__(self, n_features: int) -> None:
        self._n_rows = 0
        self._mean = np.zeros(n_features)
        self._squares = np.zeros(n_features)
        self._min = np.full(n_features, np.inf)
        self._max = np.full(n_features, -np.inf)

    def add(self, block: NDArray[np.floating]) -> None:
        """Take a block of features, (m, d), into account."""
        for at in range(0, len(block), _ROWS_AT_ONCE):
            self._add(block[at : at + _ROWS_AT_ONCE])

    def _add(self, block: NDArray[np.floating]) -> None:
        """Take a block that fits the processor's cache into account."""
        wide = block.astype(np.float64)
        mean = wide.mean(axis=0)
        low, high = block.min(axis=0), block.max(axis=0)
        wide -= mean
        std = np.sqrt(np.einsum("ij,ij->j", wide, wide) / len(wide))
        self.join(FeatureStatistics(mean, std, low, high), len(block))

    def join(self, found: FeatureStatistics, n_rows: int) -> None:
        """Take the statistics of ``n_rows`` (at least 1) other rows into account."""
        delta, total = found.mean - self._mean, self._n_rows + n_rows
        self._squares += found.std**2 * n_rows + delta**2 * (self._n_rows * n_rows / total)
        self._mean += delta * (n_rows / total)
        self._n_rows = total
        np.minimum(self._min, found.min, out=self._min)
        np.maximum(self._max, found.max, out=self._max)

    def result(self) -> FeatureStatistics:
        """Return the statistics of every block so far."""
        if not self._n_rows:
            return FeatureStatistics(
                *(np.zeros_like(self._mean) for _ in fields(FeatureStatistics))
            )
        std = np.sqrt(self._squares / self._n_rows)
        return FeatureStatistics(self._mean.copy(), std, self._min.copy(), self._max.copy())


def write_statistics(group: h5py.Group, statistics: FeatureStatistics) -> None:
    """Write the statistics of a split as (d,) data sets of its group ``statistics``."""
    target = group.create_group("statistics")
    for one in fields(FeatureStatistics):
        values = getattr(statistics, one.name)
        write_column(target, one.name, values, len(values))


def read_statistics(group: h5py.Group) -> FeatureStatistics:
    """Return the statistics stored with a split."""
    source = group["statistics"]
    return FeatureStatistics(*(source[one.name][...] for one in fields(FeatureStatistics)))
