"""The graph that every format is written from: pixels, resizing, scaling, backbone, head.

It is a functional Keras model of public layers and of Keras's own operations, so that nothing in it
is code. Resizing is a product with a matrix on either side, whose entries the graph computes from
the image's height and width; it equals :mod:`extract.preprocess` in every mode, and needs nothing
but arithmetic, so each format can express it. ``stretch`` is Keras's ``Resizing`` layer where the
format can have it, which is the same function and faster on large images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.console import import_keras
from extract.backbones import Backbone
from extract.converters import exportable
from extract.feature_layers import load_feature_model
from extract.preprocess import PAD_FILL, Pixels, PixelScaling, Preprocessing
from extract.weights import Weights

IMAGES, LOGITS, PROBABILITIES = "images", "logits", "probabilities"
"""Names of the input and of the two outputs, in every format."""

_LEAST_SUM = 1e-6


@dataclass(frozen=True)
class DenseLayer:
    """``activation(x @ kernel + bias)``: kernel (inputs, units), bias (units,), both float32.

    ``activation`` is a name of Keras's: ``linear`` or ``relu``.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: str = "linear"


@dataclass(frozen=True)
class Plan:
    """What is to become one graph."""

    backbone: Backbone
    weights: Weights
    preprocessing: Preprocessing
    layers: tuple[DenseLayer, ...]

    def build(self, *, portable: bool = False) -> Any:
        """Return the Keras model: (n, h, w, 3) pixels in [0, 255], n >= 1, to two outputs.

        The outputs, a mapping, are ``logits`` and ``probabilities``, (n, k) float32. Pixels of any
        type are cast to float32 before anything else happens: resizing whole numbers would round.
        ``portable`` keeps to operations that other runtimes have too.
        """
        keras = import_keras()
        images = keras.layers.Input((None, None, 3), name=IMAGES)
        resized = _resize(images, self.preprocessing, portable=portable)
        logits = _head(self._features(resized, portable=portable), self.layers)
        probabilities = keras.layers.Softmax(name=PROBABILITIES)(logits)
        outputs = {PROBABILITIES: probabilities, LOGITS: logits}
        return keras.Model(images, outputs, name="image_classifier")

    def build_fixed(self) -> Any:
        """Return the Keras model for one image that is resized already, as phones want it.

        It takes (1, S, S, 3) pixels, uint8, to probabilities (1, k).
        """
        keras = import_keras()
        images = self._fixed_input("uint8")
        logits = _head(self._features(images, portable=True), self.layers)
        return keras.Model(images, keras.layers.Softmax(name=PROBABILITIES)(logits))

    def build_fixed_features(self, dtype: str) -> Any:
        """Return the Keras model from (1, S, S, 3) pixels of a type to features (1, d)."""
        images = self._fixed_input(dtype)
        return import_keras().Model(images, self._features(images, portable=True))

    def fixed_function(self) -> Callable[[Pixels], NDArray[np.float32]]:
        """Return :meth:`build_fixed` as a function of arrays, compiled."""
        model = self.build_fixed()
        import tensorflow as tf

        size = self.preprocessing.image_size
        taken = tf.TensorSpec((1, size, size, 3), tf.uint8)
        forward = tf.function(lambda images: model(images, training=False), input_signature=[taken])
        return lambda images: np.asarray(forward(images))

    def _fixed_input(self, dtype: str) -> Any:
        """Return the input for one image of the backbone's size."""
        size = self.preprocessing.image_size
        return import_keras().layers.Input((size, size, 3), batch_size=1, dtype=dtype, name=IMAGES)

    def _features(self, resized: Any, *, portable: bool) -> Any:
        """Take (n, S, S, 3) pixels to features (n, d)."""
        size = self.preprocessing.image_size
        backbone = load_feature_model(self.backbone, self.weights, size)
        if portable:
            backbone = exportable(backbone)
        return backbone(_scale(resized, self.preprocessing.scaling))


def _scale(images: Any, scaling: PixelScaling) -> Any:
    """Apply the backbone's affine map to each channel."""
    keras = import_keras()
    if scaling.bgr:
        images = keras.ops.flip(images, axis=-1)
    return keras.layers.Rescaling(list(scaling.scale), list(scaling.offset), name="scaling")(images)


