"""Linear probes: the formula of their logits, and their files read without scikit-learn."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.stored.arrays import load_arrays
from classify.stored.model import StoredModel

LINEAR_KINDS = ("logistic_regression", "ridge", "nearest_mean")
"""What the files of linear probes say of themselves; a discriminant is of the last kind."""

LINEAR_SHAPES = {
    "classes": ("k",),
    "coef": ("k", "d"),
    "intercept": ("k",),
    "mean": ("d",),
    "scale": ("d",),
}
"""The arrays in the file of a linear probe."""


def linear_logits(
    features: NDArray[np.float64],
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return W (x - mean) / scale + b of features (n, d): (n, k); ``coef`` (k, d) is W."""
    return ((features - mean) / scale) @ coef.T + intercept


def read_linear_probe(path: Path, kind: str) -> StoredModel:
    """Read a linear probe of a kind from its ``.npz``.

    Raises
    ------
    RunError
        The file is no such thing. Nothing in it is ever unpickled.
    """
    arrays = load_arrays(path, kind, LINEAR_SHAPES)
    classes = arrays.pop("classes")
    step = partial(linear_logits, **arrays)
    return StoredModel(classes, len(arrays["mean"]), (step,), np.float64)
