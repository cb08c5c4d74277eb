"""Any fitted head as a chain of dense layers, its standardization folded into the first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.estimators import LogitsClassifier
from classify.export.graph import DenseLayer
from classify.heads.dense import DenseHead
from classify.probes import LinearProbe
from data_cache.console import import_keras
from data_cache.errors import ExportError


def dense_layers(model: LogitsClassifier) -> tuple[DenseLayer, ...]:
    """Return the dense layers, features first and logits last, that compute ``model.logits``.

    Raises
    ------
    ExportError
        The model is of a kind, or has a layer, that has no such form.
    """
    if isinstance(model, LinearProbe):
        return (_folded(model.coef_.T, model.intercept_, model.mean_, model.scale_),)
    if isinstance(model, DenseHead):
        return _layers_of(model.model_)
    raise ExportError(f"a {type(model).__name__} cannot be exported: expected a head of a run")


def _layers_of(model: Any) -> tuple[DenseLayer, ...]:
    """Walk a Dense head's layers; dropout does nothing at inference."""
    keras = import_keras()
    mean, scale = np.zeros(1), np.ones(1)
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            mean, scale = (np.asarray(part, np.float64).ravel() for part in _statistics(layer))
        elif isinstance(layer, keras.layers.Dense):
            kernel, bias = layer.get_weights()
            found.append(_folded(kernel, bias, mean, scale, layer.activation.__name__))
            mean, scale = np.zeros(1), np.ones(1)
        elif not isinstance(layer, keras.layers.Dropout):
            raise ExportError(
                f"layer {layer.name} of the head is a {type(layer).__name__}: expected dropout, "
                "normalization and dense layers"
            )
    return tuple(found)


def _statistics(layer: Any) -> tuple[Any, Any]:
    """Return the mean and the scale of a Normalization layer, as it applies them."""
    keras = import_keras()
    ops = keras.ops
    return layer.mean, ops.maximum(ops.sqrt(layer.variance), keras.config.epsilon())


def _folded(
    kernel: NDArray, bias: NDArray, mean: NDArray, scale: NDArray, activation: str = "linear"
) -> DenseLayer:
    """Return the layer of x that equals the given one of (x - mean) / scale, folded in float64."""
    folded = kernel.astype(np.float64) / scale[:, None]
    shift = np.broadcast_to(mean, len(kernel)) @ folded
    return DenseLayer(folded.astype(np.float32), (bias - shift).astype(np.float32), activation)


def tempered(layers: tuple[DenseLayer, ...], temperature: float) -> tuple[DenseLayer, ...]:
    """Return layers whose logits are those of ``layers``, divided by a temperature above 0."""
    *first, last = layers
    kernel, bias = (np.float32(1 / temperature) * part for part in (last.kernel, last.bias))
    return (*first, DenseLayer(kernel, bias, last.activation))
