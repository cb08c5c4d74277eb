"""The backbone and the head as one network, its last layers unfrozen, and the proof that it fits.

Batch normalization stays in inference mode and frozen, unfrozen layers around it or not: its
statistics were measured on far more images than a fine-tuning sees. Under Keras 3 a call with
``training=False`` in a functional model does not see to that once the backbone is unfrozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.fine_tune.network import Inputs, Network, make_forward
from data_cache.console import import_keras
from data_cache.errors import EngineError, ParameterError, TrainingError
from extract.backbones import Backbone
from extract.engines import has_gpu
from extract.layouts import leaf_layers
from extract.weights import Weights, set_weights


def assemble(
    backbone: Backbone, weights: Weights, image_size: int, head: Any, *, mixed_precision: bool
) -> Network:
    """Return the network of a backbone, with weights of its own, and a head; all of it frozen.

    The head is (n, d) features -> (n, k) logits, a Keras model.

    Raises
    ------
    EngineError
        ``mixed_precision`` without a GPU.
    """
    if mixed_precision and not has_gpu():
        raise EngineError("mixed precision needs a GPU, and TensorFlow sees none: leave it out")
    trunk = backbone.build(image_size, "mixed_float16" if mixed_precision else "float32")
    set_weights(trunk, weights)
    return Network(trunk, head)


def unfreeze(trunk: Any, n_layers: int) -> None:
    """Have the last layers of a trunk trained, counted without pooling, and none before them.

    Batch normalization is left frozen wherever it is.

    Raises
    ------
    ParameterError
        The trunk has fewer layers.
    """
    layers = [one for one in trunk.layers if not _is_pooling_at_the_end(one, trunk)]
    if n_layers > len(layers):
        raise ParameterError(
            f"{n_layers} layers to unfreeze, but {trunk.name} has {len(layers)}: give "
            f"--unfreeze-layers {len(layers)} for all of them, or fewer"
        )
    trunk.trainable = True
    for position, layer in enumerate(layers):
        layer.trainable = position >= len(layers) - n_layers
    for layer in normalizations(trunk):
        layer.trainable = False


def normalizations(trunk: Any) -> Iterator[Any]:
    """Yield the batch normalization layers of a model, those in nested models too."""
    kind = import_keras().layers.BatchNormalization
    return (layer for layer, _ in leaf_layers(trunk) if isinstance(layer, kind))


def check_parity(
    network: Network, inputs: Inputs, expected: NDArray[np.floating], tolerance: float
) -> float:
    """Return how far the network's logits on the first rows are off those expected, (n, k).

    The distance is the largest difference, in units of the largest logit where that is above 1.

    Raises
    ------
    TrainingError
        It is more than ``tolerance``.
    """
    found = make_forward(network, len(expected))(inputs, len(expected))
    scale = max(1.0, float(np.abs(expected).max()))
    distance = float(np.abs(found - expected).max()) / scale
    if not distance <= tolerance:
        raise TrainingError(
            f"the backbone and the head together give other logits than the head on cached "
            f"features: {distance:.1e} off, expected at most {tolerance:.0e}: the images, the "
            "weights or the head are not those of the features"
        )
    return distance


def _is_pooling_at_the_end(layer: Any, trunk: Any) -> bool:
    """Tell whether a layer is the global pooling that makes feature rows."""
    return layer is trunk.layers[-1] and "GlobalAveragePooling" in type(layer).__name__
