"""What every head and probe has in common: a scikit-learn classifier that is defined by logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from classify.metrics import softmax


class LogitsClassifier(ClassifierMixin, BaseEstimator, ABC):
    """A classifier whose subclass says what its logits are.

    Attributes
    ----------
    classes_ : (k,) the labels, sorted; column j of the logits belongs to ``classes_[j]``
    n_features_in_ : d, the width of the features seen in fit
    """

    classes_: NDArray

    @abstractmethod
    def logits(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the logits of features (n, d): (n, k), also where k is 2.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            ``fit`` was not called before.
        ValueError
            The features are not (n, d), or hold NaN or infinity.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the fitted model to ``path``, in the subclass's own file format."""

    def decision_function(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the logits, (n, k); of two classes the second's less the first's, (n,)."""
        logits = self.logits(X)
        return logits if logits.shape[1] > 2 else logits[:, 1] - logits[:, 0]  # noqa: PLR2004

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, (n, k), each row's sum 1."""
        return softmax(self.logits(X))

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the likeliest label of each row, (n,)."""
        codes = self.logits(X).argmax(axis=1)
        return self.classes_[codes]
