"""The file formats: how each is written, and how it is run again by its own runtime.

=============  ==========================  =================================================
format         output                      input
=============  ==========================  =================================================
``keras``      a file ``.keras``           (n, h, w, 3), any type; ``headstart.json`` inside
``savedmodel`` a folder for serving        (n, h, w, 3) uint8; float32 as ``serving_float32``
``onnx``       a file ``.onnx``            (n, h, w, 3) uint8, or float32 where asked for
=============  ==========================  =================================================
"""

from __future__ import annotations

import importlib.util
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classify.export.description import JSON_NAME, KEY
from classify.export.graph import IMAGES, LOGITS, PROBABILITIES, Plan
from data_cache.console import import_keras
from data_cache.errors import ExportError
from extract.convert import quiet
from extract.preprocess import Pixels

InputType = Literal["uint8", "float32"]

Outputs = Mapping[str, NDArray[np.float32]]
"""``logits`` and ``probabilities``, (n, k) each."""

Predict = Callable[[Pixels], Outputs]
"""Runs an exported file on images of one size, (n, h, w, 3)."""

SERVING, SERVING_FLOAT32 = "serving_default", "serving_float32"
_OPSET = 17


@dataclass(frozen=True)
class Format(ABC):
    """One file format.

    Attributes
    ----------
    suffix : what its files are called, empty for a folder
    """

    suffix = ""

    @abstractmethod
    def write(self, plan: Plan, path: Path, description: str) -> None:
        """Write the model to ``path``; ``description`` is the JSON of its metadata.

        Raises
        ------
        ExportError
            The format cannot hold it, or what writes it is not installed.
        """

    @abstractmethod
    def open(self, path: Path) -> Mapping[str, Predict]:
        """Load what was written, and return every way of running it, by a name for people."""


@dataclass(frozen=True)
class KerasFormat(Format):
    """Keras's own: a zip of JSON and weights, which loads without running any code of its own."""

    suffix = ".keras"

    def write(self, plan: Plan, path: Path, description: str) -> None:
        """Save the model, and put the description into the zip."""
        plan.build().save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(JSON_NAME, description)

    def open(self, path: Path) -> Mapping[str, Predict]:
        """Load it in Keras's safe mode."""
        model = import_keras().saving.load_model(path, compile=False, safe_mode=True)

        def call(images: Pixels) -> Outputs:
            return _as_arrays(model(images, training=False))

        def predict(images: Pixels) -> Outputs:
            return _as_arrays(model.predict(images, verbose=0))

        return {"model(x)": call, "model.predict(x)": predict}


@dataclass(frozen=True)
class SavedModelFormat(Format):
    """TensorFlow's folder for serving, with one signature for each type of pixel."""

    def write(self, plan: Plan, path: Path, description: str) -> None:
        """Write the folder; the description goes where TensorFlow leaves files alone."""
        import_keras()
        import tensorflow as tf
        from keras.export import ExportArchive

        model = plan.build()
        archive = ExportArchive()
        archive.track(model)
        for name, dtype in ((SERVING, tf.uint8), (SERVING_FLOAT32, tf.float32)):
            signature = [tf.TensorSpec((None, None, None, 3), dtype, IMAGES)]
            archive.add_endpoint(name, lambda images: model(images, training=False), signature)
        with quiet():
            archive.write_out(path, verbose=False)
        extra = path / "assets.extra"
        extra.mkdir()
        (extra / JSON_NAME).write_text(description + "\n", encoding="utf-8")

    def open(self, path: Path) -> Mapping[str, Predict]:
        """Load it with TensorFlow alone."""
        import_keras()
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))

        def serve(images: Pixels) -> Outputs:
            name = SERVING if images.dtype == np.uint8 else SERVING_FLOAT32
            return _as_arrays(loaded.signatures[name](**{IMAGES: tf.constant(images)}))

        return {f"signature {SERVING}": serve}


@dataclass(frozen=True)
class OnnxFormat(Format):
    """ONNX of standard operators, which no runtime needs an extension for."""

    input_type: InputType = "uint8"
    suffix = ".onnx"

    def write(self, plan: Plan, path: Path, description: str) -> None:
        """Convert the graph, and name its axes."""
        _expect("onnx", "tf2onnx", "onnxruntime")
        import onnx

        model = plan.build(portable=True)
        spec = import_keras().InputSpec(self.input_type, (None, None, None, 3), name=IMAGES)
        try:
            with quiet():
                model.export(
                    str(path),
                    format="onnx",
                    verbose=False,
                    input_signature=[spec],
                    opset_version=_OPSET,
                )
        except Exception as error:  # converters raise anything
            raise ExportError(f"this model cannot be converted to ONNX ({error})") from error
        converted = onnx.load(path)
        _name_axes(converted.graph)
        converted.metadata_props.add(key=KEY, value=description)
        onnx.checker.check_model(converted)
        onnx.save(converted, path)

    def open(self, path: Path) -> Mapping[str, Predict]:
        """Load it in ONNX Runtime."""
        _expect("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]

        def run(images: Pixels) -> Outputs:
            if images.dtype != np.dtype(self.input_type) and self.input_type == "uint8":
                raise ExportError(
                    "these images have more than 8 bits: export with --input-type float32"
                )
            outputs = session.run(names, {IMAGES: images.astype(self.input_type, copy=False)})
            return dict(zip(names, outputs, strict=True))

        return {"ONNX Runtime": run}


def _as_arrays(outputs: Mapping[str, Any]) -> Outputs:
    return {name: np.asarray(value) for name, value in outputs.items()}


def _name_axes(graph: Any) -> None:
    """Call the open axes of inputs and outputs what they are, not ``unk__43``."""
    axes = {IMAGES: ("n", "height", "width"), LOGITS: ("n",), PROBABILITIES: ("n",)}
    for value in (*graph.input, *graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=False):
            axis.dim_param = name


def _expect(*packages: str) -> None:
    """Raise :class:`ExportError` where a package is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"the format onnx needs {' and '.join(missing)}: pip install '.[fast]'")
