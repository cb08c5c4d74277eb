"""Logistic regression on features that stay on disk: the same optimum, by whole passes.

The loss and its gradient are exact sums over all rows, block by block, so L-BFGS takes the steps
that it takes in memory; each evaluation reads the features once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from classify.statistics.metrics import log_softmax
from classify.streams import StreamedFeatures

_MOST_LINE_SEARCHES = 50
_RELATIVE_GAIN = 64 * np.finfo(np.float64).eps
"""What scikit-learn's lbfgs gives SciPy's."""


@dataclass(frozen=True)
class StreamedProblem:
    """What to minimize over weights (r, d + 1), of which the last column is the intercept.

    With z the features less their mean, divided by their scale, and w the rows' weights::

        sum_i w_i * -ln softmax(W z_i + b)[y_i] / sum_i w_i  +  ||W||² / (2 C sum_i w_i)

    r is k, or 1 for two classes: the weights v then stand for logits (-v z / 2, v z / 2), and the
    penalty is that of v.

    Attributes
    ----------
    features : (n, d)
    codes : (n,) integers, y, positions among the classes
    row_weights : (n,) float64
    scaler : mean and scale of the features
    C : inverse of the penalty
    n_classes : k
    """

    features: StreamedFeatures
    codes: NDArray[np.integer]
    row_weights: NDArray[np.float64]
    scaler: StandardScaler
    C: float
    n_classes: int

    def loss(self, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the objective at weights (r, d + 1), and its gradient, of the same shape."""
        gradient, total = np.zeros_like(weights), self.row_weights.sum()
        loss = 0.0
        for block, rows in self.features.blocks():
            z = self.scaler.transform(block.astype(np.float64))
            logarithms = log_softmax(self._logits(z @ weights[:, :-1].T + weights[:, -1]))
            codes, shares = self.codes[rows], self.row_weights[rows] / total
            at = np.arange(len(codes))
            loss -= float(shares @ logarithms[at, codes])
            errors = np.exp(logarithms)
            errors[at, codes] -= 1
            errors = (errors * shares[:, None])[:, -len(weights) :]
            gradient[:, :-1] += errors.T @ z
            gradient[:, -1] += errors.sum(axis=0)
        strength = 1 / (self.C * total)
        gradient[:, :-1] += strength * weights[:, :-1]
        return loss + strength * float((weights[:, :-1] ** 2).sum()) / 2, gradient

    def _logits(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logits, (m, k)."""
        return scores if self.n_classes > 2 else np.concatenate([-scores, scores], axis=1) / 2  # noqa: PLR2004


@dataclass(frozen=True)
class Minimum:
    """Weights (r, d + 1), iterations, and whether the tolerance was reached."""

    weights: NDArray[np.float64]
    n_iter: int
    converged: bool


def minimize_streamed(
    problem: StreamedProblem,
    *,
    start: NDArray[np.float64] | None,
    tol: float,
    max_iter: int,
) -> Minimum:
    """Minimize from the weights ``start`` (r, d + 1), zeros by default.

    It ends where no component of the gradient exceeds ``tol``.
    """
    n_rows = problem.n_classes if problem.n_classes > 2 else 1  # noqa: PLR2004
    shape = n_rows, problem.features.shape[1] + 1

    def flat(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        loss, gradient = problem.loss(weights.reshape(shape))
        return loss, gradient.ravel()

    first = np.zeros(shape) if start is None else start
    options = {"maxiter": max_iter, "maxls": _MOST_LINE_SEARCHES, "gtol": tol}
    with threadpool_limits(1, "blas"):
        found = minimize(
            flat,
            first.ravel(),
            method="L-BFGS-B",
            jac=True,
            options=options | {"ftol": _RELATIVE_GAIN},
        )
    return Minimum(found.x.reshape(shape), int(found.nit), found.status == 0)
