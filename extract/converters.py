"""Converters: a frozen Keras model as a file for a library that is faster on a CPU.

``onnx`` is for ONNX Runtime, written by Keras's own exporter; ``litert`` is for LiteRT, written by
TensorFlow's. Either library folds batch normalization into the convolutions and fuses activations.
Converters print, log and warn much, and raise anything; here they are quiet, and an
:class:`~data_cache.errors.EngineError` says what could not be converted. What becomes of the files,
and why they are trusted, is in :mod:`extract.convert`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.console import import_keras, standard_error_silenced
from data_cache.errors import EngineError
from extract.layouts import leaf_layers, weighted_layers


@dataclass(frozen=True)
class Converter:
    """What makes a file of a Keras model.

    Attributes
    ----------
    title : what the format is called
    version : part of what names a kept file; other for every converter, and for every change of
        what is converted, or how
    file : the name that its files get
    packages : what it needs besides TensorFlow
    write : writes a model, (n, S, S, 3) to (n, d) float32 for any n, to a path; may raise anything
    """

    title: str
    version: str
    file: str
    packages: tuple[str, ...]
    write: Callable[[Any, Path], None]

    def expect_packages(self) -> None:
        """Raise :class:`EngineError` where a package that it needs is not installed."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise EngineError(
                f"converting to {self.title} needs {' and '.join(missing)}: pip install '.[fast]'"
            )

    def convert(self, model: Any, path: Path) -> None:
        """Write a model, quietly; raise :class:`EngineError` where it cannot be converted."""
        try:
            with quiet():
                self.write(exportable(model), path)
        except Exception as error:  # converters raise anything
            raise EngineError(
                f"{model.name} cannot be converted to {self.title} ({error})"
            ) from error


def _write_onnx(model: Any, path: Path) -> None:
    """Export as Keras does."""
    model(np.zeros((1, *model.input_shape[1:]), np.float32))  # the exporter wants it called
    model.export(str(path), format="onnx", verbose=False)


def _write_tflite(model: Any, path: Path) -> None:
    """Convert the traced function, whose weights become constants.

    By way of a SavedModel, the converter's own way for Keras models, it takes five times as long.
    """
    import tensorflow as tf

    images = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    function = tf.function(lambda batch: model(batch, training=False)).get_concrete_function(images)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.experimental_lower_to_saved_model = False
    with standard_error_silenced():
        path.write_bytes(converter.convert())


TO_ONNX = Converter("ONNX", "2", "model.onnx", ("onnx", "tf2onnx"), _write_onnx)
TO_TFLITE = Converter("TFLite", "tflite 1", "model.tflite", (), _write_tflite)


def exportable(model: Any) -> Any:
    """Return a model of the same function that converts: itself where every layer does."""
    keras = import_keras()
    if not any(_stand_in(keras, layer) for layer, _ in leaf_layers(model)):
        return model

    def clone(layer: Any) -> Any:
        return _stand_in(keras, layer) or layer.__class__.from_config(layer.get_config())

    twin = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for (layer, _), (copy, _) in zip(weighted_layers(model), weighted_layers(twin), strict=True):
        shapes = [tuple(weight.shape) for weight in copy.weights]
        arrays = layer.get_weights()
        copy.set_weights([_shaped(*pair) for pair in zip(arrays, shapes, strict=True)])
    return twin


def _stand_in(keras: ModuleType, layer: Any) -> Any:
    """Return a layer that converts for one that does not, and None for any other.

    Keras runs a grouped convolution through XLA and the exact GELU through ``erfc``, and neither
    converts. With one group a channel, the first is a depthwise convolution; the second is written
    with ``erf``: x (1 + erf(x / √2)) / 2 (Hendrycks & Gimpel 2016, equation 2).
    """
    if isinstance(layer, keras.layers.Conv2D) and layer.groups == layer.filters > 1:
        return keras.layers.DepthwiseConv2D(
            layer.kernel_size,
            layer.strides,
            layer.padding,
            dilation_rate=layer.dilation_rate,
            use_bias=layer.use_bias,
            name=layer.name,
        )
    if getattr(layer, "activation", None) is keras.activations.gelu:
        return keras.layers.Lambda(
            lambda x: 0.5 * x * (1.0 + keras.ops.erf(x / math.sqrt(2.0))), name=layer.name
        )
    return None


def _shaped(array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a weight, its last two axes exchanged where a depthwise convolution wants them so."""
    return array if array.shape == shape else np.swapaxes(array, -1, -2)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what converters print, log and warn of."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(level)
