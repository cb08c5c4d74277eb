"""What predicting asks of a model, and the plain model that a file is read into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Step = Callable[[NDArray[Any]], NDArray[Any]]
"""Takes rows (n, inputs) to rows (n, outputs)."""


class LogitsModel(Protocol):
    """Whatever has logits: an estimator that was fitted, or a :class:`StoredModel`."""

    @property
    def classes_(self) -> NDArray:
        """The labels, sorted, (k,); column j of the logits belongs to ``classes_[j]``."""

    @property
    def n_features_in_(self) -> int:
        """The width of the features, d."""

    def logits(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the logits of features (n, d): (n, k), also where k is 2.

        Raises
        ------
        ValueError
            The features are not (n, d), or hold NaN or infinity.
        """


@dataclass(frozen=True)
class StoredModel:
    """A trained model that only predicts.

    Attributes
    ----------
    classes_, n_features_in_ : see :class:`LogitsModel`
    steps : what is done to the features, in order
    dtype : float32 or float64, in which the features are given to the first step
    """

    classes_: NDArray
    n_features_in_: int
    steps: tuple[Step, ...]
    dtype: type[np.floating]

    def logits(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the logits of features (n, d); see :class:`LogitsModel`."""
        rows: NDArray[np.floating] = np.asarray(X, self.dtype)
        if rows.ndim != 2 or rows.shape[1] != self.n_features_in_:  # noqa: PLR2004
            raise ValueError(f"features are {rows.shape}: expected (n, {self.n_features_in_})")
        if not np.isfinite(rows).all():
            raise ValueError("features hold NaN or infinity: expected finite numbers")
        for step in self.steps:
            rows = step(rows)
        return rows
