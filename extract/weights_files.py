"""Reading a backbone's weights out of a file, with h5py and NumPy alone.

Understood are

- legacy HDF5: a no-top file of ``keras.applications``, or a whole model saved as ``.h5``;
- Keras 3: a ``.weights.h5`` file, or the one inside a ``.keras`` archive.

In a whole model the backbone may be nested (a layer of its own) or flat (its layers among the
others). Layers are recognized by name; where the names do not say (files of older versions), by
position and shape. Nothing in a file is ever executed: no configuration is deserialized, nothing
is unpickled, and links to other files are refused.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.errors import WeightsError
from data_cache.hdf5 import datasets_within
from extract.layouts import LayerLayout, Layout, Shape, plain_name

LayerArrays = tuple[NDArray[np.float32], ...]

_KERAS_ARCHIVE_WEIGHTS = "model.weights.h5"
_KERAS_3_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


@dataclass(frozen=True)
class StoredLayer:
    """One layer of a file: its name and its Keras 3 group, each empty where the file has none."""

    name: str
    group: str
    datasets: tuple[h5py.Dataset, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Return the shape of each weight."""
        return tuple(dataset.shape for dataset in self.datasets)


@dataclass(frozen=True)
class Scope:
    """A model in a file: the whole one, or one nested in it.

    ``is_ordered`` tells that its layers stand in the order of the constructor, so that position
    means something. In a nested legacy model the trainable weights may stand before all others;
    it shows in layers that are torn in two.
    """

    layers: tuple[StoredLayer, ...]
    is_ordered: bool


def read_weights(path: Path, layout: Layout, backbone_name: str) -> tuple[LayerArrays, ...]:
    """Return the weights of every layer of ``layout``, in its order, from any file understood.

    Raises
    ------
    WeightsError
        The file cannot be read, holds no model that fits (the message names the first layer that
        differs, with both shapes), holds several, or has weights that are not finite numbers.
    """
    with _open(path) as file:
        _refuse_outside(path, file)
        layers = _find_layers(path, tuple(_scopes(file)), layout, backbone_name)
        return tuple(_read_layer(path, layer) for layer in layers)


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """Open the HDF5 file at ``path``, or the one in the ``.keras`` archive there."""
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        with h5py.File(_stream(path), "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path} cannot be read as a Keras weights file ({error}): expected a .h5, a "
            ".weights.h5 or a .keras file that is whole"
        ) from error


def _stream(path: Path) -> io.BytesIO | Path:
    """Return what h5py is to open: the path, or the weights inside a ``.keras`` archive."""
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read(_KERAS_ARCHIVE_WEIGHTS))


def _scopes(file: h5py.File) -> Iterator[Scope]:
    """Yield every model in the file: the whole one first, then those nested in it."""
    legacy = file.get("model_weights", file)
    if _attribute_list(legacy, "layer_names"):
        yield from _legacy_scopes(legacy)
    else:
        yield from _keras_3_scopes(file)


def _legacy_scopes(root: h5py.Group) -> Iterator[Scope]:
    """Yield the models of a legacy file; a layer whose weights have several owners is a model."""
    models = [_legacy_model(root, name) for name in _attribute_list(root, "layer_names")]
    yield Scope(
        tuple(layer for model in models for layer in model.layers),
        is_ordered=all(model.is_ordered for model in models),
    )
    yield from (model for model in models if len(model.layers) > 1)


def _legacy_model(root: h5py.Group, name: str) -> Scope:
    """Return what stands under the name of a legacy layer: no layer, itself, or many."""
    weights = _attribute_list(root[name], "weight_names")
    runs = [owner for owner, _ in groupby(weights, _owner)]
    owners: dict[str, list[h5py.Dataset]] = defaultdict(list)
    for weight in weights:
        owners[_owner(weight)].append(root[name][weight])
    layers = tuple(
        StoredLayer(name if len(owners) == 1 else owner.rpartition("/")[2], "", tuple(datasets))
        for owner, datasets in owners.items()
    )
    return Scope(layers, is_ordered=len(runs) == len(owners))


def _owner(weight: str) -> str:
    """Return the layer's part of a legacy weight's name: ``Conv1`` of ``Conv1/kernel:0``."""
    return weight.rpartition("/")[0]


def _attribute_list(group: h5py.Group, name: str) -> list[str]:
    """Return an attribute of many names, which Keras splits in parts where it is long."""
    if name in group.attrs:
        parts = [name]
    else:
        parts = sorted((key for key in group.attrs if _is_part(key, name)), key=_number)
    return [
        value.decode() if isinstance(value, bytes) else str(value)
        for part in parts
        for value in group.attrs[part]
    ]


