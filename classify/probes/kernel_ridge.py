"""A ridge classifier with a Gaussian kernel, on some of the training rows as landmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from classify.estimators import LogitsClassifier, check_rows, logits_of
from classify.probes.linear import check_targets, expect_positive, refuse_one_class
from classify.probes.tuning import Rows, TriedPoint, TunedProbe, Tuning, choose, measure
from classify.stored.arrays import load_arrays, save_arrays
from classify.streams import Places, StreamedFeatures, feature_blocks, fit_scaler, map_rows
from data_cache.errors import ParameterError

KERNEL_GAMMAS: tuple[float, ...] = (0.5, 1.0, 2.0)
KERNEL_PENALTIES: tuple[float, ...] = (1e-6, 1e-5, 3e-5, 1e-4)
"""What :func:`tune_kernel_ridge` tries."""

_ROWS_AT_ONCE = 2048
_JITTER = 1e-10
_ARRAYS = {
    "classes": ("k",),
    "landmarks": ("m", "d"),
    "coef": ("m", "k"),
    "intercept": ("k",),
    "mean": ("d",),
    "scale": ("d",),
    "exponent": (),
}


class KernelRidgeProbe(LogitsClassifier):
    """Least squares on targets of 1 and -1 with a Gaussian kernel, on standardized features.

    With landmarks z_j drawn from the training rows, all of them where there are no more, scores
    are f(x) = sum_j c_j exp(-exponent ||x - z_j||²) + b, b the mean target, and c minimizes::

        sum_i ||f(x_i) - t_i||² / n  +  alpha c' K c

    K being the landmarks' kernel matrix (the Nyström method: C. Williams, M. Seeger (2001),
    "Using the Nyström method to speed up kernel machines", NIPS 13). The exponent is ``gamma``
    over the median squared distance of two landmarks. The logits are the scores divided by
    ``temperature``, which changes no prediction.

    Parameters
    ----------
    gamma, alpha, temperature : above 0
    n_landmarks : at most so many, 2 or more
    seed : draws the landmarks

    Attributes
    ----------
    classes_ : (k,) the labels, sorted
    n_features_in_ : d
    landmarks_ : (m, d) float32, standardized
    coef_, intercept_ : (m, k) and (k,) float64, c and b, divided by the temperature
    mean_, scale_ : (d,) float64, of the features seen in fit; the scale is never 0
    exponent_ : a float
    """

    kind: ClassVar[str] = "kernel_ridge"

    def __init__(
        self,
        gamma: float = 0.5,
        alpha: float = 3e-5,
        *,
        n_landmarks: int = 4096,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.gamma = gamma
        self.alpha = alpha
        self.n_landmarks = n_landmarks
        self.temperature = temperature
        self.seed = seed

    def fit(self, X: ArrayLike | StreamedFeatures, y: ArrayLike) -> Self:
        """Fit to features ``X`` (n, d), perhaps streamed, and labels ``y`` (n,); return self.

        Of streamed features the landmarks alone are in memory.

        Raises
        ------
        ParameterError
            A parameter is out of its range.
        ValueError
            Features are not (n, d), or hold NaN or infinity.
        DataError
            ``y`` has one class only.
        """
        features, labels = check_rows(self, X, y, dtype=[np.float32, np.float64])
        check_targets(labels)
        refuse_one_class(labels)
        expect_positive(self, "gamma", "alpha", "temperature")
        if self.n_landmarks < 2:  # noqa: PLR2004
            raise ParameterError(f"n_landmarks is {self.n_landmarks}: expected 2 or more")
        system = KernelSystem.of(features, labels, self.n_landmarks, self.seed)
        return self.solve_with(system, system.at(self.gamma))

    def logits(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logits of features (n, d): (n, k) float64; see the base class."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        rows = ((features - self.mean_) / self.scale_).astype(np.float32)
        scores = [kernel @ self.coef_ for kernel in _kernels(rows, self.landmarks_, self.exponent_)]
        return np.concatenate(scores) + self.intercept_

    def save(self, path: Path) -> None:
        """Write the attributes, but for the parameters, to ``path``, an ``.npz``."""
        check_is_fitted(self)
        arrays = {name: np.asarray(getattr(self, f"{name}_")) for name in _ARRAYS}
        save_arrays(path, self.kind, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote; it predicts, and its parameters are the defaults.

        Raises
        ------
        RunError
            The file is no such thing. Nothing in it is ever unpickled.
        """
        probe = cls()
        for name, array in load_arrays(path, cls.kind, _ARRAYS).items():
            setattr(probe, f"{name}_", array)
        probe.exponent_ = float(probe.exponent_)
        probe.n_features_in_ = len(probe.mean_)
        return probe

    def solve_with(self, system: KernelSystem, normal: NormalEquations) -> Self:
        """Take over the solution of prepared equations for the penalty; return self."""
        self.classes_, self.landmarks_ = system.classes, system.landmarks
        self.mean_, self.scale_ = system.scaler.mean_, system.scaler.scale_
        self.n_features_in_, self.exponent_ = len(self.mean_), normal.exponent
        self.coef_ = normal.solve(self.alpha) / self.temperature
        self.intercept_ = system.mean_target / self.temperature
        return self


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """What determines the coefficients c for one exponent.

    ``left + n alpha right`` times c is ``targets``: (m, m), (m, m) and (m, k) float64.
    """

    exponent: float
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    targets: NDArray[np.float64]
    n: int

    def solve(self, alpha: float) -> NDArray[np.float64]:
        """Return c, (m, k), for a penalty."""
        matrix = self.left + self.n * alpha * self.right
        np.einsum("ii->i", matrix)[:] += _JITTER * matrix.trace() / len(matrix)
        return cho_solve(cho_factor(matrix, lower=True, overwrite_a=True), self.targets)


