"""Newton's method for softmax regression whose features have a penalty each.

Written for features of a backbone: a few thousand rows, about a thousand features, far from
orthogonal, few classes. First-order methods crawl along the flat directions of such a loss; a
Hessian of all (d + 1) k weights is too large to factor. So each Newton system is solved by
conjugate gradients, preconditioned first by the Hessian that the classes share on average, then,
where that no longer does, by each class's own block. That work is in float32; gradients and losses
are in float64, so that the optimum is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs, get_lapack_funcs
from threadpoolctl import threadpool_limits

_ROWS_AT_ONCE = 1024

_CG_TOLERANCE = 0.1
_MOST_PRODUCTS = 60
"""Conjugate gradients end where the residual, as the preconditioner measures it, is so small a
share of the first, or after so many products with the Hessian."""

_MANY_PRODUCTS = 10
_STALE = 1.5
"""Where a system took so many products, each class gets a factor of its own: k factors cost as
much as some 50 products. They are made anew once a system takes 1.5 times the products that the
first one took with them."""

_NEGLIGIBLE = 1e-2
_JITTER = 1e-6
"""Rows whose curvature is below this share of the largest stay out of a factor; the diagonal gets
this share of its mean on top, lest float32 find the matrix indefinite. Neither moves the
optimum."""

_MOST_BYTES_OF_FACTORS = 2**29
_LEAST_STEP = 2.0**-20
_ROUNDING = 1e-13
_TINY = 1e-30

Precondition = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class SoftmaxProblem:
    """What to minimize over weights V, (d + 1, k), of which the last row is the intercept.

    With z_i = (x_i - mean) / scale, and 1 after it::

        sum_i w_i * -ln softmax(z_i V)[y_i]  +  sum_j penalty_j ||V_j||² / 2

    Attributes
    ----------
    features : (n, d), x, float32 or float64
    codes : (n,) integers, y, positions among the classes
    row_weights : (n,) float64, w, 0 or more, with sum 1
    mean, scale : (d,) float64, scale above 0
    penalties : (d + 1,) float64, 0 or more; the last is the intercept's
    n_classes : k
    """

    features: NDArray[np.floating]
    codes: NDArray[np.integer]
    row_weights: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    penalties: NDArray[np.float64]
    n_classes: int

    def standardized(self) -> NDArray[np.float32]:
        """Return z with the ones, (n, d + 1) float32."""
        n, d = self.features.shape
        inputs = np.ones((n, d + 1), np.float32)
        for rows, block in self._blocks():
            inputs[rows] = block
        return inputs

    def loss(self, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the objective, and the probability of each class in each row, (n, k)."""
        shares = np.concatenate([block @ weights for _, block in self._blocks()])
        shares -= shares.max(axis=1, keepdims=True)
        of_labels = np.take_along_axis(shares, self.codes[:, None], axis=1)[:, 0]
        np.exp(shares, out=shares)
        sums = shares.sum(axis=1)
        shares /= sums[:, None]
        penalty = self.penalties @ (weights**2).sum(axis=1) / 2
        return float(self.row_weights @ (np.log(sums) - of_labels) + penalty), shares

    def gradient(
        self, weights: NDArray[np.float64], shares: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the objective's gradient, (d + 1, k), where :meth:`loss` gave ``shares``."""
        errors = shares.copy()
        errors[np.arange(len(errors)), self.codes] -= 1
        errors *= self.row_weights[:, None]
        gradient = self.penalties[:, None] * weights
        for rows, block in self._blocks():
            gradient += block.T @ errors[rows]
        return gradient

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield z with the ones, some rows at a time."""
        n, d = self.features.shape
        for start in range(0, n, _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, n))
            block = np.ones((rows.stop - start, d + 1))
            np.subtract(self.features[rows], self.mean, out=block[:, :-1])
            block[:, :-1] /= self.scale
            yield rows, block


@dataclass(frozen=True)
class Solution:
    """Weights (d + 1, k) float64, the steps that led to them, whether the tolerance was reached."""

    weights: NDArray[np.float64]
    n_iter: int
    converged: bool


def minimize(
    problem: SoftmaxProblem,
    *,
    start: NDArray[np.float64] | None = None,
    tol: float = 1e-6,
    max_iter: int = 100,
) -> Solution:
    """Minimize from the weights ``start``, (d + 1, k), zeros by default.

    It ends after the step that a quadratic model expects to gain no more than ``tol`` of the
    objective. What is left is far less, for Newton's method converges faster the nearer it is.

    One BLAS thread: the products have k columns, few, and threads that wait for each other cost
    more than they bring.
    """
    d, k = problem.features.shape[1], problem.n_classes
    # The softmax does not see what all classes share, and the penalty wants none of it.
    weights = np.zeros((d + 1, k)) if start is None else start - start.mean(axis=1, keepdims=True)
    with threadpool_limits(1, "blas"):
        systems = _Systems(problem)
        loss, shares = problem.loss(weights)
        for n_iter in range(1, max_iter + 1):
            gradient = problem.gradient(weights, shares)
            step = systems.solve(-gradient, shares)
            slope = float((gradient * step).sum())
            weights, loss, shares, moved = _descend(problem, weights, loss, step, slope)
            if -slope <= 2 * tol * loss or not moved:
                return Solution(weights, n_iter, converged=-slope <= 2 * max(tol, 1e-9) * loss)
    return Solution(weights, max_iter, converged=False)


def _descend(
    problem: SoftmaxProblem,
    weights: NDArray[np.float64],
    loss: float,
    step: NDArray[np.float64],
    slope: float,
) -> tuple[NDArray[np.float64], float, NDArray[np.float64], bool]:
    """Return weights, loss and shares after as much of a step as lowers the loss (Armijo).

    The last is whether any did; a step that is lost in the loss's rounding is taken whole.
    """
    size = 1.0
    while size > _LEAST_STEP:
        moved = weights + size * step
        reached, shares = problem.loss(moved)
        if reached <= loss + 1e-4 * size * slope + _ROUNDING * abs(loss):
            return moved, reached, shares, True
        size /= 2
    return weights, loss, problem.loss(weights)[1], False


class _Systems:
    """Solves the Newton systems of a problem, one after another, each near the one before."""

    def __init__(self, problem: SoftmaxProblem) -> None:
        self._inputs = problem.standardized()
        self._row_weights = problem.row_weights.astype(np.float32)
        self._penalties = problem.penalties.astype(np.float32)
        n_bytes = 4 * problem.n_classes * self._inputs.shape[1] ** 2
        self._may_split = n_bytes <= _MOST_BYTES_OF_FACTORS
        self._is_split = False
        self._precondition: Precondition | None = None
        self._n_products = self._n_products_when_fresh = 0

    def solve(self, right: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return about H^-1 ``right``, H the Hessian where the classes have ``shares``."""
        probabilities = shares.astype(np.float32)
        if self._n_products >= _MANY_PRODUCTS and self._may_split and not self._is_split:
            self._is_split, self._precondition = True, None
        is_stale = self._n_products > _STALE * self._n_products_when_fresh
        if self._precondition is None or is_stale or not self._is_split:
            self._precondition = self._factor(probabilities)
            self._n_products_when_fresh = 0
        size = float(np.abs(right).max()) or 1.0
        solved = self._conjugate_gradients(
            (right / size).astype(np.float32), probabilities, self._precondition
        )
        self._n_products_when_fresh = self._n_products_when_fresh or self._n_products
        step = size * solved.astype(np.float64)
        return step - step.mean(axis=1, keepdims=True)

    def _conjugate_gradients(
        self,
        right: NDArray[np.float32],
        shares: NDArray[np.float32],
        precondition: Precondition,
    ) -> NDArray[np.float32]:
        """Return an approximate solution; keep count of the Hessian's products."""
        solved, left = np.zeros_like(right), right.copy()
        direction = near = precondition(left)
        merit = first = _dot(left, near)
        for self._n_products in range(1, _MOST_PRODUCTS + 1):
            product = self._hessian_product(direction, shares)
            length = merit / max(_dot(direction, product), _TINY)
            solved += np.float32(length) * direction
            left -= np.float32(length) * product
            near = precondition(left)
            merit, before = _dot(left, near), merit
            if merit <= _CG_TOLERANCE**2 * first:
                break
            direction = near + np.float32(merit / before) * direction
        return solved

    def _hessian_product(
        self, direction: NDArray[np.float32], shares: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return H ``direction``: X' (w_i (diag p_i - p_i p_i')) X V + penalty V."""
        moved = self._inputs @ direction
        moved *= shares
        moved -= shares * moved.sum(axis=1, keepdims=True)
        moved *= self._row_weights[:, None]
        return self._inputs.T @ moved + self._penalties[:, None] * direction

    def _factor(self, shares: NDArray[np.float32]) -> Precondition:
        """Return what divides by the Hessian's blocks, each class's own or the average's.

        Steps have rows of sum 0, so what the blocks say apart from that is taken away.
        """
        curvatures = self._row_weights[:, None] * (shares * (1 - shares))
        if not self._is_split:
            factor = self._cholesky(curvatures.mean(axis=1))
            return lambda right: _solve(factor, right)
        factors = [self._cholesky(one) for one in curvatures.T]

        def divide(right: NDArray[np.float32]) -> NDArray[np.float32]:
            columns = [_solve(one, right[:, [j]]) for j, one in enumerate(factors)]
            solved = np.concatenate(columns, axis=1)
            return solved - solved.mean(axis=1, keepdims=True)

        return divide

    def _cholesky(self, curvature: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the lower factor of X' diag(curvature) X + penalties, (d + 1, d + 1).

        Rows of hardly any curvature are left out: most, once most rows are told apart.
        """
        kept = curvature > _NEGLIGIBLE * curvature.max()
        scaled = self._inputs[kept] * np.sqrt(curvature[kept])[:, None]
        gram = get_blas_funcs("syrk", (scaled,))(1.0, scaled.T, lower=1)
        diagonal = np.einsum("ii->i", gram)
        jitter = max(_JITTER * float(diagonal.mean()), _TINY)
        diagonal += self._penalties + jitter
        (potrf,) = get_lapack_funcs(("potrf",), (gram,))
        factor, failed = potrf(gram, lower=1)
        while failed:
            jitter *= 10
            diagonal += jitter
            factor, failed = potrf(gram, lower=1)
        return factor


def _solve(factor: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return A^-1 ``right``, where ``factor`` is the lower Cholesky factor of A."""
    (potrs,) = get_lapack_funcs(("potrs",), (factor,))
    return potrs(factor, right, lower=1)[0]


def _dot(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the inner product of two matrices, in float64."""
    return float(np.einsum("ij,ij->", first, second, dtype=np.float64))
