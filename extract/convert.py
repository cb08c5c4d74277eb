"""The same backbone as a file for a faster library: made once, kept, and never taken on trust.

Conversion (:mod:`extract.converters`) needs TensorFlow and 3 to 30 seconds, so its result is kept
in a folder of the user's cache::

    converted/mobilenet_v2-96-1f0c…/     backbone, image size, and the key below
        model.tflite                     or model.onnx: the graph with its weights
        probe.npz                        ``batch`` (n, S, S, 3) float32 and ``features`` (n, d)
                                         float32: what Keras, the reference, makes of that
                                         batch; ``model_sha256`` (32,) uint8, of the model

The key digests all that determines the features: the backbone's name, the image size and the
weights in canonical order, the feature layer where that is not the pooled output, with the version
of the converter. It holds no paths and no times.

Trust comes from the probe. Whenever an engine is started from a folder, converted just now or
kept for a year, it runs the probe batch and must agree with the reference's features within
:data:`TOLERANCE`. So neither a converter's mistake nor another version of the library gets past,
and a warm start needs no TensorFlow. A damaged file is known by its digest before a library, which
it might crash, sees it.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.console import say
from data_cache.errors import EngineError
from data_cache.files import file_digest, whole_folder
from data_cache.stat_index import memory_folder
from extract.backbones import POOLED, Backbone
from extract.converters import Converter, quiet
from extract.feature_layers import load_feature_model
from extract.preprocess import LARGEST_PIXEL, PixelScaling
from extract.weights import Weights

TOLERANCE = 1e-4
"""The largest relative error at which features still count as the reference's."""

N_PROBE_IMAGES = 4


@dataclass(frozen=True)
class Converted:
    """A folder with a converted backbone, and the path of the model in it."""

    folder: Path
    model: Path

    def probe(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the probe batch (n, S, S, 3) and the reference's features of it (n, d).

        Raises
        ------
        EngineError
            They cannot be read, or the model is not the file that was written beside them.
        """
        try:
            with (self.folder / "probe.npz").open("rb") as stream:
                arrays = np.load(stream, allow_pickle=False)
                batch, features = arrays["batch"], arrays["features"]
                digest = arrays["model_sha256"].tobytes().hex()
            if digest != file_digest(self.model):
                raise EngineError(f"{self.model} is not the file that was written")
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise EngineError(f"{self.folder} cannot be read ({error})") from error
        return batch, features


def kept_folder(
    converter: Converter, backbone: Backbone, weights: Weights, image_size: int
) -> Converted:
    """Return the folder that holds, or would hold, a backbone's conversion."""
    identity = f"{converter.version} {backbone.name} {image_size} {weights.digest}"
    if backbone.feature_layer != POOLED:
        identity += f" {backbone.feature_layer}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = memory_folder() / "converted" / f"{backbone.name}-{image_size}-{key}"
    return Converted(folder, folder / converter.file)


def convert(
    converter: Converter, backbone: Backbone, weights: Weights, image_size: int
) -> Converted:
    """Convert a backbone, ask the reference for the probe's features, and keep both.

    Raises
    ------
    EngineError
        The converter lacks a package, or cannot convert this backbone; or the result cannot be
        kept.
    BackboneError
        The backbone has no such feature layer.
    """
    converter.expect_packages()
    model = load_feature_model(backbone, weights, image_size)
    say(f"converting {backbone.name} at {image_size} pixels to {converter.title}, once")
    batch = probe_batch(backbone.scaling, image_size)
    with quiet():
        features = np.asarray(model(batch, training=False), np.float32)
    kept = kept_folder(converter, backbone, weights, image_size)
    try:
        kept.folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(kept.folder, overwrite=True) as temporary:
            converter.convert(model, temporary / converter.file)
            digest = bytes.fromhex(file_digest(temporary / converter.file))
            np.savez(temporary / "probe.npz", batch=batch, features=features, model_sha256=digest)
    except OSError as error:
        raise EngineError(
            f"{kept.folder.parent} cannot keep the converted {backbone.name} ({error}): name "
            "another folder in HEADSTART_MEMORY"
        ) from error
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
