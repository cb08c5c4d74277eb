"""Rows from any layer of a backbone, against Keras asked for that layer's output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from image_files import write_images
from tiny_backbone import N_FEATURES, TINY

from classify.export.exporting import ExportOptions, export_model
from classify.predict.classifiers import PredictOptions, load_classifier
from classify.results.runs import load_run
from classify.train_head.job import TrainingOptions, train_head
from data_cache.cache import FeatureCache
from data_cache.console import import_keras
from data_cache.errors import BackboneError
from extract.backbones import BACKBONES, POOLED, get_backbone, open_backbone
from extract.cli import extract_features as command
from extract.convert import kept_folder
from extract.converters import TO_ONNX
from extract.engines import choose_engine
from extract.extraction import ExtractionOptions, extract_features
from extract.feature_layers import feature_model, feature_shapes, in_words, named_operations
from extract.sources import SourceOptions, open_source
from extract.weights import Weights, random_weights, set_weights

SIZE = 16


@pytest.fixture(scope="module", autouse=True)
def tiny_in_the_registry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(TINY)


@pytest.fixture(scope="module")
def outputs(weights: Weights, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what Keras says that each layer of the tiny backbone makes of the images."""
    model = TINY.build(SIZE)
    set_weights(model, weights)
    probe = import_keras().Model(model.input, {one.name: one.output for one in model.layers})
    return {name: np.asarray(value) for name, value in probe(images, training=False).items()}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (5, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("engine", ["keras", "litert", "onnx"])
@pytest.mark.parametrize(
    "layer", ["mix_add", "stem_relu", "top_conv+block_depthwise", POOLED, "avg_pool+mix_add"]
)
def test_a_row_is_the_flattened_output_of_its_layers(
    engine: str,
    layer: str,
    weights: Weights,
    images: np.ndarray,
    outputs: dict[str, np.ndarray],
) -> None:
    chosen = choose_engine(engine, replace(TINY, feature_layer=layer), weights, SIZE)
    expected = [outputs[name].reshape(len(images), -1) for name in layer.split("+")]
    assert chosen.name == engine
    np.testing.assert_allclose(chosen(images), np.hstack(expected), rtol=1e-4, atol=1e-5)
    assert chosen.n_features == sum(one.shape[1] for one in expected)


def test_conversions_of_different_layers_are_kept_apart(weights: Weights) -> None:
    layers = [POOLED, "mix_add", "mix_conv", "mix_add+mix_conv"]
    folders = {
        kept_folder(TO_ONNX, replace(TINY, feature_layer=one), weights, SIZE) for one in layers
    }
    assert len(folders) == len(layers)


def test_block_14_of_mobilenet_v2_is_about_as_small_as_a_feature_row() -> None:
    model = get_backbone("mobilenet_v2").build(96)
    assert feature_shapes(model, "block_14_add") == ((3, 3, 160),)
    assert in_words(((3, 3, 160),)) == "3 x 3 x 160 = 1,440 numbers"
    assert in_words(((3, 3, 160), (1280,))) == "3 x 3 x 160 + 1,280 = 2,720 numbers"
    assert in_words(((1280,),)) == "1,280 numbers"


def test_layers_that_nobody_named_keep_their_names_from_one_model_to_the_next() -> None:
    first, second = (get_backbone("mobilenet_v3_small").build(32) for _ in range(2))
    names = [one.name for one in first.operations]
    assert names != [one.name for one in second.operations], "Keras counts in the process"
    assert list(named_operations(first)) == list(named_operations(second))
    assert len(named_operations(first)) == len(names)
    rows = [feature_model(one, "re_lu_2") for one in (first, second)]
    second.set_weights(first.get_weights())
    image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(*(np.asarray(one(image)) for one in rows))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("mix_ad", "no layer 'mix_ad': did you mean mix_add"),
        ("mix_add+", "no layer ''"),
        ("zzzz", "no layer 'zzzz': its last is avg_pool"),
    ],
)
@pytest.mark.parametrize("engine", ["keras", "litert", "onnx"])
def test_unknown_layer_is_refused_with_those_like_it(
    engine: str, layer: str, message: str, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackboneError, match=message):
        choose_engine(engine, replace(TINY, feature_layer=layer), weights, SIZE)
    assert "converting" not in capsys.readouterr().err


