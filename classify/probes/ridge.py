"""The ridge classifier: least squares on targets of 1 and -1, every penalty at the price of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from classify.estimators import check_rows, logits_of
from classify.probes.linear import LinearProbe, check_targets, expect_positive, refuse_one_class
from classify.probes.tuning import Rows, TunedProbe, Tuning, choose, measure
from classify.streams import Places, StreamedFeatures, feature_blocks, fit_scaler

RIDGE_PENALTIES: tuple[float, ...] = tuple(float(f"{10 ** (n / 2):.3g}") for n in range(-12, 5))
"""The penalties that :func:`tune_ridge` tries, smallest first, two a decade."""


class RidgeProbe(LinearProbe):
    """A ridge classifier on standardized features.

    With x the features less their mean, divided by their standard deviation, t 1 in the column of
    a row's class and -1 in the others, and w the rows' weights, which have mean 1, it minimizes::

        sum_i w_i ||W x_i + b - t_i||² / n  +  alpha ||W||²

    in float64. Its logits are W x + b divided by ``temperature``, which changes no prediction;
    :func:`tune_ridge` chooses the one with the least log loss on validation rows.

    Parameters
    ----------
    alpha : the penalty, above 0
    class_weight : ``"balanced"`` for w_i = n / (k * rows of the class), a mapping, or None for 1
    temperature : what the logits are divided by, above 0

    Attributes
    ----------
    coef_, intercept_ : W and b, divided by the temperature; see the base class for the others
    """

    kind: ClassVar[str] = "ridge"

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        class_weight: str | Mapping[Any, float] | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.alpha = alpha
        self.class_weight = class_weight
        self.temperature = temperature

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to features ``X`` (n, d) and labels ``y`` (n,); return self.

        Raises
        ------
        ParameterError
            ``alpha`` or ``temperature`` is not above 0.
        ValueError
            Features are not (n, d), or hold NaN or infinity.
        DataError
            ``y`` has one class only.
        """
        features, labels = check_rows(self, X, y)
        check_targets(labels)
        expect_positive(self, "alpha", "temperature")
        return self.solve_with(RidgeSystem(features, labels, self.class_weight))

    def solve_with(self, system: RidgeSystem) -> Self:
        """Take over the solution of a prepared system for the penalty; return self."""
        coef, intercept = system.solve(self.alpha)
        self.classes_ = system.classes
        self.coef_, self.intercept_ = coef / self.temperature, intercept / self.temperature
        self.keep_scaler(system.scaler)
        return self


@dataclass(frozen=True, eq=False)
class RidgeSystem:
    """The normal equations of a ridge classifier, solved for any penalty at the price of a product.

    Features (n, d) and labels (n,) are the training rows. With the centered, weighted rows A and
    targets T, W' is A' (A A' + n alpha)^-1 T = (A' A + n alpha)^-1 A' T; the smaller of the two
    Gram matrices is decomposed, once. Of features that are streamed it is A' A, summed up from
    blocks of rows, in the third of three passes.

    Raises
    ------
    DataError
        The labels are all of one class.
    """

    features: Any
    labels: NDArray
    class_weight: str | Mapping[Any, float] | None = None

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

    def solve(self, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return W (k, d) and b (k,) for a penalty."""
        values, left, right = self._decomposition
        coef = (left @ (right / (values + alpha * len(self.labels))[:, None])).T
        mean_input, mean_target = self._means
        return coef, mean_target - coef @ mean_input

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """The rows' weights, (n,), of mean 1."""
        weights = compute_sample_weight(self.class_weight, self.labels).astype(np.float64)
        return weights / weights.mean()

    @cached_property
    def _means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The weighted means of inputs, (d,), and targets, (k,)."""
        shares = self._weights / len(self._weights)
        mean_input = sum(shares[rows] @ block for block, rows in self._standardized())
        of_classes = np.bincount(np.searchsorted(self.classes, self.labels), shares)
        return np.asarray(mean_input), 2 * of_classes - shares.sum()

    @cached_property
    def _decomposition(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray]:
        """Eigenvalues (m,) of the smaller Gram matrix, L (d, m) and R (m, k) with W' = L D R.

        D divides by the eigenvalues plus n alpha.
        """
        n, d = self.features.shape
        if n < d and not isinstance(self.features, StreamedFeatures):
            ((rows, targets),) = self._centered()
            values, vectors = eigh(rows @ rows.T, driver="evd")
            return values.clip(min=0), rows.T @ vectors, vectors.T @ targets
        gram, cross = np.zeros((d, d)), np.zeros((d, len(self.classes)))
        for rows, targets in self._centered():
            gram += rows.T @ rows
            cross += rows.T @ targets
        values, vectors = eigh(gram, driver="evd")
        return values.clip(min=0), vectors, vectors.T @ cross

    def _standardized(self) -> Iterator[tuple[NDArray[np.float64], Places]]:
        """Yield the features, standardized, some rows at a time."""
        for block, rows in feature_blocks(self.features):
            yield self.scaler.transform(block.astype(np.float64, copy=False)), rows

    def _centered(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield rows and targets less their means, times the roots of the weights.

        A target is 1 in the column of the row's class, -1 in the others.
        """
        mean_input, mean_target = self._means
        for block, rows in self._standardized():
            root = np.sqrt(self._weights[rows])[:, None]
            targets = np.where(self.labels[rows, None] == self.classes, 1.0, -1.0)
            yield root * (block - mean_input), root * (targets - mean_target)


def tune_ridge(
    training: Rows,
    validation: Rows,
    tuning: Tuning,
    *,
    penalties: Sequence[float] = RIDGE_PENALTIES,
) -> TunedProbe:
    """Choose the penalty on validation rows, all from one eigendecomposition.

    Raises
    ------
    DataError
        The training rows have one class only.
    """
    system = RidgeSystem(*training, tuning.class_weight)
    points = []
    for alpha in penalties:
        probe = RidgeProbe(alpha, class_weight=tuning.class_weight).solve_with(system)
        points.append(
            measure(
                {"alpha": alpha}, logits_of(probe, validation[0]), probe.classes_, validation[1]
            )
        )
    best = points[choose(points, tuning.select_by)]
    probe = RidgeProbe(
        **best.hyperparameters, class_weight=tuning.class_weight, temperature=best.temperature
    )
    return TunedProbe(probe.solve_with(system), best.hyperparameters, tuple(points))
