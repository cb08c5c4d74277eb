"""A backbone's weights: ``imagenet``, a file or ``random``; found, read, digested, put in place.

The digest is the SHA-256 over the weights in canonical order, not over a file, so it is the same
whichever kind of file brought them. It and all reading need no TensorFlow.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_cache.console import warn
from data_cache.errors import AssetError, BackboneError, WeightsError, WeightsUnavailableError
from data_cache.files import file_digest
from extract.assets import find
from extract.backbones import Backbone
from extract.layouts import Layout, Shape, weighted_layers
from extract.onnx_backbone import OnnxBackbone
from extract.weights_files import LayerArrays, read_weights

IMAGENET = "imagenet"
RANDOM = "random"
_RANDOM_SEED = 0


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one backbone, in memory.

    Attributes
    ----------
    layout : what the layers are called
    arrays : for each layer of the layout, its weights, float32
    description : in words, where they are from
    path : the file that they were read from, or None
    file_sha256 : the SHA-256 of that file, or empty
    """

    layout: Layout
    arrays: tuple[LayerArrays, ...]
    description: str
    path: Path | None = None
    file_sha256: str = ""

    @property
    def n_parameters(self) -> int:
        """Return how many numbers they are, moving statistics included."""
        return sum(array.size for arrays in self.arrays for array in arrays)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) over every layer's name, shapes and values, in layout order.

        Values count as little-endian float32 in C order. An ONNX file has no layout: its digest
        is that of the file.
        """
        if not self.arrays:
            return self.file_sha256
        running = hashlib.sha256()
        for layer, arrays in zip(self.layout.layers, self.arrays, strict=True):
            for (variable, shape), array in zip(layer.variables, arrays, strict=True):
                running.update(f"{layer.name}/{variable} {shape}\n".encode())
                running.update(np.ascontiguousarray(array, dtype="<f4").data)
        return running.hexdigest()


def find_weights(spec: str, backbone: Backbone | OnnxBackbone, image_size: int) -> Weights:
    """Return the weights that ``spec`` names: ``imagenet``, ``random`` or a path.

    ``imagenet`` looks in the places of :mod:`extract.assets` and downloads as a last resort. An
    image size for which the backbone has no weights file of its own gets a warning.

    Raises
    ------
    WeightsUnavailableError
        ``imagenet`` weights are nowhere and could not be downloaded, or the path does not exist.
    WeightsError
        The file does not fit the backbone, or is not what its name says.
    BackboneError
        The backbone cannot take images of that size, or is an ONNX file, which has its weights
        in it, and others were asked for.
    """
    backbone.check_size(image_size)
    if isinstance(backbone, OnnxBackbone):
        return _onnx_weights(spec, backbone)
    if spec == RANDOM:
        return random_weights(backbone)
    if spec == IMAGENET:
        return _imagenet_weights(backbone, image_size)
    return file_weights(Path(spec).expanduser(), backbone)


def file_weights(path: Path, backbone: Backbone, description: str = "") -> Weights:
    """Read the weights of a backbone from a file of any kind that :mod:`weights_files` reads."""
    if not path.is_file():
        raise WeightsUnavailableError(
            f"there is no weights file {path}: expected {IMAGENET}, {RANDOM} or the path of a file"
        )
    layout = backbone.layout()
    arrays = read_weights(path, layout, backbone.name)
    sha256 = file_digest(path)
    return Weights(layout, arrays, description or f"the file {path.name}", path, sha256)


def random_weights(backbone: Backbone, seed: int = _RANDOM_SEED) -> Weights:
    """Make up weights: kernels as He et al. (2015, equation 10) draw them, the rest neutral.

    The same seed gives the same weights everywhere; their features are good for tests and timing.
    """
    generator = np.random.default_rng(seed)
    layout = backbone.layout()
    arrays = tuple(
        tuple(_random_weight(name, shape, generator) for name, shape in layer.variables)
        for layer in layout.layers
    )
    return Weights(layout, arrays, f"random (seed {seed}): good for tests and timing only")


def set_weights(model: Any, weights: Weights) -> None:
    """Put weights into a Keras model that :meth:`Backbone.build` built.

    Raises
    ------
    WeightsError
        This version of Keras builds the model with other layers than the weights are for.
    """
    layers = [layer for layer, _ in weighted_layers(model)]
    shapes = [tuple(tuple(weight.shape) for weight in layer.weights) for layer in layers]
    if shapes != [layer.shapes for layer in weights.layout.layers]:
        raise WeightsError(
            f"the Keras that is installed builds {model.name} with other layers than expected: "
            "install the version of Keras that headstart names"
        )
    for layer, arrays in zip(layers, weights.arrays, strict=True):
        layer.set_weights(arrays)


def _onnx_weights(spec: str, backbone: OnnxBackbone) -> Weights:
    """Return what identifies the weights inside an ONNX file; they are not read."""
    if spec != IMAGENET:
        raise BackboneError(f"{backbone.path} has its weights in it: leave --weights out")
    sha256 = file_digest(backbone.path)
    return Weights(Layout(()), (), f"those in {backbone.path.name}", backbone.path, sha256)


def _imagenet_weights(backbone: Backbone, image_size: int) -> Weights:
    """Find, or download, and read a backbone's ImageNet weights for an image size."""
    file = backbone.weights_file(image_size)
    try:
        found = find(file)
    except AssetError as error:
        raise WeightsUnavailableError(
            f"no ImageNet weights for {backbone.name}: {error}; pass a file with --weights FILE, "
            "or fill a folder on a machine with a network (headstart-assets fetch --to DIR) and "
            "set HEADSTART_ASSETS to it"
        ) from error
    if image_size not in backbone.sized_weights:
        sizes = ", ".join(map(str, backbone.sized_weights))
        warn(
            f"there are no ImageNet weights of {backbone.name} for {image_size} pixels "
            f"(only for {sizes}): using {found.path.name}"
        )
    check = "its digest is the official one" if found.is_official else "not checked by a digest"
    description = f"ImageNet, {found.path.name} ({found.place}; {check})"
    return file_weights(found.path, backbone, description)


def _random_weight(name: str, shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Draw a kernel, or return the neutral value of any other weight."""
    if len(shape) > 1:
        is_depthwise = shape[-1] == 1
        fan_in = math.prod(shape[:-2] if is_depthwise else shape[:-1])
        return generator.normal(0.0, math.sqrt(2 / fan_in), shape).astype(np.float32)
    neutral = 1.0 if name in {"gamma", "variable", "moving_variance"} else 0.0
    return np.full(shape, neutral, np.float32)
