"""The parts of an exported graph against the project's own functions and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify.export.graph import DenseLayer, _resize, _scale
from classify.export.head import dense_layers
from classify.export.images import Sample
from classify.export.parity import check_parity
from classify.heads.dense import DenseHead
from classify.probes import LogisticRegressionProbe
from classify.statistics.metrics import softmax
from data_cache.console import import_keras
from data_cache.errors import ExportError
from extract.preprocess import RESIZE_MODES, SCALINGS, Preprocessing, ResizeMode, preprocess

SHAPES = ((28, 28), (24, 24), (25, 23), (50, 100), (97, 12), (5, 60), (1, 1), (301, 220))
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_graph_resizes_as_the_one_preprocessing_function_does(
    mode: ResizeMode, portable: bool
) -> None:
    keras = import_keras()
    preprocessing = Preprocessing(SCALINGS["identity"], 24, mode)
    images = keras.layers.Input((None, None, 3))
    model = keras.Model(images, _resize(images, preprocessing, portable=portable))
    for height, width in SHAPES:
        pixels = RNG.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        expected = preprocess(pixels, preprocessing)
        np.testing.assert_allclose(np.asarray(model(pixels)), expected, atol=2e-3)


@pytest.mark.parametrize("name", SCALINGS)
def test_graph_scales_as_the_one_preprocessing_function_does(name: str) -> None:
    pixels = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = preprocess(pixels, Preprocessing(SCALINGS[name], 8))
    scaled = _scale(pixels.astype(np.float32), SCALINGS[name])
    np.testing.assert_allclose(np.asarray(scaled), expected, rtol=1e-5, atol=1e-5)


def features_and_labels(n_classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    labels = np.arange(90) % n_classes
    features = RNG.normal(labels[:, None], 1, (90, 6)) * [1, 10, 0.01, 1, 1, 0] + [0, 5, 3, 0, 9, 2]
    return features.astype(np.float32), labels


def applied(layers: tuple[DenseLayer, ...], x: NDArray) -> NDArray:
    for layer in layers:
        x = x @ layer.kernel + layer.bias
        x = np.maximum(x, 0) if layer.activation == "relu" else x
    return x


@pytest.mark.parametrize("n_classes", [2, 3])
def test_folded_logistic_regression_is_scikit_learn_s(n_classes: int) -> None:
    X, y = features_and_labels(n_classes)
    probe = LogisticRegressionProbe(1.0, tol=1e-8).fit(X, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-8)).fit(X, y)
    ours = softmax(applied(dense_layers(probe), X))
    np.testing.assert_allclose(ours, theirs.predict_proba(X), atol=1e-3)


@pytest.mark.parametrize("hidden_units", [0, 4])
@pytest.mark.parametrize("standardize", [False, True])
def test_folded_dense_head_is_the_keras_model(standardize: bool, hidden_units: int) -> None:
    X, y = features_and_labels(3)
    head = DenseHead(epochs=1, standardize=standardize, hidden_units=hidden_units).fit(X, y)
    layers = dense_layers(head)
    assert len(layers) == (2 if hidden_units else 1)
    np.testing.assert_allclose(applied(layers, X), head.logits(X), rtol=1e-3, atol=1e-3)


def test_head_with_a_foreign_layer_is_refused() -> None:
    keras = import_keras()
    head = DenseHead()
    head.model_ = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.LayerNormalization(), keras.layers.Dense(2)]
    )
    with pytest.raises(ExportError, match="is a LayerNormalization"):
        dense_layers(head)


class FakeSample(Sample):
    """Images whose one pixel says which they are."""

    def image(self, number: int) -> NDArray[np.uint8]:
        return np.full((1, 1, 3), number, np.uint8)


REFERENCE = np.array([[2.0, 1.9995], [0.0, 3.0]])


def check(logits: NDArray, probabilities: NDArray | None = None) -> float:
    shown = softmax(logits) if probabilities is None else probabilities

    def predict(images: NDArray) -> dict[str, NDArray]:
        numbers = images[:, 0, 0, 0]
        return {"logits": logits[numbers], "probabilities": shown[numbers]}

    n = len(REFERENCE)
    sample = FakeSample(*[np.zeros(n)] * 6)  # type: ignore[arg-type, list-item]
    return check_parity("it", predict, sample, REFERENCE).largest_difference


def test_parity_tells_the_largest_difference() -> None:
    assert check(REFERENCE + np.array([[0.0, 0.0], [5e-4, 0.0]])) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (REFERENCE + np.array([[0.0, 0.0], [2e-3, 0.0]]), "0 of 2 .* 2.0e-03"),
        (REFERENCE + np.array([[-4e-4, 4e-4], [0.0, 0.0]]), "1 of 2"),
        (REFERENCE * np.nan, "nan"),
        (REFERENCE[:, :1], "inf"),
    ],
)
def test_parity_refuses(logits: NDArray, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        check(logits)


def test_parity_looks_at_probabilities_too() -> None:
    with pytest.raises(ExportError, match="probabilities"):
        check(REFERENCE, softmax(REFERENCE * 1.1))
