"""A backbone small enough for tests, with every kind of layer that the real ones have."""

from __future__ import annotations

from typing import Any

from data_cache.console import import_keras
from extract.backbones import Backbone
from extract.preprocess import SCALINGS

N_FEATURES = 24


def build_tiny(
    include_top: bool, weights: None, pooling: str, input_shape: tuple[int, int, int]
) -> Any:
    """Build the model as the constructors of ``keras.applications`` do."""
    layers = import_keras().layers
    assert (include_top, weights, pooling) == (False, None, "avg")
    images = layers.Input(input_shape)
    x = layers.Conv2D(8, 3, 2, "same", use_bias=False, name="stem_conv")(images)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(6.0, name="stem_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="block_depthwise")(x)
    x = layers.BatchNormalization(name="block_bn")(x)
    block = import_keras().Sequential(
        [
            layers.Conv2D(16, 1, name="down_conv"),
            layers.LayerNormalization(name="down_norm"),
        ],
        name="down",
    )
    x = block(x)
    y = layers.Conv2D(16, 3, padding="same", groups=16, name="mix_conv")(x)
    x = layers.Add(name="mix_add")([x, layers.Activation("gelu", name="mix_gelu")(y)])
    x = layers.Conv2D(N_FEATURES, 1, name="top_conv")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return import_keras().Model(images, x, name="tiny")


TINY = Backbone("tiny", build_tiny, SCALINGS["tf"], N_FEATURES, native_size=32, min_size=8)
