"""Models that only predict: held against the estimators that wrote their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_data import activations
from sklearn.base import clone

from classify.predict.run import load_model
from classify.probes import (
    KernelRidgeProbe,
    LinearProbe,
    LogisticRegressionProbe,
    NearestMeanProbe,
    NeighborsProbe,
    RidgeProbe,
)
from classify.results.runs import COMPARISON_KIND, PROBE_FILES, Run
from classify.stored.linear import LINEAR_KINDS, read_linear_probe
from classify.stored.model import StoredModel
from data_cache.errors import RunError

LINEAR = {
    "logistic_regression": LogisticRegressionProbe(),
    "ridge": RidgeProbe(temperature=0.5),
    "discriminant": NearestMeanProbe(0.5, temperature=2.0),
    "nearest_mean": NearestMeanProbe(),
}
OTHERS = {"neighbors": NeighborsProbe(3), "kernel_ridge": KernelRidgeProbe(n_landmarks=50)}
X, Y = activations(100)


def run_of(folder: Path, name: str, probe: Any, labels: Any = Y) -> tuple[Run, Any]:
    """Return a comparison that a probe won, and the probe, fitted."""
    fitted = clone(probe).fit(X, labels)
    fitted.save(folder / PROBE_FILES[name])
    facts = {"kind": COMPARISON_KIND}
    return Run(folder, facts, tuple("abcd"), name, None, None), fitted  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "probe"), LINEAR.items())
def test_logits_of_a_linear_probe_are_the_estimators(
    name: str, probe: LinearProbe, tmp_path: Path
) -> None:
    run, fitted = run_of(tmp_path, name, probe)
    stored = load_model(run)
    assert isinstance(stored, StoredModel)
    assert (stored.n_features_in_, stored.classes_.tolist()) == (X.shape[1], [0, 1, 2, 3])
    logits = stored.logits(X)
    np.testing.assert_array_equal(logits, fitted.logits(X))
    weights = fitted.coef_ / fitted.scale_
    expected = np.einsum("nd,kd->nk", X.astype(float), weights)
    expected += fitted.intercept_ - np.einsum("d,kd->k", fitted.mean_, weights)
    np.testing.assert_allclose(logits, expected, atol=1e-9)
    assert np.ptp(logits) > 0.1


def test_every_linear_probe_is_read_without_its_estimator() -> None:
    assert {one.kind for one in LinearProbe.__subclasses__()} == set(LINEAR_KINDS)


@pytest.mark.parametrize(("name", "probe"), OTHERS.items())
def test_other_probes_are_left_to_their_estimators(name: str, probe: Any, tmp_path: Path) -> None:
    run, fitted = run_of(tmp_path, name, probe)
    model = load_model(run)
    assert type(model) is type(fitted)
    np.testing.assert_array_equal(model.logits(X), fitted.logits(X))


@pytest.mark.parametrize("n_rows", [0, 1, 7])
def test_any_number_of_rows_is_taken(n_rows: int, tmp_path: Path) -> None:
    run, fitted = run_of(tmp_path, "ridge", RidgeProbe())
    found = load_model(run).logits(X[:n_rows].tolist() or X[:0])
    assert found.shape == (n_rows, 4)
    np.testing.assert_allclose(found, fitted.logits(X)[:n_rows], atol=1e-9)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (X[:, 1:], r"features are \(100, 39\): expected \(n, 40\)"),
        (X[0], r"features are \(40,\): expected \(n, 40\)"),
        (X[None], r"features are \(1, 100, 40\): expected \(n, 40\)"),
        (np.where(np.arange(40) == 3, np.nan, X), "NaN or infinity"),
        (np.where(np.arange(40) == 3, -np.inf, X), "NaN or infinity"),
        ([["a"] * 40], "could not convert"),
    ],
)
def test_features_that_are_not_the_models_are_refused(
    features: Any, message: str, tmp_path: Path
) -> None:
    run, _ = run_of(tmp_path, "ridge", RidgeProbe())
    with pytest.raises(ValueError, match=message):
        load_model(run).logits(features)


def test_probe_of_other_classes_than_the_runs_is_refused(tmp_path: Path) -> None:
    for labels in (Y + 1, np.array(list("abcd"))[Y]):
        run, _ = run_of(tmp_path, "ridge", RidgeProbe(), labels)
        with pytest.raises(RunError, match="tells other classes apart than the 4"):
            load_model(run)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    run_of(tmp_path, "ridge", RidgeProbe())
    (tmp_path / "ridge.npz").rename(tmp_path / "logistic_regression.npz")
    facts = {"kind": COMPARISON_KIND}
    run = Run(tmp_path, facts, tuple("abcd"), "logistic_regression", None, None)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="holds no logistic regression: it is of the kind 'ridge'"):
        load_model(run)
    with pytest.raises(RunError, match="holds no nearest mean: it is of the kind 'ridge'"):
        read_linear_probe(tmp_path / "logistic_regression.npz", "nearest_mean")
