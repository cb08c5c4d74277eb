"""Ridge, nearest mean, neighbors and kernel ridge, each against scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
from probe_data import activations, blobs
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.class_weight import compute_sample_weight

from classify.probes import (
    KernelRidgeProbe,
    LinearProbe,
    NearestMeanProbe,
    NeighborsProbe,
    RidgeProbe,
    neighbors,
)
from data_cache.errors import DataError, ParameterError


def standardized(X: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaler = StandardScaler().fit(X.astype(np.float64))
    return scaler.transform(X.astype(np.float64)), scaler.transform(others.astype(np.float64))


def targets(y: np.ndarray) -> np.ndarray:
    return np.where(y[:, None] == np.unique(y), 1.0, -1.0)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("n_rows", [30, 301], ids=["fewer rows than features", "more rows"])
@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_ridge_is_that_of_scikit_learn(alpha: float, n_rows: int, class_weight: str | None) -> None:
    X, y = activations(n_rows, n_classes=3)
    X, y = X[:-4], y[:-4]
    others, _ = activations(50, seed=1, n_classes=3)
    inputs, other_inputs = standardized(X, others)
    reference = Ridge(alpha=alpha * len(y), solver="svd").fit(
        inputs, targets(y), sample_weight=compute_sample_weight(class_weight, y)
    )
    probe = RidgeProbe(alpha, class_weight=class_weight).fit(X, y)
    np.testing.assert_allclose(probe.logits(others), reference.predict(other_inputs), atol=1e-6)


def test_the_euclidean_nearest_mean_predicts_as_scikit_learns() -> None:
    X, y = activations(201, n_classes=3)
    others, _ = activations(90, seed=1, n_classes=3)
    inputs, other_inputs = standardized(X, others)
    expected = NearestCentroid().fit(inputs, y).predict(other_inputs)
    np.testing.assert_array_equal(NearestMeanProbe().fit(X, y).predict(others), expected)


@pytest.mark.parametrize("shrinkage", [0.01, 0.5, 0.99])
def test_a_smaller_shrinkage_is_linear_discriminant_analysis(shrinkage: float) -> None:
    X, y = activations(300, n_classes=3)
    others, _ = activations(90, seed=1, n_classes=3)
    inputs, other_inputs = standardized(X, others)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(inputs, y)
    probe = NearestMeanProbe(shrinkage).fit(X, y)
    np.testing.assert_allclose(
        probe.predict_proba(others), reference.predict_proba(other_inputs), atol=1e-6
    )


@pytest.mark.parametrize("n_neighbors", [1, 7, 500])
def test_neighbors_vote_as_scikit_learns_do(n_neighbors: int) -> None:
    X, y = activations(200)
    others, _ = activations(60, seed=1)
    reference = KNeighborsClassifier(
        min(n_neighbors, len(y)), metric="cosine", weights=lambda d: np.exp(-d / 0.1)
    ).fit(X.astype(np.float64), y)
    probe = NeighborsProbe(n_neighbors, vote_temperature=0.1).fit(X, y)
    expected = 0.95 * reference.predict_proba(others.astype(np.float64)) + 0.05 / 4
    np.testing.assert_allclose(probe.predict_proba(others), expected, atol=1e-4)


def test_neighbors_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = activations(200)
    probe = NeighborsProbe(7).fit(X, y)
    whole = probe.neighbors(X, 7)
    monkeypatch.setattr(neighbors, "_VALUES_AT_ONCE", 3 * len(X))
    in_blocks = probe.neighbors(X, 7)
    np.testing.assert_array_equal(in_blocks.codes, whole.codes)
    np.testing.assert_allclose(in_blocks.similarities, whole.similarities, atol=1e-6)


def test_a_row_of_zeros_has_neighbors_without_a_warning() -> None:
    X, y = activations(60)
    assert np.isfinite(NeighborsProbe().fit(X, y).logits(np.zeros((2, X.shape[1])))).all()


def kernel(first: np.ndarray, second: np.ndarray, exponent: float) -> np.ndarray:
    return np.exp(-exponent * ((first[:, None] - second) ** 2).sum(axis=2))


def test_kernel_ridge_with_every_landmark_is_scikit_learns() -> None:
    X, y = activations(150, n_classes=3, n_features=10)
    others, _ = activations(50, seed=1, n_classes=3, n_features=10)
    inputs, other_inputs = standardized(X, others)
    probe = KernelRidgeProbe(0.5, 1e-3).fit(X, y)
    mean = targets(y).mean(axis=0)
    reference = KernelRidge(alpha=1e-3 * len(y), kernel="rbf", gamma=probe.exponent_)
    expected = reference.fit(inputs, targets(y) - mean).predict(other_inputs) + mean
    np.testing.assert_allclose(probe.logits(others), expected, atol=1e-4)


def test_kernel_ridge_with_some_landmarks_solves_its_least_squares() -> None:
    X, y = activations(150, n_classes=3, n_features=10)
    probe = KernelRidgeProbe(0.5, 1e-3, n_landmarks=20).fit(X, y)
    inputs, _ = standardized(X, X)
    landmarks = probe.landmarks_.astype(np.float64)
    assert all(np.isclose(inputs, one, atol=1e-5).all(axis=1).any() for one in landmarks)
    wide = kernel(inputs, landmarks, probe.exponent_)
    among = kernel(landmarks, landmarks, probe.exponent_)
    mean = targets(y).mean(axis=0)
    root = np.linalg.cholesky(among + 1e-12 * np.eye(20)).T
    stacked = np.concatenate([wide, np.sqrt(150 * 1e-3) * root])
    wanted = np.concatenate([targets(y) - mean, np.zeros((20, 3))])
    expected = wide @ np.linalg.lstsq(stacked, wanted)[0] + mean
    np.testing.assert_allclose(probe.logits(X), expected, atol=1e-3)


def test_the_kernels_width_follows_the_features_scale() -> None:
    X, y = activations(150)
    probe = KernelRidgeProbe().fit(X, y)
    distances = ((probe.landmarks_[:, None] - probe.landmarks_) ** 2).sum(axis=2)
    assert probe.exponent_ * np.median(distances) == pytest.approx(probe.gamma, rel=1e-3)


PROBES_WITH_TEMPERATURE = [RidgeProbe(), NearestMeanProbe(), NeighborsProbe(), KernelRidgeProbe()]


@pytest.mark.parametrize("probe", PROBES_WITH_TEMPERATURE, ids=lambda one: one.kind)
def test_a_temperature_divides_logits_and_changes_no_prediction(probe: LinearProbe) -> None:
    X, y = activations(100)
    plain = probe.set_params(temperature=1.0).fit(X, y)
    logits, predictions = plain.logits(X), plain.predict(X)
    warm = probe.set_params(temperature=4.0).fit(X, y)
    np.testing.assert_allclose(warm.logits(X), logits / 4, atol=1e-9)
    np.testing.assert_array_equal(warm.predict(X), predictions)


@pytest.mark.parametrize(
    "probe",
    [
        RidgeProbe(0.0),
        RidgeProbe(temperature=0.0),
        NearestMeanProbe(0.0),
        NearestMeanProbe(1.1),
        NearestMeanProbe(temperature=-1.0),
        NeighborsProbe(0),
        NeighborsProbe(vote_temperature=0.0),
        KernelRidgeProbe(gamma=0.0),
        KernelRidgeProbe(alpha=-1.0),
        KernelRidgeProbe(n_landmarks=1),
    ],
    ids=repr,
)
def test_a_parameter_out_of_range_is_refused(probe: LinearProbe) -> None:
    with pytest.raises(ParameterError, match="expected"):
        probe.fit(*activations(60))


@pytest.mark.parametrize("probe", PROBES_WITH_TEMPERATURE, ids=lambda one: one.kind)
def test_one_class_is_refused(probe: LinearProbe) -> None:
    X, _ = blobs()
    with pytest.raises(DataError, match="all 150 rows have one class"):
        probe.fit(X, np.ones(len(X)))


def test_rows_that_equal_their_class_mean_are_refused() -> None:
    X = np.repeat(np.eye(3), 4, axis=0)
    with pytest.raises(DataError, match="every row equals the mean of its class"):
        NearestMeanProbe().fit(X, np.repeat(np.arange(3), 4))


def test_cosine_neighbors_do_not_see_lengths() -> None:
    X, y = activations(100)
    probe = NeighborsProbe(5).fit(X, y)
    np.testing.assert_allclose(probe.logits(normalize(X)), probe.logits(3 * X), atol=1e-4)