def _head(features: Any, layers: tuple[DenseLayer, ...]) -> Any:
    """Put the dense layers on top; the last one is called ``logits``."""
    keras = import_keras()
    for number, layer in enumerate(layers, start=1):
        name = LOGITS if number == len(layers) else f"hidden_{number}"
        dense = keras.layers.Dense(len(layer.bias), layer.activation, name=name)
        features = dense(features)
        dense.set_weights([layer.kernel, layer.bias])
    return features


def _resize(images: Any, preprocessing: Preprocessing, *, portable: bool) -> Any:
    """Resize (n, h, w, 3) to (n, S, S, 3) as the one preprocessing function does."""
    keras = import_keras()
    size, mode = preprocessing.image_size, preprocessing.resize_mode
    if mode == "stretch" and not portable:
        return keras.layers.Resizing(size, size, "bilinear", antialias=True, name="resizing")(
            images
        )
    ops = keras.ops
    sides = (_Side.of(ops, images[0, :, 0, 0]), _Side.of(ops, images[0, 0, :, 0]))
    anchor = None
    if mode != "stretch":
        shorter_or_longer = ops.minimum if mode == "crop" else ops.maximum
        anchor = shorter_or_longer(sides[0].length, sides[1].length)
    (rows, in_rows), (columns, in_columns) = (side.matrix(size, anchor) for side in sides)
    resized = ops.einsum("ih,nhwc->niwc", rows, images)
    resized = ops.einsum("jw,niwc->nijc", columns, resized)
    if mode == "pad":
        outside = 1.0 - ops.einsum("i,j->ij", in_rows, in_columns)
        resized = ops.add(resized, PAD_FILL * outside[None, :, :, None])
    return resized


@dataclass(frozen=True)
class _Side:
    """The pixels of one side of the images, within the graph.

    ``middles`` (length,) float32 are 1/2, 3/2, ...; ``length`` is their number, int32. Both are
    counted, not asked for, since a graph of Keras knows no shape that is open.
    """

    ops: Any
    middles: Any
    length: Any

    @classmethod
    def of(cls, ops: Any, line: Any) -> _Side:
        """Make one from any row or column of pixels, (length,)."""
        ones = ops.ones_like(line)
        return cls(ops, ops.cumsum(ones) - 0.5, ops.sum(ops.cast(ones, "int32")))

    def matrix(self, size: int, anchor: Any) -> tuple[Any, Any]:
        """Return the weights (size, length), and which rows have any (size,), as 0 and 1.

        The same arithmetic as in :mod:`extract.preprocess`: ``anchor`` is the length that becomes
        ``size``, and None stretches.
        """
        ops = self.ops
        n_resized, index = self._placed(size, anchor)
        length = ops.cast(self.length, "float32")
        stride = 1.0 / (ops.cast(n_resized, "float32") / length)
        radius = ops.maximum(stride, 1.0)
        middle = ops.minimum((ops.cast(index, "float32") + 0.5) * stride, length - 0.5)
        distance = ops.absolute(self.middles[None, :] - middle[:, None]) / radius
        weights = ops.relu(1.0 - distance)
        inside = ops.cast(ops.logical_and(index >= 0, index < n_resized), "float32")
        weights = weights * inside[:, None]
        total = ops.sum(weights, axis=1, keepdims=True)
        return weights / ops.maximum(total, _LEAST_SUM), inside

    def _placed(self, size: int, anchor: Any) -> tuple[Any, Any]:
        """Return the resized length, and which resized pixel each of ``size`` rows shows."""
        ops = self.ops
        rows = np.arange(size, dtype=np.int32)
        if anchor is None:
            n_resized = ops.zeros_like(self.length) + size
            return n_resized, ops.add(rows, n_resized - size)
        n_resized = ops.maximum((2 * size * self.length + anchor) // (2 * anchor), 1)
        kept = ops.minimum(n_resized, size)
        skip, start = (n_resized - kept) // 2, (size - kept) // 2
        return n_resized, ops.add(rows, skip - start)
