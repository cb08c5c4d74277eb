"""Probes on cached features: quick classifiers that say how much the features tell.

Each is a scikit-learn estimator with logits; :data:`PROBES` tunes any of them on validation rows
by name, the Dense head among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from classify.estimators import LogitsClassifier
from classify.probes.kernel_ridge import KernelRidgeProbe, tune_kernel_ridge
from classify.probes.linear import LinearProbe
from classify.probes.logistic import (
    PATH_OF_C,
    LogisticPath,
    LogisticRegressionProbe,
    PathPoint,
    logistic_path,
    tune_logistic,
)
from classify.probes.nearest_mean import NearestMeanProbe, tune_discriminant, tune_nearest_mean
from classify.probes.neighbors import NeighborsProbe, tune_neighbors
from classify.probes.ridge import RidgeProbe, tune_ridge
from classify.probes.tuning import Rows, TriedPoint, Tune, TunedProbe, Tuning
from classify.stored.arrays import kind_of
from data_cache.errors import RunError

__all__ = [
    "PATH_OF_C",
    "PROBES",
    "KernelRidgeProbe",
    "LinearProbe",
    "LogisticPath",
    "LogisticRegressionProbe",
    "NearestMeanProbe",
    "NeighborsProbe",
    "PathPoint",
    "RidgeProbe",
    "Rows",
    "TriedPoint",
    "Tune",
    "TunedProbe",
    "Tuning",
    "load_probe",
    "logistic_path",
]


def _tune_dense(training: Rows, validation: Rows, tuning: Tuning) -> TunedProbe:
    """Tune the Dense head; see :func:`classify.probes.dense.tune_dense`."""
    from classify.probes.dense import tune_dense

    return tune_dense(training, validation, tuning)


def _tune_dense_hidden(training: Rows, validation: Rows, tuning: Tuning) -> TunedProbe:
    """Tune the Dense head with a hidden layer; see :mod:`classify.probes.dense`."""
    from classify.probes.dense import tune_dense_hidden

    return tune_dense_hidden(training, validation, tuning)


PROBES: Mapping[str, Tune] = MappingProxyType(
    {
        "logistic_regression": tune_logistic,
        "ridge": tune_ridge,
        "discriminant": tune_discriminant,
        "nearest_mean": tune_nearest_mean,
        "neighbors": tune_neighbors,
        "kernel_ridge": tune_kernel_ridge,
        "dense": _tune_dense,
        "dense_hidden": _tune_dense_hidden,
    }
)
"""Every kind of probe by name, and what tunes it on training and validation rows."""

_LOADERS: Mapping[str, Callable[[Path], LogitsClassifier]] = MappingProxyType(
    {
        one.kind: one.load
        for one in (
            LogisticRegressionProbe,
            RidgeProbe,
            NearestMeanProbe,
            NeighborsProbe,
            KernelRidgeProbe,
        )
    }
)


def load_probe(path: Path) -> LogitsClassifier:
    """Read what any probe's ``save`` wrote; a Dense head has a format of its own.

    Raises
    ------
    RunError
        The file is missing or damaged, or holds no probe of a kind that is known.
    """
    kind = kind_of(path)
    if kind not in _LOADERS:
        raise RunError(f"{path} holds a probe {kind!r}: expected one of {', '.join(_LOADERS)}")
    return _LOADERS[kind](path)
