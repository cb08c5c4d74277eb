"""The same backbone as an ONNX graph, for ONNX Runtime: made once, kept, and never taken on trust.

Keras's own exporter writes the graph; ONNX Runtime folds batch normalization into the
convolutions and fuses activations and additions when it loads it. Conversion needs TensorFlow and
10 to 30 seconds, so its result is kept in a folder of the user's cache::

    converted/mobilenet_v2-96-1f0c…/     backbone, image size, and the key below
        model.onnx                       the graph with its weights
        probe.npz                        ``batch`` (n, S, S, 3) float32 and ``features`` (n, d)
                                         float32: what Keras, the reference, makes of that batch

The key digests all that determines the features: the backbone's name, the image size and the
weights in canonical order, the feature layer where that is not the pooled output, with the version
of this converter. It holds no paths and no times.

Trust comes from the probe. Whenever an engine is started from a folder, converted just now or
kept for a year, it runs the probe batch and must agree with the reference's features within
:data:`TOLERANCE`. So neither a converter's mistake, nor a damaged file, nor another version of
ONNX Runtime gets past, and a warm start needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.console import import_keras, say
from data_cache.errors import EngineError
from data_cache.files import whole_folder
from data_cache.stat_index import memory_folder
from extract.backbones import POOLED, Backbone
from extract.feature_layers import load_feature_model
from extract.layouts import leaf_layers, weighted_layers
from extract.preprocess import LARGEST_PIXEL, PixelScaling
from extract.weights import Weights

CONVERTER_VERSION = 1
"""A change of what is converted, or how, is a change of the version."""

TOLERANCE = 1e-4
"""The largest relative error at which features still count as the reference's."""

N_PROBE_IMAGES = 4

_NEEDED_TO_CONVERT = ("onnx", "tf2onnx")


@dataclass(frozen=True)
class Converted:
    """A folder with a converted backbone."""

    folder: Path

    @property
    def model(self) -> Path:
        """Return the path of the ONNX file."""
        return self.folder / "model.onnx"

    def probe(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the probe batch (n, S, S, 3) and the reference's features of it (n, d).

        Raises
        ------
        EngineError
            They cannot be read.
        """
        try:
            with (self.folder / "probe.npz").open("rb") as stream:
                arrays = np.load(stream, allow_pickle=False)
                return arrays["batch"], arrays["features"]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise EngineError(f"the probe in {self.folder} cannot be read ({error})") from error


def kept_folder(backbone: Backbone, weights: Weights, image_size: int) -> Converted:
    """Return the folder that holds, or would hold, a backbone's conversion."""
    identity = f"{CONVERTER_VERSION} {backbone.name} {image_size} {weights.digest}"
    if backbone.feature_layer != POOLED:
        identity += f" {backbone.feature_layer}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Converted(memory_folder() / "converted" / f"{backbone.name}-{image_size}-{key}")


def convert(backbone: Backbone, weights: Weights, image_size: int) -> Converted:
    """Convert a backbone, ask the reference for the probe's features, and keep both.

    Raises
    ------
    EngineError
        The converter is not installed, or cannot convert this backbone.
    BackboneError
        The backbone has no such feature layer.
    """
    missing = [name for name in _NEEDED_TO_CONVERT if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            f"converting to ONNX needs {' and '.join(missing)}: pip install '.[fast]'"
        )
    model = load_feature_model(backbone, weights, image_size)
    say(f"converting {backbone.name} at {image_size} pixels to ONNX, once")
    batch = probe_batch(backbone.scaling, image_size)
    with quiet():
        features = np.asarray(model(batch, training=False), np.float32)
    kept = kept_folder(backbone, weights, image_size)
    kept.folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(kept.folder, overwrite=True) as temporary:
        np.savez(temporary / "probe.npz", batch=batch, features=features)
        _export(model, temporary / "model.onnx")
    return kept


def probe_batch(scaling: PixelScaling, image_size: int) -> NDArray[np.float32]:
    """Return images that try a backbone's whole input range: waves from coarse to fine, and noise.

    The result is (N_PROBE_IMAGES, S, S, 3) float32, as preprocessing would scale it.
    """
    noise = np.random.default_rng(0).uniform(-1, 1, (N_PROBE_IMAGES, image_size, image_size, 3))
    place = np.linspace(0, 1, image_size)
    angles = [4**index * np.add.outer(place, place**2) for index in range(N_PROBE_IMAGES - 1)]
    waves = [np.sin(2 * math.pi * angle)[:, :, None] * (1.0, 0.5, -1.0) for angle in angles]
    images = np.stack([*(0.75 * np.stack(waves) + 0.25 * noise[:-1]), noise[-1]])
    return (LARGEST_PIXEL * (images + 1) / 2 * scaling.scale + scaling.offset).astype(np.float32)


def relative_error(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the largest relative distance ‖f - r‖ / ‖r‖ of a row (n, d) from the reference's."""
    if features.shape != reference.shape or not np.isfinite(features).all():
        return math.inf
    distance = np.linalg.norm(features - reference, axis=1)
    size = np.linalg.norm(reference, axis=1)
    return float(np.max(distance / np.maximum(size, np.finfo(np.float32).tiny)))


def _export(model: Any, path: Path) -> None:
    """Write a Keras model as ONNX, quietly; raise :class:`EngineError` where that fails."""
    try:
        with quiet():
            twin = exportable(model)
            twin(np.zeros((1, *model.input_shape[1:]), np.float32))  # the exporter wants it called
            twin.export(str(path), format="onnx", verbose=False)
    except Exception as error:  # converters raise anything
        raise EngineError(f"{model.name} cannot be converted to ONNX ({error})") from error


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
