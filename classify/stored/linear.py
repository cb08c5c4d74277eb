"""Linear probes: the formula of their logits, and their files read without scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
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


def load_linear(path: Path, kind: str) -> dict[str, NDArray]:
    """Read the arrays :data:`LINEAR_SHAPES` of a linear probe; all but the classes as float64.

    Raises
    ------
    RunError
        The file is no such thing. Nothing in it is ever unpickled.
    """
    arrays = load_arrays(path, kind, LINEAR_SHAPES, check=check_linear)
    return {
        name: array if name == "classes" else array.astype(np.float64)
        for name, array in arrays.items()
    }


def check_linear(arrays: Mapping[str, NDArray]) -> None:
    """Raise ``ValueError`` unless arrays of the right shapes are those of a linear probe."""
    classes = arrays["classes"]
    if len(classes) < 2 or not np.array_equal(np.unique(classes), classes):  # noqa: PLR2004
        raise ValueError("classes are not two or more, each above the one before")
    if not (arrays["scale"] > 0).all():
        raise ValueError("scale is not all above 0")
    for name in LINEAR_SHAPES.keys() - {"classes"}:
        if arrays[name].dtype.itemsize > np.dtype(np.float64).itemsize:
            raise ValueError(f"{name} is of {arrays[name].dtype}: expected float64")


def read_linear_probe(path: Path, kind: str) -> StoredModel:
    """Read a linear probe of a kind from its ``.npz``.

    Raises
    ------
    RunError
        The file is no such thing. Nothing in it is ever unpickled.
    """
    arrays = load_linear(path, kind)
    classes = arrays.pop("classes")
    step = partial(linear_logits, **arrays)
    return StoredModel(classes, len(arrays["mean"]), (step,), np.float64)
