"""Where a backbone is cut in two, so that what is frozen need be computed only once.

Layers with trained weights, and every layer that depends on one of them, change while training
goes on; all others give the same output for the same image in every epoch. The *cut* is the deepest
set of tensors that separates the two: the outputs of unchanging layers that a changing one takes.
It is one tensor where training begins at a block, and more where a residual connection runs past
the first trained layer. For ``mobilenet_v2`` with its last 20 layers unfrozen it is the output of
``block_14_add``.

The cut has a name as a feature layer (:mod:`extract.feature_layers`), so a feature cache can hold
its tensors, one after another in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.console import import_keras
from data_cache.errors import ParameterError
from extract.backbones import POOLED
from extract.feature_layers import SEPARATOR, feature_shapes, in_words, named_operations
from extract.layouts import Shape


@dataclass(frozen=True)
class Cut:
    """A set of tensors inside a backbone.

    Attributes
    ----------
    feature_layer : its name as a recipe has it, such as ``block_14_add``
    shapes : of each tensor, without the axis of images
    """

    feature_layer: str
    shapes: tuple[Shape, ...]

    @property
    def n_features(self) -> int:
        """How many numbers the tensors of one image are."""
        return sum(map(math.prod, self.shapes))

    def __str__(self) -> str:
        return f"{self.feature_layer} ({in_words(self.shapes)})"

    def split(self, rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Return each tensor, (n, ...), of feature rows (n, n_features); nothing is copied."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = np.split(rows, ends, axis=1)
        return tuple(
            part.reshape(len(rows), *shape) for part, shape in zip(parts, self.shapes, strict=True)
        )


def find_cut(trunk: Any) -> Cut:
    """Find the cut of a functional Keras model whose ``trainable`` flags say what is trained.

    Where nothing is trained it is the model's output.

    Raises
    ------
    ParameterError
        A layer that takes the images themselves is trained, or depends on none that is frozen.
    """
    operations = named_operations(trunk)
    producers = {
        id(one): name for name, operation in operations.items() for one in _flat(operation.output)
    }
    taken: dict[str, list[str]] = {
        name: [producers[id(one)] for one in _flat(operation.input)]
        for name, operation in operations.items()
        if not _is_input(operation)
    }
    changing: set[str] = set()
    for name, sources in taken.items():
        if _is_trained(operations[name]) or changing.intersection(sources):
            changing.add(name)
    crossing = {one for name in changing for one in taken[name]} - changing
    if any(_is_input(operations[name]) for name in crossing):
        raise ParameterError(
            f"training reaches back to the images that go into {trunk.name}, so no activation can "
            "be kept: give a smaller --unfreeze-layers, or leave --from-cache out"
        )
    ordered = [name for name in operations if name in crossing]
    layer = SEPARATOR.join(ordered) or POOLED
    return Cut(layer, feature_shapes(trunk, layer))


def _is_trained(operation: Any) -> bool:
    """Tell whether an operation is a layer with weights that training changes."""
    return bool(getattr(operation, "trainable_weights", ()))


def _is_input(operation: Any) -> bool:
    """Tell whether an operation is where images come in."""
    return isinstance(operation, import_keras().layers.InputLayer)


def _flat(tensors: Any) -> Iterable[Any]:
    """Return tensors as a sequence, even a lone one."""
    return tensors if isinstance(tensors, list | tuple) else [tensors]
