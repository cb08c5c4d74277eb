"""Multinomial logistic regression, the cross-check of every Dense head.

It is the same model, linear logits and cross-entropy, brought to its one optimum: training order
and step size play no part.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from classify.estimators import check_rows
from classify.probes.linear import LinearProbe, check_targets, refuse_one_class
from classify.probes.logistic_stream import StreamedProblem, minimize_streamed
from classify.probes.newton import SoftmaxProblem, minimize
from classify.probes.tuning import Rows, TriedPoint, TunedProbe, Tuning
from classify.statistics.scoring import score
from classify.streams import Features, StreamedFeatures, fit_scaler
from data_cache.errors import ParameterError

PATH_OF_C: tuple[float, ...] = tuple(float(f"{10 ** (n / 2):.3g}") for n in range(-8, 5))
"""The inverse penalties that :func:`logistic_path` tries, smallest first, two a decade."""

_BYTES_PER_VALUE = 16
_PATIENCE = 2
_PATH_TOLERANCE = 1e-3
_Probe = TypeVar("_Probe", bound="LogisticRegressionProbe")


class LogisticRegressionProbe(LinearProbe):
    """Multinomial logistic regression on standardized features.

    With x the features less their mean, divided by their standard deviation s, it minimizes::

        C * sum_i w_i * -ln softmax(W x_i + b)[y_i]  +  sum_j ||W_j||² / 2

    in float64 by scikit-learn's lbfgs, W_j being the weights of feature j; of two classes the
    penalty is that of the rows' difference, ||W_2 - W_1||² / 2. A feature that never varied is
    only centered.

    With ``penalize="raw"`` the penalty is carried back to features as they come, ||W_j||² / (2
    s_j²): the optimum is that of scikit-learn's LogisticRegression on raw features, which lbfgs
    takes a thousand steps and more to come near. It is found by :mod:`classify.probes.newton`.

    Parameters
    ----------
    C : inverse of the penalty, above 0; smaller is stronger
    class_weight : ``"balanced"`` for w_i = n / (k * rows of the class), a mapping, or None for 1
    penalize : the weights that the penalty is of: those of ``"standardized"`` or ``"raw"`` features
    tol : lbfgs stops where no component of the mean loss's gradient exceeds it; Newton's method
        after the step that was to gain no more than this share of the objective, times 0.1
    max_iter : iterations at most

    Attributes
    ----------
    coef_ : (k, d) float64, W, for standardized features; of two classes the rows are each other's
        negatives
    n_iter_ : iterations
    converged_ : whether ``tol`` was reached
    """

    kind: ClassVar[str] = "logistic_regression"

    def __init__(
        self,
        C: float = 0.01,
        *,
        class_weight: str | Mapping[Any, float] | None = None,
        penalize: Literal["standardized", "raw"] = "standardized",
        tol: float = 1e-4,
        max_iter: int = 1000,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.penalize = penalize
        self.tol = tol
        self.max_iter = max_iter

    def fit(
        self,
        X: ArrayLike | StreamedFeatures,
        y: ArrayLike,
        *,
        start: LogisticRegressionProbe | None = None,
    ) -> Self:
        """Fit to features ``X`` (n, d), perhaps streamed, and labels ``y`` (n,); return self.

        ``start`` is a fitted probe of the same classes whose weights to start from: it is nearer
        than zero, so fewer iterations lead to the same optimum.

        Raises
        ------
        ParameterError, ValueError
            A parameter is out of its range; features are not (n, d), or hold NaN or infinity.
        DataError
            ``y`` has one class only.
        """
        features, labels = check_rows(self, X, y)
        check_targets(labels)
        refuse_one_class(labels)
        scaler = fit_scaler(features)
        if start is not None and not np.array_equal(start.classes_, np.unique(labels)):
            start = None
        if isinstance(features, StreamedFeatures):
            return self._fit_streamed(features, labels, scaler, start)
        if self.penalize == "raw":
            return self._fit_raw(features, labels, scaler, start)
        if self.penalize != "standardized":
            raise ParameterError(f"penalize is {self.penalize!r}: expected standardized or raw")
        solver = _solver(self.C, self.class_weight, self.tol, self.max_iter)
        if start is not None:
            solver.coef_, solver.intercept_ = _as_solved(start.coef_), _as_solved(start.intercept_)
        self.converged_ = _solve(solver, scaler.transform(features), labels)
        self.n_iter_ = int(solver.n_iter_[0])
        return _keep(self, solver, scaler)

    def _fit_streamed(
        self,
        features: StreamedFeatures,
        labels: NDArray,
        scaler: StandardScaler,
        start: LogisticRegressionProbe | None,
    ) -> Self:
        """Fit to rows that are read for every evaluation of the loss."""
        if self.penalize != "standardized" or not self.C > 0:
            raise ParameterError(
                f"C is {self.C!r}, penalize {self.penalize!r}: expected C above 0, and of streamed "
                "rows penalize standardized"
            )
        self.classes_, codes = np.unique(labels, return_inverse=True)
        problem = StreamedProblem(
            features=features,
            codes=codes,
            row_weights=compute_sample_weight(self.class_weight, labels).astype(np.float64),
            scaler=scaler,
            C=self.C,
            n_classes=len(self.classes_),
        )
        first = None
        if start is not None:
            both = _as_solved(start.coef_), _as_solved(start.intercept_)[:, None]
            first = np.concatenate(both, axis=1)
        found = minimize_streamed(problem, start=first, tol=self.tol, max_iter=self.max_iter)
        self.n_iter_, self.converged_ = found.n_iter, found.converged
        self.coef_ = _per_class(found.weights[:, :-1])
        self.intercept_ = _per_class(found.weights[:, -1])
        self.keep_scaler(scaler)
        return self

    def _fit_raw(
        self,
        features: NDArray[np.float64],
        labels: NDArray,
        scaler: StandardScaler,
        start: LogisticRegressionProbe | None,
    ) -> Self:
        """Fit with the penalty on the weights of features as they come."""
        if not (self.C > 0 and self.tol > 0):
            raise ParameterError(f"C is {self.C!r}, tol {self.tol!r}: expected above 0")
        weights = compute_sample_weight(self.class_weight, labels).astype(np.float64)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        # Of two classes scikit-learn penalizes one row, the difference of ours: twice as much.
        strength = (2 if len(self.classes_) == 2 else 1) / (self.C * weights.sum())  # noqa: PLR2004
        problem = SoftmaxProblem(
            features=features,
            codes=codes,
            row_weights=weights / weights.sum(),
            mean=scaler.mean_,
            scale=scaler.scale_,
            penalties=np.append(strength / scaler.scale_**2, 0),
            n_classes=len(self.classes_),
        )
        first = None if start is None else np.column_stack([start.coef_, start.intercept_]).T
        solved = minimize(problem, start=first, tol=self.tol * 0.1, max_iter=self.max_iter)
        self.n_iter_, self.converged_ = solved.n_iter, solved.converged
        self.coef_, self.intercept_ = solved.weights[:-1].T, solved.weights[-1]
        self.keep_scaler(scaler)
        return self


@dataclass(frozen=True)
class PathPoint:
    """What one C reached on the validation rows: the log loss in nats, the accuracy in [0, 1]."""

    C: float
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class LogisticPath:
    """The points that were tried, smallest C first, and the probe of the best of them.

    ``probe`` is fitted to the training rows alone, in full; C was chosen with ``n_rows`` of them.
    """

    points: tuple[PathPoint, ...]
    probe: LogisticRegressionProbe
    n_rows: int = 0


def logistic_path(
    training: Rows,
    validation: Rows,
    *,
    class_weight: str | None = None,
    path: Sequence[float] = PATH_OF_C,
) -> LogisticPath:
    """Choose C by the log loss on validation rows.

    The log loss, not the accuracy: of a few hundred rows the accuracy is a coarse, noisy curve
    whose peak says little. Each C starts from the last one's weights, in float32 and to a coarse
    tolerance; the path ends where two in a row bring nothing, and the best C is fitted in full.

    Of training rows that are streamed, C is chosen with a sample, as large as fits in memory; the
    best is fitted to all of them.

    Features are (n, d), labels (n,) integers. Validation rows of a class without training rows
    take no part in the log loss: no C could predict them.

    Raises
    ------
    DataError
        The training rows have one class only.
    """
    refuse_one_class(training[1])
    X, y = _sample(*training)
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
    return LogisticPath(tuple(points), best.fit(*training, start=best), len(y))


def _sample(features: Features, labels: NDArray) -> tuple[NDArray[np.float32], NDArray]:
    """Return the rows; of those that are streamed, at random, as many as fit, in their order.

    Every class keeps a row. The budget holds the rows, standardized too, and the solver's copies.
    """
    if not isinstance(features, StreamedFeatures):
        return features, labels
    n = len(labels)
    n_fitting = features.budget.n_bytes // (_BYTES_PER_VALUE * features.shape[1])
    order = np.random.default_rng(0).permutation(n)
    one_of_each = order[np.unique(labels[order], return_index=True)[1]]
    rows = np.union1d(order[:n_fitting], one_of_each)
    return features.read(rows), labels[rows]


def tune_logistic(training: Rows, validation: Rows, tuning: Tuning) -> TunedProbe:
    """Choose C on validation rows by the log loss, whatever ``tuning`` selects by.

    Raises
    ------
    DataError
        The training rows have one class only.
    """
    path = logistic_path(training, validation, class_weight=tuning.class_weight)
    points = tuple(
        TriedPoint({"C": one.C}, one.accuracy, one.log_loss, temperature=1.0) for one in path.points
    )
    return TunedProbe(path.probe, {"C": path.probe.C}, points)


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


def _keep(probe: _Probe, solver: LogisticRegression, scaler: StandardScaler) -> _Probe:
    """Give a probe a solution; return the probe."""
    probe.classes_ = solver.classes_
    probe.coef_, probe.intercept_ = _per_class(solver.coef_), _per_class(solver.intercept_)
    probe.keep_scaler(scaler)
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
