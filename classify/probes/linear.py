"""What linear probes have in common: weights for standardized features, and their file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from classify.estimators import LogitsClassifier
from classify.stored.arrays import save_arrays
from classify.stored.linear import LINEAR_SHAPES, linear_logits, load_linear
from data_cache.errors import DataError, ParameterError


class LinearProbe(LogitsClassifier):
    """Logits W (x - mean) / scale + b.

    Attributes
    ----------
    classes_ : (k,) the labels, sorted
    n_features_in_ : d
    coef_ : (k, d) float64, W
    intercept_ : (k,) float64, b
    mean_, scale_ : (d,) float64, of the features seen in fit; the scale is never 0
    """

    kind: ClassVar[str]
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]

    def logits(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logits of features (n, d): (n, k) float64; see the base class."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        return linear_logits(features, self.coef_, self.intercept_, self.mean_, self.scale_)

    def save(self, path: Path) -> None:
        """Write the arrays classes, coef, intercept, mean and scale to ``path``, an ``.npz``."""
        check_is_fitted(self)
        save_arrays(path, self.kind, {name: getattr(self, f"{name}_") for name in LINEAR_SHAPES})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote; it predicts, and its parameters are the defaults.

        Raises
        ------
        RunError
            The file is no such thing. Nothing in it is ever unpickled.
        """
        probe = cls()
        for name, array in load_linear(path, cls.kind).items():
            setattr(probe, f"{name}_", array)
        probe.n_features_in_ = len(probe.mean_)
        return probe

    def keep_scaler(self, scaler: StandardScaler) -> None:
        """Take over what standardizes features."""
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        self.n_features_in_ = len(scaler.mean_)


def check_targets(y: NDArray) -> None:
    """Refuse labels that are no classes; many classes with few rows each are no reason to warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_classification_targets(y)


def expect_positive(probe: LogitsClassifier, *names: str) -> None:
    """Raise :class:`ParameterError` for a parameter that is not above 0."""
    for name in names:
        if not getattr(probe, name) > 0:
            raise ParameterError(f"{name} is {getattr(probe, name)!r}: expected above 0")


def refuse_one_class(y: NDArray) -> None:
    """Refuse labels from which nothing can be told apart."""
    if len(np.unique(y)) == 1:
        raise DataError(f"all {len(y)} rows have one class, {y[0]!r}: expected two or more")
