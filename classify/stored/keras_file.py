"""A Dense head read from its ``.keras`` file without Keras.

A file with any layer besides those that :func:`classify.heads.dense.build_dense_head` makes is left
to Keras.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from classify.stored.model import Step, StoredModel

Features = NDArray[np.float32]

_EPSILON = np.float32(1e-7)
_MOST_BYTES = 1 << 30
"""No head is that large: a file that unpacks to more is not unpacked."""


def read_dense_head(path: Path, n_classes: int) -> StoredModel | None:
    """Read a head with ``n_classes`` logits; None for a file with layers that only Keras knows.

    The logits are Keras's but for rounding, float32.

    Raises
    ------
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, BadZipFile
        The file is damaged, or its arrays do not fit each other.
    """
    with zipfile.ZipFile(path) as archive:
        config = json.loads(_member(archive, "config.json"))
        layers = _plain_layers(config)
        if layers is None:
            return None
        with h5py.File(io.BytesIO(_member(archive, "model.weights.h5")), "r") as weights:
            width, steps = _steps(layers, weights)
    head = StoredModel(np.arange(n_classes), width, steps, np.float32)
    found = head.logits(np.zeros((1, width), np.float32)).shape
    if found != (1, n_classes):
        raise ValueError(f"it gives logits of shape {found}, expected (1, {n_classes})")
    return head


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


def _steps(layers: list[Mapping[str, Any]], weights: h5py.File) -> tuple[int, tuple[Step, ...]]:
    """Return the width of the features, and what is done to them, in order."""
    width = int(layers[0]["config"]["batch_shape"][1])
    steps: list[Step] = []
    n_dense = 0
    for layer in layers:
        config = layer["config"]
        if layer["class_name"] == "Normalization":
            steps.append(_normalization(config))
        elif layer["class_name"] == "Dense":
            arrays = weights["layers"]["dense" + (f"_{n_dense}" if n_dense else "")]["vars"]
            steps.append(_dense(arrays["0"][:], arrays["1"][:], config["activation"]))
            n_dense += 1
    return width, tuple(steps)


def _normalization(config: Mapping[str, Any]) -> Step:
    """Return (x - mean) / max(sqrt(variance), epsilon), as Keras's layer computes it."""
    mean = np.asarray(config["mean"], np.float32)
    variance = np.asarray(config["variance"], np.float32)
    scale: Features = np.maximum(np.sqrt(variance), _EPSILON)
    return lambda rows: np.asarray((rows - mean) / scale, np.float32)


def _dense(kernel: Features, bias: Features, activation: str) -> Step:
    """Return x W + b, and the positive part of it for ``relu``."""
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise ValueError("its weights are not all finite")
    if activation == "relu":
        return lambda rows: np.maximum(rows @ kernel + bias, 0)
    return lambda rows: rows @ kernel + bias
