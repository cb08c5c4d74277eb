"""What a backbone's weights are called and how big they are, known without building the model.

A *layout* lists a backbone's layers that have weights, in the order of its constructor. With it,
a weights file is checked, read and digested by h5py and NumPy alone: a file that does not fit is
refused before TensorFlow is imported, and a run that needs no forward pass never imports it.

``NAME.json`` in this folder is the layout of the backbone ``NAME``, made from Keras's own model by
:func:`model_layout`; the tests compare the two. A layout does not depend on the image size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerLayout:
    """One layer that has weights.

    Attributes
    ----------
    name : the layer's name in Keras, such as ``block_1_expand_BN``
    group : where Keras 3 keeps it in a ``.weights.h5`` file, below ``layers``: ``conv2d_3``, or
        ``sequential/conv2d`` for a layer inside a block
    variables : name and shape of each weight, in Keras's order
    """

    name: str
    group: str
    variables: tuple[tuple[str, Shape], ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Return the shape of each weight."""
        return tuple(shape for _, shape in self.variables)


@dataclass(frozen=True)
class Layout:
    """Every layer of a backbone that has weights, in the order of its constructor."""

    layers: tuple[LayerLayout, ...]

    def to_json(self) -> str:
        """Return the layout as JSON, one line a layer."""
        lines = (
            json.dumps([layer.name, layer.group, dict(layer.variables)]) for layer in self.layers
        )
        return "[\n" + ",\n".join(lines) + "\n]\n"

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Return the layout that :meth:`to_json` wrote."""
        return cls(
            tuple(
                LayerLayout(name, group, tuple((key, tuple(shape)) for key, shape in sizes.items()))
                for name, group, sizes in json.loads(text)
            )
        )


@cache
def stored_layout(name: str) -> Layout | None:
    """Return the layout kept for the backbone ``name``, or None where there is none."""
    path = Path(__file__).with_name(f"{name}.json")
    return Layout.from_json(path.read_text("utf-8")) if path.is_file() else None


def model_layout(model: Any) -> Layout:
    """Return the layout of a built Keras model."""
    return Layout(
        tuple(
            LayerLayout(plain_name(layer.name), group, tuple(_variables(layer)))
            for layer, group in weighted_layers(model)
        )
    )


def weighted_layers(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield each layer of ``model`` that has weights and no layers of its own, with its group."""
    return ((layer, group) for layer, group in leaf_layers(model) if layer.weights)


def leaf_layers(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield each layer of ``model`` that has no layers of its own, with its group."""
    counts: dict[str, int] = {}
    for layer in model.layers:
        group = _next_group(type(layer).__name__, counts)
        if getattr(layer, "layers", None):
            yield from ((leaf, f"{group}/{inner}") for leaf, inner in leaf_layers(layer))
        else:
            yield layer, group


def _variables(layer: Any) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of each weight of a layer, trainable ones first, as Keras files do."""
    for weight in layer.weights:
        yield re.sub(r"_\d+$", "", weight.name), tuple(weight.shape)


def _next_group(class_name: str, counts: dict[str, int]) -> str:
    """Return the name that Keras 3 gives the next layer of a class: ``conv2d``, ``conv2d_1``."""
    group = snake_case(class_name)
    position = counts.get(group, 0)
    counts[group] = position + 1
    return f"{group}_{position}" if position else group


def snake_case(name: str) -> str:
    """Return ``DepthwiseConv2D`` as ``depthwise_conv2d``, by Keras's own rule."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def plain_name(name: str) -> str:
    """Drop the number that Keras adds to a name it made up itself, as it counts per process."""
    return re.sub(r"^(layer_normalization)_\d+$", r"\1", name)