@dataclass(frozen=True, eq=False)
class KernelSystem:
    """Training rows (n, d), their labels (n,), and landmarks (m, d) among them, standardized.

    Rows in memory are standardized too; those that are streamed are, block by block, by ``scaler``.
    """

    rows: Any
    labels: NDArray
    landmarks: NDArray[np.float32]
    scaler: StandardScaler

    @classmethod
    def of(cls, features: Any, labels: NDArray, n_landmarks: int, seed: int) -> Self:
        """Standardize training rows and draw landmarks; all rows where there are no more."""
        scaler, n = fit_scaler(features), len(labels)
        drawn = np.arange(n)
        if n > n_landmarks:
            drawn = np.sort(np.random.default_rng(seed).choice(n, n_landmarks, replace=False))
        if isinstance(features, StreamedFeatures):
            landmarks = map_rows(partial(_standardized, scaler), features[drawn])
            return cls(features, labels, landmarks, scaler)
        rows = _standardized(scaler, features)
        return cls(rows, labels, rows[drawn], scaler)

    @cached_property
    def classes(self) -> NDArray:
        """The labels, sorted, (k,)."""
        return np.unique(self.labels)

    @cached_property
    def mean_target(self) -> NDArray[np.float64]:
        """The mean target of each class, (k,)."""
        return 2 * np.unique(self.labels, return_counts=True)[1] / len(self.labels) - 1

    def at(self, gamma: float) -> NormalEquations:
        """Return the normal equations for a kernel.

        Where every row is a landmark, K (K + n alpha) c = K t is divided by K.
        """
        exponent = gamma / self._median_distance
        among = np.concatenate(list(_kernels(self.landmarks, self.landmarks, exponent)))
        among = among.astype(np.float64)
        if len(self.labels) == len(self.landmarks):
            targets = self._targets(slice(None)) - self.mean_target
            return NormalEquations(exponent, among, np.eye(len(among)), targets, len(targets))
        left, right = np.zeros_like(among), np.zeros((len(among), len(self.classes)))
        for kernel, rows in self._kernel_blocks(exponent):
            left += kernel.T @ kernel
            right += kernel.T @ (self._targets(rows) - self.mean_target)
        return NormalEquations(exponent, left, among, right, len(self.labels))

    def _kernel_blocks(
        self, exponent: float
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Yield the kernel matrix of all rows and landmarks, some rows at a time, and which."""
        positions = np.arange(len(self.labels))
        for block, places in feature_blocks(self.rows):
            is_streamed, start = isinstance(self.rows, StreamedFeatures), 0
            rows = _standardized(self.scaler, block) if is_streamed else block
            for kernel in _kernels(rows, self.landmarks, exponent):
                yield kernel.astype(np.float64), positions[places][start:][: len(kernel)]
                start += len(kernel)

    def _targets(self, rows: Places) -> NDArray[np.float64]:
        """Return 1 in the column of each row's class, -1 in the others, (m, k)."""
        return np.where(self.labels[rows][:, None] == self.classes, 1.0, -1.0)

    @cached_property
    def _median_distance(self) -> float:
        """The median squared distance of landmarks from some of them; 1 where that is 0."""
        some = self.landmarks[:: max(1, len(self.landmarks) // 256)]
        return float(np.median(_squared_distances(some, self.landmarks))) or 1.0


def _standardized(scaler: StandardScaler, features: NDArray) -> NDArray[np.float32]:
    """Return features (n, d), standardized, as float32."""
    return scaler.transform(features).astype(np.float32, copy=False)


def _kernels(
    rows: NDArray[np.float32], landmarks: NDArray[np.float32], exponent: float
) -> Iterator[NDArray[np.float32]]:
    """Yield the kernel matrix (n, m), some rows at a time."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        distances = _squared_distances(rows[start : start + _ROWS_AT_ONCE], landmarks)
        distances *= -exponent
        yield np.exp(distances, out=distances)


def _squared_distances(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the squared distances (n, m) of rows (n, d) from others (m, d)."""
    squares = [np.einsum("ij,ij->i", one, one) for one in (first, second)]
    distances = first @ second.T
    distances *= -2
    distances += squares[0][:, None]
    distances += squares[1]
    return np.maximum(distances, 0, out=distances)


def tune_kernel_ridge(
    training: Rows,
    validation: Rows,
    tuning: Tuning,
    *,
    gammas: Sequence[float] = KERNEL_GAMMAS,
    penalties: Sequence[float] = KERNEL_PENALTIES,
) -> TunedProbe:
    """Choose the kernel and the penalty on validation rows.

    Raises
    ------
    DataError
        The training rows have one class only.
    """
    refuse_one_class(training[1])
    probe = KernelRidgeProbe(seed=tuning.seed)
    system = KernelSystem.of(*training, probe.n_landmarks, probe.seed)
    points: list[TriedPoint] = []
    for gamma in gammas:
        normal = system.at(gamma)
        for alpha in penalties:
            probe.set_params(gamma=gamma, alpha=alpha).solve_with(system, normal)
            logits = logits_of(probe, validation[0])
            found = {"gamma": gamma, "alpha": alpha}
            points.append(measure(found, logits, probe.classes_, validation[1]))
    best = points[choose(points, tuning.select_by)]
    probe.set_params(**best.hyperparameters, temperature=best.temperature)
    probe.solve_with(system, system.at(best.hyperparameters["gamma"]))
    return TunedProbe(probe, best.hyperparameters, tuple(points))
