"""The nearest class mean, by a distance between the Euclidean and that of the pooled covariance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.sparse import csr_array
from sklearn.preprocessing import StandardScaler

from classify.estimators import check_rows, logits_of
from classify.probes.linear import LinearProbe, check_targets, expect_positive, refuse_one_class
from classify.probes.tuning import Rows, TunedProbe, Tuning, choose, measure
from classify.streams import Places, feature_blocks, fit_scaler
from data_cache.errors import DataError, ParameterError

SHRINKAGES: tuple[float, ...] = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001)
"""What :func:`tune_discriminant` tries, the simplest first."""


class NearestMeanProbe(LinearProbe):
    """The class whose mean is nearest, on standardized features.

    With S the covariance of the features about their classes' means, divided by n, and tr S / d
    its mean eigenvalue, the squared distance of x from a mean m is ``(x - m)' M^-1 (x - m)``::

        M = (1 - shrinkage) S + shrinkage (tr S / d) I

    1 is the Euclidean distance. Less than 1 is linear discriminant analysis with classes taken to
    be equally frequent: the logits are then minus half of the squared distance, less what all
    classes have in common, divided by ``temperature``, which changes no prediction.

    Parameters
    ----------
    shrinkage : within (0, 1]
    temperature : what the logits are divided by, above 0

    Attributes
    ----------
    coef_ : (k, d) float64, M^-1 m; see the base class for the others
    """

    kind: ClassVar[str] = "nearest_mean"

    def __init__(self, shrinkage: float = 1.0, *, temperature: float = 1.0) -> None:
        self.shrinkage = shrinkage
        self.temperature = temperature

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to features ``X`` (n, d) and labels ``y`` (n,); return self.

        Raises
        ------
        ParameterError
            A parameter is out of its range.
        ValueError
            Features are not (n, d), or hold NaN or infinity.
        DataError
            ``y`` has one class only, or every row equals the mean of its class.
        """
        features, labels = check_rows(self, X, y)
        check_targets(labels)
        if not 0 < self.shrinkage <= 1:
            raise ParameterError(f"shrinkage is {self.shrinkage!r}: expected within (0, 1]")
        expect_positive(self, "temperature")
        return self.solve_with(ClassMeans(features, labels))

    def solve_with(self, means: ClassMeans) -> Self:
        """Take over the solution of prepared means for the shrinkage; return self."""
        coef = means.solve(self.shrinkage)
        self.classes_ = means.classes
        self.coef_ = coef / self.temperature
        self.intercept_ = -(coef * means.means).sum(axis=1) / (2 * self.temperature)
        self.keep_scaler(means.scaler)
        return self


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """The means of classes and the covariance about them, decomposed once for every shrinkage.

    Features (n, d) and labels (n,) are the training rows. Features that are streamed are read
    once for each of scaler, means, mean eigenvalue and covariance.

    Raises
    ------
    DataError
        The labels are all of one class.
    """

    features: Any
    labels: NDArray

    def __post_init__(self) -> None:
        refuse_one_class(self.labels)

    @cached_property
    def classes(self) -> NDArray:
        """The labels, sorted, (k,)."""
        return np.unique(self.labels)

    @cached_property
    def scaler(self) -> StandardScaler:
        """What standardizes the features."""
        return fit_scaler(self.features)

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """The mean of each class, standardized, (k, d)."""
        sums = np.zeros((len(self.classes), self.features.shape[1]))
        for block, rows in self._standardized():
            codes, n = self._codes[rows], len(block)
            sums += csr_array((np.ones(n), (codes, np.arange(n))), (len(sums), n)) @ block
        return sums / np.bincount(self._codes)[:, None]

    def solve(self, shrinkage: float) -> NDArray[np.float64]:
        """Return M^-1 m of each class, (k, d); see :class:`NearestMeanProbe`."""
        mean_value = self._mean_value
        if not mean_value > 0:
            raise DataError("every row equals the mean of its class: expected rows that differ")
        if shrinkage == 1:
            return self.means / mean_value
        values, vectors = self._decomposition
        return (
            self.means @ (vectors / ((1 - shrinkage) * values + shrinkage * mean_value)) @ vectors.T
        )

    @cached_property
    def _codes(self) -> NDArray[np.int64]:
        """The position of each row's label among the classes, (n,)."""
        return np.searchsorted(self.classes, self.labels)

    @cached_property
    def _mean_value(self) -> float:
        """The mean eigenvalue of the covariance."""
        squares = sum(float((block**2).sum()) for block in self._deviations())
        return squares / (len(self.labels) * self.features.shape[1])

    @cached_property
    def _decomposition(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues (d,) and eigenvectors (d, d) of the covariance."""
        products = sum(block.T @ block for block in self._deviations())
        values, vectors = eigh(products / len(self.labels), driver="evd")
        return values.clip(min=0), vectors

    def _standardized(self) -> Iterator[tuple[NDArray[np.float64], Places]]:
        """Yield the features, standardized, some rows at a time."""
        for block, rows in feature_blocks(self.features):
            yield self.scaler.transform(block.astype(np.float64, copy=False)), rows

    def _deviations(self) -> Iterator[NDArray[np.float64]]:
        """Yield each row less the mean of its class, some rows at a time."""
        for block, rows in self._standardized():
            yield block - self.means[self._codes[rows]]


def tune_nearest_mean(training: Rows, validation: Rows, tuning: Tuning) -> TunedProbe:
    """Fit by the Euclidean distance; validation rows choose the temperature alone."""
    return tune_discriminant(training, validation, tuning, shrinkages=(1.0,))


def tune_discriminant(
    training: Rows,
    validation: Rows,
    tuning: Tuning,
    *,
    shrinkages: Sequence[float] = SHRINKAGES,
) -> TunedProbe:
    """Choose the shrinkage on validation rows, all from one eigendecomposition.

    Raises
    ------
    DataError
        The training rows have one class only, or none differs from the mean of its class.
    """
    means = ClassMeans(*training)
    points = []
    for shrinkage in shrinkages:
        probe = NearestMeanProbe(shrinkage).solve_with(means)
        logits = logits_of(probe, validation[0])
        points.append(measure({"shrinkage": shrinkage}, logits, probe.classes_, validation[1]))
    best = points[choose(points, tuning.select_by)]
    probe = NearestMeanProbe(**best.hyperparameters, temperature=best.temperature)
    return TunedProbe(probe.solve_with(means), best.hyperparameters, tuple(points))
