"""The weights of one Dense head given to another as its start: at first the two agree.

Heads may standardize features by other statistics, or not at all. So what is carried over is the
function from features to logits, not the numbers: weights that take (x - m) / s become weights that
take (x - m') / s'.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.console import import_keras

Layer = tuple[NDArray[np.floating], NDArray[np.floating]]
"""A kernel (inputs, units) and a bias (units,)."""

_LEAST_SCALE = 1e-7
"""What Keras's Normalization never divides by less than."""


def carry_weights(old: Any, new: Any, columns: NDArray[np.integer]) -> None:
    """Give the Keras model ``new`` of a head the weights of ``old``, whose hidden width is equal.

    Column j of the old logits becomes column ``columns[j]`` of the new ones; every other column
    keeps the initial weights that it has.
    """
    old_layers, new_layers = _dense_layers(old), _dense_layers(new)
    carried: list[Layer] = [tuple(layer.get_weights()) for layer in old_layers]
    carried[0] = _restandardized(carried[0], _standardization(old), _standardization(new))
    for layer, weights in zip(new_layers[:-1], carried[:-1], strict=True):
        layer.set_weights(weights)
    kernel, bias = new_layers[-1].get_weights()
    kernel[:, columns], bias[columns] = carried[-1]
    new_layers[-1].set_weights([kernel, bias])


def hidden_units(model: Any) -> int:
    """Return the width of the hidden layer of a head's Keras model; 0 without one."""
    layers = _dense_layers(model)
    return int(layers[0].units) if len(layers) > 1 else 0


def _dense_layers(model: Any) -> list[Any]:
    """Return the dense layers, from the features to the logits."""
    dense = import_keras().layers.Dense
    return [layer for layer in model.layers if isinstance(layer, dense)]


def _standardization(model: Any) -> Layer:
    """Return the mean and the scale, (d,) each, that a model's features are standardized with."""
    width = int(model.input_shape[1])
    for layer in model.layers:
        if isinstance(layer, import_keras().layers.Normalization):
            mean, variance = (np.asarray(one, np.float64) for one in (layer.mean, layer.variance))
            return mean.reshape(width), np.sqrt(variance.reshape(width)).clip(min=_LEAST_SCALE)
    return np.zeros(width), np.ones(width)


def _restandardized(layer: Layer, old: Layer, new: Layer) -> Layer:
    """Return a first layer that gives with the ``new`` mean and scale what it gave with ``old``.

    (x - m) / s W + b is (x - m') / s' (s' / s W) + b + (m' - m) / s W.
    """
    (kernel, bias), (mean, scale), (new_mean, new_scale) = layer, old, new
    carried = (new_scale / scale)[:, None] * kernel
    return carried, bias + ((new_mean - mean) / scale) @ kernel