def _is_part(key: str, name: str) -> bool:
    """Tell whether ``key`` is ``name`` and a number."""
    return re.fullmatch(rf"{name}\d+", key) is not None


def _keras_3_scopes(file: h5py.File) -> Iterator[Scope]:
    """Yield the models of a Keras 3 file: one for every group that holds layers."""
    scopes: dict[str, list[StoredLayer]] = defaultdict(list)
    for path, name, datasets in _keras_3_layers(file):
        parts = path.split("/")
        for position, part in enumerate(parts):
            if part in _KERAS_3_CONTAINERS:
                inner = (step for step in parts[position:] if step not in _KERAS_3_CONTAINERS)
                scope = "/".join(parts[:position])
                scopes[scope].append(StoredLayer(name, "/".join(inner), datasets))
    for _, layers in sorted(scopes.items(), key=lambda item: len(item[0])):
        yield Scope(tuple(sorted(layers, key=lambda layer: _numbers(layer.group))), is_ordered=True)


def _keras_3_layers(file: h5py.File) -> Iterator[tuple[str, str, tuple[h5py.Dataset, ...]]]:
    """Yield path, name (empty in older files) and weights of each layer of a Keras 3 file."""
    found: list[tuple[str, str, tuple[h5py.Dataset, ...]]] = []

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        owner, _, last = path.rpartition("/")
        if last == "vars" and isinstance(item, h5py.Group) and len(item):
            datasets = tuple(item[key] for key in sorted(item, key=_number))
            found.append((owner, str(item.attrs.get("name", "")), datasets))

    file.visititems(visit)
    yield from found


def _number(name: str) -> int:
    """Return the number at the end of a name, 0 where there is none: ``conv2d_12`` is 12."""
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else 0


def _numbers(group: str) -> tuple[int, ...]:
    """Return the numbers of a group's steps, which order the layers of one kind."""
    return tuple(
        _number(step) if "_" in step else 0  # the 2 of conv2d is no count
        for step in group.split("/")
    )


def _kind(group: str) -> str:
    """Return a group without its counts: ``sequential_1/conv2d_3`` is ``sequential/conv2d``."""
    return re.sub(r"_\d+(?=/|$)", "", group)


def _find_layers(
    path: Path, scopes: tuple[Scope, ...], layout: Layout, backbone_name: str
) -> tuple[StoredLayer, ...]:
    """Return the file's layers that fit the layout, in its order; refuse none or several."""
    fits: dict[tuple[str, ...], tuple[StoredLayer, ...]] = {}
    for scope in scopes:
        for layers in _fits(scope, layout):
            fits.setdefault(tuple(d.name for layer in layers for d in layer.datasets), layers)
    if not fits:
        difference = _first_difference(scopes, layout)
        raise WeightsError(f"{path} does not fit {backbone_name}: {difference}")
    if len(fits) > 1:
        raise WeightsError(
            f"{path} holds {len(fits)} models that fit {backbone_name}: "
            "save the one that you mean by itself"
        )
    return next(iter(fits.values()))


def _fits(scope: Scope, layout: Layout) -> Iterator[tuple[StoredLayer, ...]]:
    """Yield each way in which a scope's layers fit the layout: by name, else by position."""
    named = _by_name(scope)
    if all(layer.name in named for layer in layout.layers):
        layers = tuple(named[layer.name] for layer in layout.layers)
        if _same_shapes(layers, layout.layers):
            yield layers
    elif scope.is_ordered:
        yield from _fits_by_position(scope, layout)


def _by_name(scope: Scope) -> dict[str, StoredLayer]:
    """Return the layers whose name only one of them has, by that name."""
    named: dict[str, list[StoredLayer]] = defaultdict(list)
    for layer in scope.layers:
        named[plain_name(layer.name)].append(layer)
    return {name: layers[0] for name, layers in named.items() if len(layers) == 1}


def _fits_by_position(scope: Scope, layout: Layout) -> Iterator[tuple[StoredLayer, ...]]:
    """Yield each run of layers whose shapes are the layout's, kind by kind in a Keras 3 file."""
    chosen: dict[LayerLayout, StoredLayer] = {}
    stored, wanted = _by_kind(scope), _layout_by_kind(scope, layout)
    if len(wanted) == 1 and "" in wanted:
        yield from _runs(stored[""], wanted[""])
        return
    for kind, layers in wanted.items():
        runs = list(_runs(stored[kind], layers))
        if len(runs) != 1:
            return
        chosen.update(zip(layers, runs[0], strict=True))
    yield tuple(chosen[layer] for layer in layout.layers)


