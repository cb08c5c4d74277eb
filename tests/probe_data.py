"""Small classification problems that the tests of probes share."""

from __future__ import annotations

import numpy as np

N_FEATURES = 12


def blobs(n_rows: int = 150, seed: int = 0, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes around points, (n, 12) of very different scales, the last constant."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_rows) % n_classes
    centers = np.random.default_rng(42).normal(size=(n_classes, N_FEATURES))
    X = centers[y] + rng.normal(scale=1.5, size=(n_rows, N_FEATURES))
    X *= np.logspace(-3, 3, N_FEATURES)
    X[:, -1] = 2.5
    return X.astype(np.float32), y


def activations(
    n_rows: int = 400, seed: int = 0, n_classes: int = 4, n_features: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Rows as a rectifier leaves them: 0 or more, correlated, their means far from 0."""
    mixing = np.random.default_rng(7).normal(size=(n_features, n_features))
    centers = np.random.default_rng(8).normal(size=(n_classes, n_features))
    rng = np.random.default_rng(seed)
    y = np.arange(n_rows) % n_classes
    X = (0.6 * centers[y] + rng.normal(size=(n_rows, n_features))) @ mixing + 4
    return np.maximum(X, 0).astype(np.float32), y
