"""A Dense head read from its ``.keras`` file without Keras.

A file with any layer besides those that :func:`classify.heads.dense.build_dense_head` makes is left
to Keras.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from classify.stored.model import Step, StoredModel
from data_cache.hdf5 import datasets_within

Features = NDArray[np.float32]

_EPSILON = np.float32(1e-7)
_MOST_BYTES = 1 << 30
"""No head is that large: a file that unpacks to more is not unpacked."""


def read_dense_head(path: Path, n_classes: int) -> StoredModel | None:
    """Read a head with ``n_classes`` logits; None for a file with layers that only Keras knows.

    The logits are Keras's but for rounding, float32.

    Raises
    ------
    SIGNS_OF_DAMAGE
        The file is damaged, its arrays do not fit each other, or it points to other files.
    """
    with zipfile.ZipFile(path) as archive:
        config = json.loads(_member(archive, "config.json"))
        layers = _plain_layers(config)
        if layers is None:
            return None
        width = _width(layers[0]["config"])
        with open_weights(archive) as weights:
            n_outputs, steps = _steps(layers, weights, width)
    if n_outputs != n_classes:
        raise ValueError(f"it gives {n_outputs} logits, expected {n_classes}")
    return StoredModel(np.arange(n_classes), width, steps, np.float32)


@contextmanager
def open_weights(archive: zipfile.ZipFile) -> Iterator[h5py.File]:
    """Open the weights in a ``.keras`` archive, after a look at everything that they consist of.

    Raises
    ------
    SIGNS_OF_DAMAGE
        There are none, they are damaged or too large to be true, or they point to other files.
    """
    with h5py.File(io.BytesIO(_member(archive, "model.weights.h5")), "r") as weights:
        for dataset in datasets_within(weights):
            if (dataset.size or 0) * dataset.dtype.itemsize > _MOST_BYTES:
                raise ValueError(f"{dataset.name} in it is larger than any head")
        yield weights


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Unpack one file of an archive, unless it is too large to be true."""
    if archive.getinfo(name).file_size > _MOST_BYTES:
        raise ValueError(f"{name} in it is larger than any head")
    return archive.read(name)


def _plain_layers(config: Any) -> list[Mapping[str, Any]] | None:
    """Return the layers of a sequence that consists of known ones, or None."""
    if config["class_name"] != "Sequential":
        return None
    layers = config["config"]["layers"]
    return layers if all(_is_plain(layer) for layer in layers) else None


def _is_plain(layer: Mapping[str, Any]) -> bool:
    """Tell whether a layer is one of those of a Dense head."""
    config = layer["config"]
    if layer["module"] != "keras.layers" or layer["registered_name"] is not None:
        return False
    if config["dtype"] != "float32" and config["dtype"]["config"]["name"] != "float32":
        return False
    if layer["class_name"] == "Dense":
        return config["activation"] in ("linear", "relu") and config["use_bias"] is True
    if layer["class_name"] == "Normalization":
        return config["invert"] is False and config["mean"] is not None
    return layer["class_name"] in ("InputLayer", "Dropout")


def _width(config: Mapping[str, Any]) -> int:
    """Return the width of the features, d; raise ``ValueError`` unless they are rows of numbers."""
    match config["batch_shape"]:
        case [None, width] if _is_count(width):
            return int(width)
    raise ValueError(f"it takes {config['batch_shape']}, expected [None, d]")


def _is_count(value: Any) -> bool:
    """Tell whether a value of a configuration is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _steps(
    layers: list[Mapping[str, Any]], weights: h5py.File, width: int
) -> tuple[int, tuple[Step, ...]]:
    """Return the width of the outputs, and what is done to the features, in order."""
    steps: list[Step] = []
    n_dense = 0
    for layer in layers:
        config = layer["config"]
        if layer["class_name"] == "Normalization":
            steps.append(_normalization(config, width))
        elif layer["class_name"] == "Dense":
            variables = weights["layers"]["dense" + (f"_{n_dense}" if n_dense else "")]["vars"]
            steps.append(_dense(config, variables, width))
            width = config["units"]
            n_dense += 1
    return width, tuple(steps)


def _normalization(config: Mapping[str, Any], width: int) -> Step:
    """Return (x - mean) / max(sqrt(variance), epsilon), as Keras's layer computes it."""
    mean, variance = (_numbers(config, name, width) for name in ("mean", "variance"))
    if (variance < 0).any():
        raise ValueError("its variance is negative")
    scale: Features = np.maximum(np.sqrt(variance), _EPSILON)
    return lambda rows: np.asarray((rows - mean) / scale, np.float32)


def _numbers(config: Mapping[str, Any], name: str, width: int) -> Features:
    """Return the numbers (d,) under a name; raise ``ValueError`` where they are anything else."""
    values = np.asarray(config[name])
    if values.shape != (width,) or values.dtype.kind not in "fi":
        raise ValueError(f"its {name} is not {width} numbers")
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise ValueError(f"its {name} is not all finite")
    return values.astype(np.float32)


def _dense(config: Mapping[str, Any], variables: h5py.Group, width: int) -> Step:
    """Return x W + b, and the positive part of it for ``relu``."""
    units = config["units"]
    if not _is_count(units):
        raise ValueError(f"a layer in it has {units!r} units")
    kernel, bias = _read(variables["0"], (width, units)), _read(variables["1"], (units,))
    if config["activation"] == "relu":
        return lambda rows: np.maximum(rows @ kernel + bias, 0)
    return lambda rows: rows @ kernel + bias


def _read(dataset: h5py.Dataset, shape: tuple[int, ...]) -> Features:
    """Read weights; raise ``ValueError`` unless they are finite float32 of this shape."""
    if dataset.shape != shape or dataset.dtype != np.float32:
        found = f"{dataset.dtype} {dataset.shape}"
        raise ValueError(f"{dataset.name} in it is {found}: expected float32 {shape}")
    weights: Features = dataset[:]
    if not np.isfinite(weights).all():
        raise ValueError("its weights are not all finite")
    return weights
