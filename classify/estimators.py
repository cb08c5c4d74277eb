"""What every head and probe has in common: a scikit-learn classifier that is defined by logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_consistent_length, validate_data

from classify.statistics.metrics import softmax
from classify.streams import Features, StreamedFeatures, map_rows


class LogitsClassifier(ClassifierMixin, BaseEstimator, ABC):
    """A classifier whose subclass says what its logits are.

    Attributes
    ----------
    classes_ : (k,) the labels, sorted; column j of the logits belongs to ``classes_[j]``
    n_features_in_ : d, the width of the features seen in fit
    """

    classes_: NDArray
    takes_streams: ClassVar[bool] = False
    """Whether ``logits`` takes streamed features itself, because blocks of them would cost more."""

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


def logits_of(model: LogitsClassifier, features: Features) -> NDArray[np.floating]:
    """Return the logits (n, k) of features that are in memory or streamed."""
    if model.takes_streams:
        return model.logits(features)  # type: ignore[arg-type]
    return map_rows(model.logits, features)


def check_rows(
    model: LogitsClassifier, X: Any, y: ArrayLike, *, dtype: Any = np.float64, reset: bool = True
) -> tuple[Any, NDArray]:
    """Return features and labels as scikit-learn's ``validate_data`` does; streams as they are.

    Features that are streamed are checked when they are read.
    """
    if not isinstance(X, StreamedFeatures):
        features, labels = validate_data(model, X, y, dtype=dtype, order="C", reset=reset)
        return features, labels
    labels = np.asarray(y)
    check_consistent_length(X, labels)
    if reset:
        model.n_features_in_ = X.shape[1]
    elif X.shape[1] != model.n_features_in_:
        raise ValueError(f"features of width {X.shape[1]}: expected {model.n_features_in_}")
    return X, labels
