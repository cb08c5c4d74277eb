"""Convex probes on cached features, for which training order and step size play no part.

The logistic regression is the cross-check of every Dense head: the same model, linear logits and
cross-entropy, brought to its one optimum.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from classify.estimators import LogitsClassifier
from classify.scoring import score
from data_cache.errors import DataError, RunError

PATH_OF_C: tuple[float, ...] = tuple(float(f"{10 ** (n / 2):.3g}") for n in range(-8, 5))
"""The inverse penalties that :func:`logistic_path` tries, smallest first, two a decade."""

_PATIENCE = 2
_PATH_TOLERANCE = 1e-3
_ARRAYS = ("coef", "intercept", "mean", "scale", "classes")


class LogisticRegressionProbe(LogitsClassifier):
    """Multinomial logistic regression on standardized features, by scikit-learn's lbfgs.

    With x the features less their mean, divided by their standard deviation, it minimizes::

        C * sum_i w_i * -ln softmax(W x_i + b)[y_i]  +  ||W||² / 2

    in float64; of two classes the penalty is that of the rows' difference, ||W_2 - W_1||² / 2. A
    feature that never varied is only centered.

    Parameters
    ----------
    C : inverse of the penalty, above 0; smaller is stronger
    class_weight : ``"balanced"`` for w_i = n / (k * rows of the class), a mapping, or None for 1
    tol : lbfgs stops where no component of the mean loss's gradient exceeds it
    max_iter : iterations at most

    Attributes
    ----------
    classes_ : (k,) the labels, sorted
    n_features_in_ : d
    coef_ : (k, d) float64, W; of two classes the rows are each other's negatives
    intercept_ : (k,) float64, b
    mean_, scale_ : (d,) float64, of the features seen in fit; the scale is never 0
    n_iter_ : iterations of lbfgs
    converged_ : whether ``tol`` was reached
    """

    def __init__(
        self,
        C: float = 0.01,
        *,
        class_weight: str | Mapping[Any, float] | None = None,
        tol: float = 1e-4,
        max_iter: int = 1000,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter

    def fit(
        self, X: ArrayLike, y: ArrayLike, *, start: LogisticRegressionProbe | None = None
    ) -> Self:
        """Fit to features ``X`` (n, d) and labels ``y`` (n,); return self.

        ``start`` is a fitted probe of the same classes whose weights to start from: it is nearer
        than zero, so fewer iterations lead to the same optimum.

        Raises
        ------
        ValueError
            A parameter is out of its range; features are not (n, d), or hold NaN or infinity.
        DataError
            ``y`` has one class only.
        """
        features, labels = validate_data(self, X, y, dtype=np.float64)
        _refuse_one_class(labels)
        scaler = StandardScaler().fit(features)
        solver = _solver(self.C, self.class_weight, self.tol, self.max_iter)
        if start is not None and np.array_equal(start.classes_, np.unique(labels)):
            solver.coef_, solver.intercept_ = _as_solved(start.coef_), _as_solved(start.intercept_)
        self.converged_ = _solve(solver, scaler.transform(features), labels)
        self.n_iter_ = int(solver.n_iter_[0])
        _keep(self, solver, scaler)
        return self

    def logits(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logits of features (n, d): (n, k) float64; see the base class."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        return ((features - self.mean_) / self.scale_) @ self.coef_.T + self.intercept_

    def save(self, path: Path) -> None:
        """Write the arrays coef, intercept, mean, scale and classes to ``path``, an ``.npz``."""
        check_is_fitted(self)
        with path.open("wb") as stream:
            np.savez(stream, **{name: getattr(self, f"{name}_") for name in _ARRAYS})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote; it predicts, and its parameters are the defaults.

        Raises
        ------
        RunError
            The file is no such thing. Nothing in it is ever unpickled.
        """
        probe = cls()
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                for name in _ARRAYS:
                    setattr(probe, f"{name}_", arrays[name])
            _check_loaded(probe)
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise RunError(f"{path} holds no logistic regression: {error}") from error
        probe.n_features_in_ = len(probe.mean_)
        return probe


def _check_loaded(probe: LogisticRegressionProbe) -> None:
    """Raise ``ValueError`` unless the arrays of a file are finite and fit each other."""
    shapes = {name: getattr(probe, f"{name}_").shape for name in _ARRAYS}
    k, d = (*shapes["classes"], 0)[0], (*shapes["mean"], 0)[0]
    expected = {"coef": (k, d), "intercept": (k,), "mean": (d,), "scale": (d,), "classes": (k,)}
    if shapes != expected or not k or not d:
        raise ValueError(f"arrays of shapes {shapes} where {expected} is expected")
    if not all(np.isfinite(getattr(probe, f"{name}_")).all() for name in _ARRAYS[:-1]):
        raise ValueError("its coefficients are not all finite")