def _by_kind(scope: Scope) -> dict[str, list[StoredLayer]]:
    """Return a scope's layers by kind, in order; legacy files know one kind only, the empty one."""
    kinds: dict[str, list[StoredLayer]] = defaultdict(list)
    for layer in scope.layers:
        kinds[_kind(layer.group)].append(layer)
    return kinds


def _layout_by_kind(scope: Scope, layout: Layout) -> dict[str, list[LayerLayout]]:
    """Return the layout's layers by kind, as :func:`_by_kind` does for a scope's."""
    has_groups = any(layer.group for layer in scope.layers)
    kinds: dict[str, list[LayerLayout]] = defaultdict(list)
    for layer in layout.layers:
        kinds[_kind(layer.group) if has_groups else ""].append(layer)
    return kinds


def _runs(
    stored: list[StoredLayer], wanted: list[LayerLayout]
) -> Iterator[tuple[StoredLayer, ...]]:
    """Yield every run of stored layers whose shapes are those wanted."""
    for start in range(len(stored) - len(wanted) + 1):
        run = tuple(stored[start : start + len(wanted)])
        if _same_shapes(run, wanted):
            yield run


def _same_shapes(
    stored: tuple[StoredLayer, ...], wanted: list[LayerLayout] | tuple[LayerLayout, ...]
) -> bool:
    """Tell whether each stored layer has the shapes wanted."""
    return all(one.shapes == two.shapes for one, two in zip(stored, wanted, strict=True))


def _first_difference(scopes: tuple[Scope, ...], layout: Layout) -> str:
    """Say which layer is the first that differs, in the scope that is nearest to the layout."""
    if not any(scope.layers for scope in scopes):
        return "it holds no layers with weights"
    nearest = max(scopes, key=lambda scope: _n_alike(scope, layout))
    for layer, stored in _pairs(nearest, layout):
        found = "no such layer" if stored is None else _words(stored.shapes)
        if stored is None or stored.shapes != layer.shapes:
            return f"layer {layer.name} has {_words(layer.shapes)} there, the file has {found}"
    return "its layers have the right shapes, but neither names nor order say which is which"


def _n_alike(scope: Scope, layout: Layout) -> int:
    """Count the layout's layers that a scope has."""
    return sum(
        stored is not None and stored.shapes == layer.shapes
        for layer, stored in _pairs(scope, layout)
    )


def _pairs(scope: Scope, layout: Layout) -> list[tuple[LayerLayout, StoredLayer | None]]:
    """Pair each layer of the layout with the scope's: by name where any name is known."""
    named = _by_name(scope)
    if any(layer.name in named for layer in layout.layers):
        return [(layer, named.get(layer.name)) for layer in layout.layers]
    stored = _by_kind(scope)
    pairs: list[tuple[LayerLayout, StoredLayer | None]] = []
    for kind, layers in _layout_by_kind(scope, layout).items():
        found = [*stored[kind], *[None] * len(layers)]
        pairs.extend(zip(layers, found, strict=False))
    return pairs


def _words(shapes: tuple[Shape, ...]) -> str:
    """Write shapes for a person: ``3x3x3x32 and 32``."""
    return " and ".join("x".join(map(str, shape)) or "a number" for shape in shapes) or "no weights"


def _read_layer(path: Path, layer: StoredLayer) -> LayerArrays:
    """Return a layer's weights as float32 arrays."""
    arrays = tuple(_read(path, dataset) for dataset in layer.datasets)
    if not all(np.isfinite(array).all() for array in arrays):
        raise WeightsError(
            f"{path}: layer {layer.name or layer.group} has weights that are not finite numbers"
        )
    return arrays


def _read(path: Path, dataset: h5py.Dataset) -> NDArray[np.float32]:
    """Return one weight as float32."""
    if dataset.dtype.kind != "f":
        raise WeightsError(f"{path}: {dataset.name} has type {dataset.dtype}, expected float32")
    return np.ascontiguousarray(dataset[()], dtype="<f4")


def _refuse_outside(path: Path, file: h5py.File) -> None:
    """Refuse a file that points outside itself: reading it would open other files."""
    try:
        datasets_within(file)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: {error}: save the weights by Keras, into one file") from error
