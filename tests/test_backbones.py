"""The registry against Keras's own constructors and preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from tiny_backbone import TINY

from data_cache.console import import_keras
from data_cache.errors import BackboneError
from extract.backbones import BACKBONES, Backbone, get_backbone, open_backbone
from extract.layouts import Layout, model_layout, stored_layout

SIZE = 32

MODULES = {
    "mobilenet_v2": "mobilenet_v2",
    "resnet50": "resnet50",
    "resnet50_v2": "resnet_v2",
    "densenet121": "densenet",
    "vgg16": "vgg16",
}
"""The module of keras.applications whose preprocess_input does a backbone's scaling."""


@dataclass(frozen=True)
class Built:
    """A backbone, the model it builds, and what Keras's constructor asks to have downloaded."""

    backbone: Backbone
    model: Any
    asked: tuple[str, str, str]


@pytest.fixture(scope="module", params=BACKBONES)
def built(request: pytest.FixtureRequest) -> Built:
    """Build each backbone once, with Keras asked for ImageNet weights that never come."""
    backbone = get_backbone(request.param)
    asked: list[tuple[str, str, str]] = []
    keras = import_keras()
    from keras.src.utils import file_utils

    def get_file(name: str, url: str, file_hash: str = "", **_: object) -> str:
        asked.append((name, url, file_hash))
        return ""

    def constructor(*, weights: None, **options: Any) -> Any:
        assert weights is None
        return getattr(keras.applications, str(backbone.constructor))(weights="imagenet", **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_utils, "get_file", get_file)
        patch.setattr(keras.Model, "load_weights", lambda *_: None)
        model = replace(backbone, constructor=constructor).build(224)
    return Built(backbone, model, asked[0])


def scaled(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Apply a backbone's scaling in the plainest way."""
    ordered = pixels[..., ::-1] if backbone.scaling.bgr else pixels
    values = ordered * np.asarray(backbone.scaling.scale) + np.asarray(backbone.scaling.offset)
    return values.astype(np.float32)


def test_stored_layout_is_that_of_the_model(built: Built) -> None:
    assert stored_layout(built.backbone.name) == model_layout(built.model)


def test_model_gives_rows_of_the_width_registered_and_is_frozen(built: Built) -> None:
    assert built.model.output_shape == (None, built.backbone.n_features)
    assert not built.model.trainable_weights


def test_keras_fetches_the_same_file(built: Built) -> None:
    file = built.backbone.weights_file(224)
    name, url, digest = built.asked
    assert (file.name, file.url) == (name, url)
    assert digest in {file.digest, ""}


def test_scaling_is_keras_preprocessing(built: Built) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.float32)
    expected = keras_preprocessing(built.backbone, pixels.copy())
    np.testing.assert_allclose(scaled(built.backbone, pixels), expected, atol=2e-5)


def keras_preprocessing(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Scale pixels by preprocess_input, or by the layers that the constructor can put first."""
    if not backbone.options:
        module = getattr(import_keras().applications, MODULES[backbone.name])
        return np.asarray(module.preprocess_input(pixels))
    model = replace(backbone, options={}).build(SIZE)
    for layer in model.layers[1:]:
        if layer.weights:
            break
        pixels = layer(pixels)
    return np.asarray(pixels)


def test_sizes_share_the_file_of_the_native_size_unless_they_have_their_own() -> None:
    backbone = get_backbone("mobilenet_v2")
    assert backbone.weights_file(160).name.endswith("_1.0_160_no_top.h5")
    assert backbone.weights_file(100) == backbone.weights_file(224)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(BackboneError, match="did you mean mobilenet_v2"):
        get_backbone("mobilenetv2")


def test_too_small_a_size_is_refused_with_the_smallest() -> None:
    with pytest.raises(BackboneError, match="32 pixels or more, not 31"):
        get_backbone("mobilenet_v2").check_size(31)


def test_preprocess_file_is_refused_for_a_registered_backbone(tmp_path: Any) -> None:
    with pytest.raises(BackboneError, match="leave --preprocess out"):
        open_backbone("resnet50", tmp_path / "preprocess.json")


def test_builds_float32_channels_last_whatever_keras_is_set_to() -> None:
    keras = import_keras()
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.config.set_image_data_format("channels_first")
    try:
        model = TINY.build(16)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert model.layers[1].data_format == "channels_last"


def test_layout_survives_json() -> None:
    layout = stored_layout("convnext_tiny")
    assert layout is not None
    assert Layout.from_json(layout.to_json()) == layout
