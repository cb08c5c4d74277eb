"""Feature layers: which output of a backbone becomes a feature row.

``avg_pool``, the default, is the backbone's own output, the global average pooling of its last
feature map. Any other name is that of a layer, and its whole output is kept, flattened row by row
(C order): ``block_14_add`` of ``mobilenet_v2`` at 96 pixels is 3 x 3 x 160, 1,440 numbers. Names
with ``+`` between them give the outputs of several layers one after another, in that order, which
is what training continues from where a residual connection crosses the cut; ``avg_pool`` may be one
of them.

Keras numbers the layers that nobody named as a process makes them, so the same layer is ``re_lu``
in one and ``re_lu_38`` in the next. Here they are numbered within their model, so that a name means
the same layer everywhere.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from data_cache.console import import_keras
from data_cache.errors import BackboneError
from extract.backbones import POOLED, Backbone
from extract.layouts import Shape, snake_case
from extract.weights import Weights, set_weights

SEPARATOR = "+"
"""Stands between the names of several layers."""

_N_SHOWN = 3


def load_feature_model(
    backbone: Backbone, weights: Weights, image_size: int, dtype_policy: str = "float32"
) -> Any:
    """Build a backbone, put its weights in, and end it at its feature layer.

    The Keras model takes (n, S, S, 3) scaled pixels to (n, d); it is frozen.

    Raises
    ------
    BackboneError
        The backbone has no such layer.
    WeightsError
        See :func:`extract.weights.set_weights`.
    """
    model = backbone.build(image_size, dtype_policy)
    set_weights(model, weights)
    return feature_model(model, backbone.feature_layer)


def feature_model(model: Any, feature_layer: str) -> Any:
    """Return the part of a Keras model that makes the rows (n, d) of a feature layer.

    It shares its layers with ``model``, which is returned itself for ``avg_pool``.

    Raises
    ------
    BackboneError
        See :func:`feature_tensors`.
    """
    if feature_layer == POOLED:
        return model
    keras = import_keras()
    tensors = feature_tensors(model, feature_layer)
    rows = [keras.layers.Reshape((math.prod(one.shape[1:]),))(one) for one in tensors]
    output = rows[0] if len(rows) == 1 else keras.layers.Concatenate()(rows)
    return keras.Model(model.input, output, name=model.name)


def feature_tensors(model: Any, feature_layer: str) -> tuple[Any, ...]:
    """Return the symbolic outputs of a feature layer, each (n, ...).

    Raises
    ------
    BackboneError
        The model has no layer of a name, or one has several outputs.
    """
    operations = named_operations(model)
    return tuple(_output(operations, name, model) for name in feature_layer.split(SEPARATOR))


def feature_shapes(model: Any, feature_layer: str) -> tuple[Shape, ...]:
    """Return the shape of each output of a feature layer, without the axis of images."""
    return tuple(tuple(one.shape[1:]) for one in feature_tensors(model, feature_layer))


def named_operations(model: Any) -> dict[str, Any]:
    """Return every layer and operation of a functional Keras model by a name of its own."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for operation in model.operations:
        kind, number = _made_up_name(operation)
        if number is not None:
            numbers[kind].append(number)
    named = {}
    for operation in model.operations:
        kind, number = _made_up_name(operation)
        position = 0 if number is None else sorted(numbers[kind]).index(number)
        name = operation.name if number is None else kind
        named[f"{name}_{position}" if position else name] = operation
    return named


def in_words(shapes: Sequence[Shape]) -> str:
    """Say how large a feature row is: ``3 x 3 x 160 = 1,440 numbers``."""
    sizes = " + ".join(" x ".join(f"{side:,}" for side in shape) for shape in shapes)
    total = f"{sum(map(math.prod, shapes)):,}"
    return f"{sizes} = {total} numbers" if sizes != total else f"{total} numbers"


def _made_up_name(operation: Any) -> tuple[str, int | None]:
    """Return the kind and the number in a name that Keras made up, and None for any other."""
    kind = snake_case(type(operation).__name__)
    match = re.fullmatch(rf"{kind}(?:_(\d+))?", operation.name)
    return kind, int(match[1] or 0) if match else None


def _output(operations: dict[str, Any], name: str, model: Any) -> Any:
    """Return the one output of a layer, or that of the model for ``avg_pool``."""
    if name == POOLED:
        return model.output
    if name not in operations:
        last = list(operations)[-1]
        near = get_close_matches(name, operations, n=_N_SHOWN, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"its last is {last}"
        raise BackboneError(f"{model.name} has no layer {name!r}: {hint}")
    output = operations[name].output
    if isinstance(output, list | tuple | dict):
        raise BackboneError(
            f"layer {name!r} of {model.name} has {len(output)} outputs, and a feature layer has "
            "one: name layers that come after it, with + between them"
        )
    return output