@dataclass(frozen=True)
class PathPoint:
    """What one C reached on the validation rows: the log loss in nats, the accuracy in [0, 1]."""

    C: float
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class LogisticPath:
    """The points that were tried, smallest C first, and the probe of the best of them.

    ``probe`` is fitted to the training rows alone, in full.
    """

    points: tuple[PathPoint, ...]
    probe: LogisticRegressionProbe


def logistic_path(
    training: tuple[NDArray[np.float32], NDArray[np.int64]],
    validation: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    class_weight: str | None = None,
    path: Sequence[float] = PATH_OF_C,
) -> LogisticPath:
    """Choose C by the log loss on validation rows.

    The log loss, not the accuracy: of a few hundred rows the accuracy is a coarse, noisy curve
    whose peak says little. Each C starts from the last one's weights, in float32 and to a coarse
    tolerance; the path ends where two in a row bring nothing, and the best C is fitted in full.

    Features are (n, d), labels (n,) integers. Validation rows of a class without training rows
    take no part in the log loss: no C could predict them.

    Raises
    ------
    DataError
        The training rows have one class only.
    """
    X, y = training
    _refuse_one_class(y)
    scaler = StandardScaler().fit(X)
    standardized = scaler.transform(X).astype(np.float32, copy=False)
    solver = _solver(1.0, class_weight, _PATH_TOLERANCE, LogisticRegressionProbe().max_iter)
    points: list[PathPoint] = []
    tried: list[LogisticRegressionProbe] = []
    while len(points) < len(path) and not _has_passed_best(points):
        C = path[len(points)]
        _solve(solver.set_params(C=C), standardized, y)
        probe = LogisticRegressionProbe(C, class_weight=class_weight)
        tried.append(_keep(probe, solver, scaler))
        points.append(_measure(tried[-1], *validation))
    best = tried[points.index(_best(points))]
    return LogisticPath(tuple(points), best.fit(X, y, start=best))


def _best(points: Sequence[PathPoint]) -> PathPoint:
    """Return the point of the least log loss; of equals the first, whose penalty is strongest."""
    return min(points, key=lambda point: point.log_loss)


def _has_passed_best(points: Sequence[PathPoint]) -> bool:
    """Say whether the last points brought nothing any more."""
    return bool(points) and len(points) - 1 - points.index(_best(points)) >= _PATIENCE


def _measure(probe: LogisticRegressionProbe, X: NDArray, y: NDArray) -> PathPoint:
    """Return what a probe reaches on validation rows."""
    reached = score(probe, X, y)
    return PathPoint(probe.C, reached.log_loss, reached.accuracy)


def _solver(C: float, class_weight: Any, tol: float, max_iter: int) -> LogisticRegression:
    """Return scikit-learn's solver, which starts from its last solution where it has one."""
    return LogisticRegression(
        C=C, class_weight=class_weight, tol=tol, max_iter=max_iter, warm_start=True
    )


def _solve(solver: LogisticRegression, X: NDArray, y: NDArray) -> bool:
    """Fit to standardized features; return whether the tolerance was reached.

    One BLAS thread: the products have k columns, few, so memory bounds them, and threads that
    wait for each other made the same fit 3 times slower on an idle machine, 20 on a busy one.
    """
    with threadpool_limits(1, "blas"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        solver.fit(X, y)
    return not any(issubclass(one.category, ConvergenceWarning) for one in caught)


def _keep(
    probe: LogisticRegressionProbe, solver: LogisticRegression, scaler: StandardScaler
) -> LogisticRegressionProbe:
    """Give a probe a solution; return the probe."""
    probe.classes_ = solver.classes_
    probe.coef_, probe.intercept_ = _per_class(solver.coef_), _per_class(solver.intercept_)
    probe.mean_, probe.scale_ = scaler.mean_, scaler.scale_
    probe.n_features_in_ = len(scaler.mean_)
    return probe


def _per_class(solved: NDArray) -> NDArray[np.float64]:
    """Return weights with a row for each class; scikit-learn keeps one row for two classes.

    Its one row z stands for logits (0, z); (-z/2, z/2) has the same softmax.
    """
    solved = solved.astype(np.float64)
    return solved if len(solved) > 1 else np.concatenate([-solved / 2, solved / 2])


def _as_solved(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights as scikit-learn keeps them, the inverse of :func:`_per_class`."""
    return weights if len(weights) > 2 else weights[1:] - weights[:1]  # noqa: PLR2004


def _refuse_one_class(y: NDArray) -> None:
    """Refuse labels from which nothing can be told apart."""
    if len(np.unique(y)) == 1:
        raise DataError(f"all {len(y)} rows have one class, {y[0]!r}: expected two or more")
