"""The main job with real weights on real images: figures that were measured independently.

The ranges are those of an independent run of the same protocol: Keras's own layers on features
that Keras's own MobileNetV2 gave, and scikit-learn's logistic regression.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from classify.results.runs import load_run
from classify.train_head.job import TrainingOptions, train_head
from data_cache.cache import FeatureCache
from data_cache.console import import_keras
from data_cache.errors import DataUnavailableError
from extract.assets import find_here
from extract.datasets import get_dataset
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import SourceOptions, open_source

SHARED = Path(__file__).parent.parent.parent / "shared"
SEEDS = range(5)

pytestmark = pytest.mark.skipif(
    not (SHARED / "weights").is_dir(), reason="needs the weights in ../shared/weights"
)


def extract(source: str, path: Path, size: int, limits: tuple[int | None, int | None]) -> Path:
    weights = SHARED / "weights" / f"mobilenet_v2_1.0_{size}_no_top.h5"
    opened = open_source(source, SourceOptions(train_limit=limits[0], test_limit=limits[1]))
    report = extract_features(
        opened, path, ExtractionOptions(weights=str(weights), image_size=size)
    )
    assert report.exit_code in {0, 3}
    return path


def runs(cache: Path, folder: Path, **options: Any) -> list[dict[str, Any]]:
    return [
        dict(train_head(cache, folder / str(seed), TrainingOptions(seed=seed, **options)).metrics)
        for seed in SEEDS
    ]


def mean_test(metrics: list[dict[str, Any]], model: str) -> float:
    return fmean(one[model]["test_accuracy"] for one in metrics)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(find_here(file) for file in get_dataset("fashion_mnist").files):
        pytest.skip("needs Fashion-MNIST: `make data` gets it from Debian's package")
    path = tmp_path_factory.mktemp("fashion") / "fashion.h5"
    try:
        return extract("fashion_mnist", path, 96, (4000, 3000))
    except DataUnavailableError as error:
        pytest.skip(str(error))


def test_fashion_mnist_gets_the_accuracy_that_was_measured_independently(
    fashion: Path, tmp_path: Path
) -> None:
    metrics = runs(fashion, tmp_path)
    assert 0.835 <= mean_test(metrics, "dense") <= 0.86
    assert mean_test(metrics, "logistic_regression") >= 0.853
    assert metrics[0]["trainable_parameters"] == 12_810
    assert metrics[0]["non_trainable_parameters"] == 2_257_984
    assert (metrics[0]["n_train"], metrics[0]["n_validation"]) == (3200, 800)
    assert metrics[0]["n_test"] == 3000


def test_fashion_mnist_features_are_those_of_keras(fashion: Path) -> None:
    keras = import_keras()
    import tensorflow as tf

    images = get_dataset("fashion_mnist").load({"train": 8}).splits["train"][0]
    pixels = np.repeat(images.astype("float32")[..., None], 3, axis=-1)
    scaled = keras.applications.mobilenet_v2.preprocess_input(
        tf.image.resize(pixels, (96, 96), antialias=True).numpy()
    )
    model = keras.applications.MobileNetV2(
        include_top=False,
        weights=str(SHARED / "weights" / "mobilenet_v2_1.0_96_no_top.h5"),
        input_shape=(96, 96, 3),
        pooling="avg",
    )
    expected = model(scaled, training=False).numpy()
    assert expected.shape == (8, 1280)
    with FeatureCache.open(fashion) as cache:
        np.testing.assert_allclose(cache.features("train")[:8], expected, atol=1e-4)


def photos(name: str, folder: Path) -> Path:
    source = SHARED / "data" / name
    if not source.is_dir():
        pytest.skip(f"needs the photos in ../shared/data/{name}")
    return extract(str(source), folder / "photos.h5", 160, (None, None))


def test_cats_and_dogs_get_the_accuracy_that_was_measured_independently(tmp_path: Path) -> None:
    metrics = runs(photos("cats_dogs", tmp_path), tmp_path)
    assert mean_test(metrics, "dense") >= 0.955
    assert mean_test(metrics, "logistic_regression") >= 0.97


def test_ants_and_bees_get_the_accuracy_that_keras_itself_gets(tmp_path: Path) -> None:
    import keras

    cache = photos("ants_bees", tmp_path)
    metrics = runs(cache, tmp_path, test_split="val")
    assert mean_test(metrics, "logistic_regression") >= 0.90
    # 196 rows and 20 steps leave the Dense head far from convergence: over 30 seeds it gets 0.870
    # with a standard deviation of 0.027, and so does Keras's own loop, 0.875 with 0.024. So the
    # two are compared on the same rows, not held to a bound that either misses every other time.
    with FeatureCache.open(cache) as opened:
        train, test = opened.rows("train"), opened.rows("val")
        X, X_test = opened.features("train"), opened.features("val")
    theirs = []
    for seed in SEEDS:
        part = load_run(tmp_path / str(seed)).part_ids("train")
        chosen = np.isin(train.ids.astype(str), list(part))
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dropout(0.2), keras.layers.Dense(2)]
        model = keras.Sequential(layers)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(X[chosen], train.labels[chosen], epochs=5, batch_size=64, verbose=0)
        logits = model(X_test, training=False).numpy()
        theirs.append(float((logits.argmax(axis=1) == test.labels).mean()))
    assert abs(mean_test(metrics, "dense") - fmean(theirs)) < 3 * 0.026 * (2 / len(SEEDS)) ** 0.5
