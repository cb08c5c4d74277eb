"""The logistic regression against its optimum, scikit-learn's own pipeline and its C's path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_data import N_FEATURES, blobs
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from classify import probes
from classify.probes import LogisticRegressionProbe, logistic_path
from data_cache.errors import DataError, RunError


def objective(probe: LogisticRegressionProbe, X: np.ndarray, y: np.ndarray) -> float:
    """C times the summed cross-entropy, plus half the squared weights."""
    losses = -np.log(probe.predict_proba(X)[np.arange(len(y)), y])
    return float(probe.C * losses.sum() + (probe.coef_**2).sum() / 2)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_equals_scikit_learns_pipeline(n_classes: int, class_weight: str | None) -> None:
    X, y = blobs(n_classes=n_classes)
    X, y = X[:-20], y[:-20]
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight=class_weight, tol=1e-10)
    ).fit(X.astype(np.float64), y)
    probe = LogisticRegressionProbe(0.1, class_weight=class_weight, tol=1e-10).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(X), reference.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(probe.predict(X), reference.predict(X))


def test_a_probe_is_at_the_optimum_of_its_documented_objective() -> None:
    X, y = blobs()
    probe = LogisticRegressionProbe(0.5, tol=1e-10).fit(X, y)
    best = objective(probe, X, y)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-2):
        for _ in range(20):
            moved = LogisticRegressionProbe(0.5).fit(X, y)
            moved.coef_ = probe.coef_ + scale * rng.normal(size=probe.coef_.shape)
            moved.intercept_ = probe.intercept_ + scale * rng.normal(size=3)
            assert objective(moved, X, y) > best


def test_a_start_leads_to_the_same_optimum_in_fewer_iterations() -> None:
    X, y = blobs()
    cold = LogisticRegressionProbe(0.1, tol=1e-8).fit(X, y)
    warm = LogisticRegressionProbe(0.1, tol=1e-8).fit(X, y, start=cold)
    np.testing.assert_allclose(warm.coef_, cold.coef_, atol=1e-5)
    assert warm.n_iter_ < cold.n_iter_


def test_a_start_works_for_two_classes_too() -> None:
    X, y = blobs(n_classes=2)
    cold = LogisticRegressionProbe(0.1, tol=1e-8).fit(X, y)
    warm = LogisticRegressionProbe(0.1, tol=1e-8).fit(X, y, start=cold)
    np.testing.assert_allclose(warm.coef_, cold.coef_, atol=1e-5)
    assert warm.n_iter_ < cold.n_iter_


def test_a_start_of_other_classes_is_of_no_use_and_does_no_harm() -> None:
    X, y = blobs()
    other = LogisticRegressionProbe(0.1).fit(*blobs(n_classes=2))
    cold, warm = (LogisticRegressionProbe(0.1).fit(X, y, start=start) for start in (None, other))
    np.testing.assert_array_equal(warm.coef_, cold.coef_)


def test_two_classes_have_a_row_of_weights_each() -> None:
    probe = LogisticRegressionProbe().fit(*blobs(n_classes=2))
    assert probe.coef_.shape == (2, N_FEATURES)
    np.testing.assert_array_equal(probe.coef_[0], -probe.coef_[1])


def test_a_feature_that_never_varied_in_training_does_not_explode() -> None:
    X, y = blobs()
    probe = LogisticRegressionProbe().fit(X, y)
    X[:, -1] += 1
    assert np.isfinite(probe.logits(X)).all()
    assert np.abs(probe.logits(X)).max() < 100


def test_a_fit_that_ran_out_of_iterations_says_so_without_a_warning() -> None:
    probe = LogisticRegressionProbe(100.0, max_iter=2).fit(*blobs())
    assert not probe.converged_
    assert LogisticRegressionProbe().fit(*blobs()).converged_


def test_a_saved_probe_predicts_the_same_and_has_no_pickle_in_it(tmp_path: Path) -> None:
    X, y = blobs()
    probe = LogisticRegressionProbe().fit(X, y)
    probe.save(tmp_path / "probe.npz")
    np.testing.assert_array_equal(
        LogisticRegressionProbe.load(tmp_path / "probe.npz").logits(X), probe.logits(X)
    )
    with np.load(tmp_path / "probe.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"kind", "version", "coef", "intercept", "mean", "scale", "classes"}
        assert all(arrays[name].dtype != object for name in arrays)


def write_pickle(path: Path) -> None:
    np.savez(path, **{name: np.array([{}]) for name in ("coef", "intercept", "mean", "scale")})


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"nothing of the kind"),
        lambda path: np.savez(path, coef=np.ones(3)),
        write_pickle,
    ],
    ids=["other bytes", "arrays missing", "pickled objects"],
)
def test_a_file_that_is_no_probe_is_refused(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "probe.npz"
    write(path)
    with pytest.raises(RunError, match="holds no logistic regression"):
        LogisticRegressionProbe.load(path)


def test_the_path_chooses_the_c_of_the_least_log_loss_on_validation() -> None:
    training, validation = blobs(), blobs(60, seed=1)
    path = logistic_path(training, validation)
    losses = {}
    for point in path.points:
        reference = make_pipeline(StandardScaler(), LogisticRegression(C=point.C, tol=1e-8))
        reference.fit(training[0].astype(np.float64), training[1])
        shares = reference.predict_proba(validation[0].astype(np.float64))
        losses[point.C] = -np.log(shares[np.arange(60), validation[1]]).mean()
        assert point.log_loss == pytest.approx(losses[point.C], abs=2e-3)
    assert min(losses, key=lambda C: losses[C]) == path.probe.C


def test_the_path_goes_up_and_stops_after_two_that_bring_nothing() -> None:
    path = logistic_path(blobs(), blobs(60, seed=1))
    tried = [point.C for point in path.points]
    assert tried == list(probes.PATH_OF_C[: len(tried)])
    assert tried.index(path.probe.C) == len(tried) - 3


def test_the_path_ends_with_the_last_c_where_each_is_better() -> None:
    X, y = blobs()
    path = logistic_path((X, y), (X, y), path=(1e-3, 1e-2, 1e-1))
    assert (path.probe.C, len(path.points)) == (1e-1, 3)


def test_the_probe_of_the_path_is_fitted_in_full_to_training_rows_alone() -> None:
    training = blobs()
    path = logistic_path(training, blobs(60, seed=1))
    alone = LogisticRegressionProbe(path.probe.C, tol=1e-9).fit(*training)
    np.testing.assert_allclose(path.probe.logits(training[0]), alone.logits(training[0]), atol=1e-2)
    np.testing.assert_array_equal(path.probe.mean_, alone.mean_)


def test_validation_rows_of_a_class_never_trained_count_as_wrong() -> None:
    X, y = blobs(60, seed=1)
    path = logistic_path(blobs(), (X, np.where(np.arange(60) < 30, 9, y)))
    assert all(np.isfinite(point.log_loss) and point.accuracy <= 0.5 for point in path.points)


def test_one_class_is_refused() -> None:
    X, _ = blobs()
    for learn in (
        lambda: LogisticRegressionProbe().fit(X, np.ones(len(X))),
        lambda: logistic_path((X, np.ones(len(X), int)), blobs()),
    ):
        with pytest.raises(DataError, match="all 150 rows have one class"):
            learn()


@parametrize_with_checks([LogisticRegressionProbe(C=1.0)])
def test_scikit_learns_checks_of_an_estimator_pass(estimator: Any, check: Any) -> None:
    check(estimator)