def test_pooled_features_go_by_one_name_in_every_backbone() -> None:
    model = get_backbone("mobilenet_v2").build(32)
    assert POOLED not in named_operations(model)
    shapes = feature_shapes(model, f"{POOLED}+block_1_expand")
    assert shapes == ((1280,), feature_shapes(model, "block_1_expand")[0])


def test_layer_with_several_outputs_is_refused() -> None:
    keras = import_keras()
    images = keras.Input((4, 3))
    rows, state = keras.layers.SimpleRNN(2, return_state=True, name="two")(images)
    model = keras.Model(images, keras.layers.Add()([rows, state]))
    with pytest.raises(BackboneError, match="has 2 outputs, and a feature layer has one"):
        feature_model(model, "two")


def test_layer_of_an_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="leave --layer out"):
        open_backbone(f"onnx:{tmp_path / 'own.onnx'}", None, "block_3")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers") / "photos"
    for seed, name in enumerate(("ant", "bee")):
        write_images(folder / name, 20, seed=100 * seed)
    return folder


def extract(photos: Path, output: Path, *more: Any) -> Any:
    arguments = [photos, "--output", output, "--backbone", "tiny", "--weights", "random", *more]
    return CliRunner().invoke(command, list(map(str, [*arguments, "--image-size", SIZE])))


def test_unknown_layer_ends_the_command_and_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    result = extract(photos, tmp_path / "out.h5", "--layer", "mix_ad")
    assert (result.exit_code, result.stderr.splitlines()[-1][:34]) == (
        2,
        "Error: tiny has no layer 'mix_ad':",
    )
    assert not list(tmp_path.glob("*.h5"))


def test_cache_of_another_layer_is_refused_and_kept(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "photos.h5"
    assert extract(photos, path).exit_code == 0
    before = path.read_bytes()
    result = extract(photos, path, "--layer", "mix_add")
    assert result.exit_code == 2
    assert "feature layer mix_add, was avg_pool" in result.stderr
    assert path.read_bytes() == before


def test_layer_larger_than_the_image_is_warned_of_with_its_size(
    photos: Path, tmp_path: Path
) -> None:
    small = extract(photos, tmp_path / "small.h5", "--layer", "stem_relu")
    assert "Warning" not in small.stderr
    large = extract(photos, tmp_path / "large.h5", "--layer", "mix_add+mix_conv")
    assert "2,048 numbers an image, more than the 768 that go into the backbone" in large.stderr


def test_a_run_on_another_layer_predicts_and_exports(photos: Path, tmp_path: Path) -> None:
    cache, run = tmp_path / "photos.h5", tmp_path / "run"
    options = ExtractionOptions("tiny", "random", layer="mix_add", image_size=SIZE)
    source = open_source(str(photos), SourceOptions(test_fraction=0.25))
    extract_features(source, cache, options)
    train_head(cache, run, TrainingOptions(epochs=1))
    classifier = load_classifier(run, PredictOptions(weights="random"))
    with FeatureCache.open(cache) as opened:
        assert opened.recipe.feature_layer == "mix_add"
        rows, features = opened.rows("test"), opened.features("test")
    assert features.shape[1] == 8 * 8 * 16 != N_FEATURES
    files = [photos / name.decode() for name in rows.ids]
    expected = load_run(run).model().predict_proba(features)
    np.testing.assert_allclose(classifier.predict(files).probabilities, expected, atol=1e-5)
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    path = export_model(run, tmp_path / "out.keras", ExportOptions("keras", weights="random")).path
    exported = import_keras().saving.load_model(path)(images)["probabilities"]
    expected = classifier.predict(images).probabilities
    np.testing.assert_allclose(np.asarray(exported), expected, atol=1e-4)
