"""The file formats: how each is written, described, looked at before it is loaded, and run.

=============  ==========================  ====================================================
format         output                      input
=============  ==========================  ====================================================
``keras``      a file ``.keras``           (n, h, w, 3), any type; ``headstart.json`` inside
``savedmodel`` a folder for serving        (n, h, w, 3) uint8; float32 as ``serving_float32``
``onnx``       a file ``.onnx``            (n, h, w, 3) uint8, or float32 where asked for
``tflite``     a file ``.tflite``          (1, S, S, 3) uint8; see :mod:`classify.export.tflite`
=============  ==========================  ====================================================
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from classify.export.graph import IMAGES, LOGITS, PROBABILITIES, Plan
from classify.export.protobuf import Field, fields, length_delimited
from classify.export.safety import GRAPH_NAME, check_keras_file, check_onnx_file, check_saved_model
from classify.export.sealing import JSON_NAME, KEY, digest, foreign
from data_cache.console import import_keras
from data_cache.cores import n_cores
from data_cache.errors import ExportError, ModelError
from data_cache.files import file_digest
from extract.converters import quiet
from extract.preprocess import Pixels

InputType = Literal["uint8", "float32"]

Outputs = Mapping[str, NDArray[np.float32]]
"""``logits`` and ``probabilities``, (n, k) each."""

Predict = Callable[[Pixels], Outputs]
"""Runs an exported file on images of one size, (n, h, w, 3)."""

SERVING, SERVING_FLOAT32 = "serving_default", "serving_float32"
CARD_NAME = "MODEL_CARD.md"
_OPSET = 17
_BLOCK_BYTES = 1 << 20
_METADATA_FIELD = 14  # metadata_props of onnx.ModelProto


@dataclass(frozen=True)
class Runner:
    """An exported file that is ready to classify.

    Attributes
    ----------
    probabilities : images of one size (n, h, w, 3), uint8, or float32 in [0, 255] -> (n, k)
    n_concurrent : how many threads may and should call it at once
    """

    probabilities: Callable[[Pixels], NDArray[np.floating]]
    n_concurrent: int = 1


class Format(ABC):
    """One file format.

    Attributes
    ----------
    name : what a user calls it
    suffix : what its files are called, empty for a folder
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ""

    @abstractmethod
    def write(self, plan: Plan, path: Path) -> None:
        """Write the model to ``path``.

        Raises
        ------
        ExportError
            The format cannot hold it, or what writes it is not installed.
        """

    @abstractmethod
    def content(self, path: Path) -> dict[str, str]:
        """Return the SHA-256 of every part of the model but its description, by its name."""

    @abstractmethod
    def describe(self, path: Path, description: str) -> None:
        """Add the description, JSON, to a model that was written."""

    @abstractmethod
    def description(self, path: Path) -> bytes:
        """Return what :meth:`describe` added; nothing else is read.

        Raises
        ------
        ModelError
            There is none, or the file is damaged.
        """

    @abstractmethod
    def check_safe(self, path: Path) -> None:
        """Raise :class:`ModelError` where loading the file might do more than compute."""

    @abstractmethod
    def runner(self, path: Path) -> Runner:
        """Load a model that was checked, to classify with it."""


class FlexibleFormat(Format):
    """A format that takes images of any size."""

    @abstractmethod
    def ways(self, path: Path) -> Mapping[str, Predict]:
        """Load what was written, and return every way of running it, by a name for people."""


@dataclass(frozen=True)
class KerasFormat(FlexibleFormat):
    """Keras's own: a zip of JSON and weights, which loads without running any code of its own."""

    name: ClassVar[str] = "keras"
    suffix: ClassVar[str] = ".keras"

    def write(self, plan: Plan, path: Path) -> None:
        """Save the model."""
        plan.build().save(path)

    def content(self, path: Path) -> dict[str, str]:
        """Digest the files in the zip."""
        return zip_digests(path)

    def describe(self, path: Path, description: str) -> None:
        """Put the description into the zip."""
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(JSON_NAME, description)

    def description(self, path: Path) -> bytes:
        """Take the description out of the zip."""
        return zipped(path, JSON_NAME)

    def check_safe(self, path: Path) -> None:
        """Look at the classes that the file names."""
        check_keras_file(path)

    def ways(self, path: Path) -> Mapping[str, Predict]:
        """Load it in Keras's safe mode."""
        model = self._load(path)

        def call(images: Pixels) -> Outputs:
            return _as_arrays(model(images, training=False))

        def predict(images: Pixels) -> Outputs:
            return _as_arrays(model.predict(images, verbose=0))

        return {"model(x)": call, "model.predict(x)": predict}

    def runner(self, path: Path) -> Runner:
        """Load it in Keras's safe mode, and compile it."""
        model = self._load(path)
        import tensorflow as tf

        any_size = tf.TensorSpec((None, None, None, 3), tf.float32)
        forward = tf.function(
            lambda images: model(images, training=False)[PROBABILITIES], input_signature=[any_size]
        )
        return Runner(lambda images: forward(images.astype(np.float32)).numpy())

    def _load(self, path: Path) -> Any:
        self.check_safe(path)
        return import_keras().saving.load_model(path, compile=False, safe_mode=True)


@dataclass(frozen=True)
class SavedModelFormat(FlexibleFormat):
    """TensorFlow's folder for serving, with one signature for each type of pixel."""

    name: ClassVar[str] = "savedmodel"

    def write(self, plan: Plan, path: Path) -> None:
        """Write the folder."""
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

    def content(self, path: Path) -> dict[str, str]:
        """Digest the graph, its fingerprint and the variables; TensorFlow loads nothing else."""
        others = [*path.glob("fingerprint.pb"), *(path / "variables").glob("*")]
        files = [path / GRAPH_NAME, *sorted(others)]
        try:
            return {one.relative_to(path).as_posix(): file_digest(one) for one in files}
        except OSError as error:
            raise ModelError(f"{path} is not a whole SavedModel: {error}") from error

    def describe(self, path: Path, description: str) -> None:
        """Put the description where TensorFlow leaves files alone."""
        extra = path / "assets.extra"
        extra.mkdir()
        (extra / JSON_NAME).write_text(description + "\n", encoding="utf-8")

    def description(self, path: Path) -> bytes:
        """Read the description."""
        try:
            return (path / "assets.extra" / JSON_NAME).read_bytes()
        except OSError as error:
            raise foreign(path) from error

    def check_safe(self, path: Path) -> None:
        """Look at the operations and objects of the graph."""
        check_saved_model(path)

    def ways(self, path: Path) -> Mapping[str, Predict]:
        """Load it with TensorFlow alone."""
        return {f"signature {SERVING}": self._load(path)}

    def runner(self, path: Path) -> Runner:
        """Load it with TensorFlow alone."""
        serve = self._load(path)
        return Runner(lambda images: serve(images)[PROBABILITIES])

    def _load(self, path: Path) -> Predict:
        self.check_safe(path)
        import_keras()
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))

        def serve(images: Pixels) -> Outputs:
            name = SERVING if images.dtype == np.uint8 else SERVING_FLOAT32
            return _as_arrays(loaded.signatures[name](**{IMAGES: tf.constant(images)}))

        return serve


@dataclass(frozen=True)
class OnnxFormat(FlexibleFormat):
    """ONNX of standard operators, which no runtime needs an extension for."""

    input_type: InputType = "uint8"
    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"

    def write(self, plan: Plan, path: Path) -> None:
        """Convert the graph, and name its axes."""
        expect("onnx", "fast", "onnx", "tf2onnx", "onnxruntime")
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
        onnx.checker.check_model(converted)
        onnx.save(converted, path)

    def content(self, path: Path) -> dict[str, str]:
        """Digest every byte before the description."""
        data, metadata = _onnx_parts(path)
        return {"model": digest(data[: metadata.start] if metadata else data)}

    def describe(self, path: Path, description: str) -> None:
        """Append the description as an entry of the metadata.

        In Protocol Buffers a message followed by another field is that message with the field.
        """
        entry = length_delimited(1, KEY.encode()) + length_delimited(2, description.encode())
        with path.open("ab") as stream:
            stream.write(length_delimited(_METADATA_FIELD, entry))

    def description(self, path: Path) -> bytes:
        """Read the last entry of the metadata."""
        _, metadata = _onnx_parts(path)
        entry = {one.number: bytes(one.value) for one in fields(metadata.value)} if metadata else {}
        if entry.get(1) != KEY.encode():
            raise foreign(path)
        return entry.get(2, b"")

    def check_safe(self, path: Path) -> None:
        """Look at whose operators it uses, and whether all of its weights are in it."""
        check_onnx_file(path)

    def ways(self, path: Path) -> Mapping[str, Predict]:
        """Load it in ONNX Runtime."""
        session = self._load(path)
        names = [output.name for output in session.get_outputs()]

        def run(images: Pixels) -> Outputs:
            if images.dtype != np.dtype(self.input_type) and self.input_type == "uint8":
                raise ExportError(
                    "these images have more than 8 bits: export with --input-type float32"
                )
            outputs = session.run(names, {IMAGES: images.astype(self.input_type, copy=False)})
            return dict(zip(names, outputs, strict=True))

        return {"ONNX Runtime": run}

    def runner(self, path: Path) -> Runner:
        """Load it in ONNX Runtime, for one call on each core."""
        session = self._load(path, 1)
        takes_bytes = session.get_inputs()[0].type == "tensor(uint8)"

        def run(images: Pixels) -> NDArray[np.floating]:
            images = as_bytes(images) if takes_bytes else images.astype(np.float32)
            probabilities: NDArray[np.floating] = session.run([PROBABILITIES], {IMAGES: images})[0]
            return probabilities

        return Runner(run, n_cores())

    def _load(self, path: Path, n_threads: int = 0) -> Any:
        self.check_safe(path)
        expect("onnx", "fast", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = n_threads
        try:
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise ModelError(f"ONNX Runtime cannot load {path} ({error})") from error


def as_bytes(images: Pixels) -> NDArray[np.uint8]:
    """Return pixels as uint8; those of more than 8 bits are rounded."""
    return np.rint(images).astype(np.uint8) if images.dtype != np.uint8 else images.astype(np.uint8)


def opened_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip, or what has one at its end; raise :class:`ModelError` where there is none."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise foreign(path) from error


def zipped(path: Path, name: str) -> bytes:
    """Return a file in a zip; raise :class:`ModelError` where it is not there or damaged."""
    with opened_zip(path) as archive:
        try:
            return archive.read(name)
        except KeyError as error:
            raise foreign(path) from error
        except Exception as error:  # whatever a broken archive provokes in its decompressors
            raise ModelError(f"{path} is damaged: {error}") from error


def expect(name: str, extra: str, *packages: str) -> None:
    """Raise :class:`ExportError` where a package that a format needs is not installed."""
    missing = [one for one in packages if importlib.util.find_spec(one) is None]
    if missing:
        raise ExportError(
            f"the format {name} needs {' and '.join(missing)}: pip install '.[{extra}]'"
        )


def zip_digests(path: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a zip but the description."""
    with opened_zip(path) as archive:
        names = [one.filename for one in archive.infolist()]
        if len(set(names)) < len(names):
            raise ModelError(f"{path} has two files of one name in it: export it again")
        return {one: _member_digest(archive, one) for one in names if one != JSON_NAME}


def _member_digest(archive: zipfile.ZipFile, name: str) -> str:
    """Return the SHA-256 of a file in a zip, read in blocks."""
    try:
        with archive.open(name) as stream:
            running = hashlib.sha256()
            while block := stream.read(_BLOCK_BYTES):
                running.update(block)
            return running.hexdigest()
    except Exception as error:  # whatever a broken archive provokes in its decompressors
        raise ModelError(f"{archive.filename} is damaged: {name}: {error}") from error


def _onnx_parts(path: Path) -> tuple[bytes, Field | None]:
    """Return an ONNX file, and its last field where that is an entry of the metadata."""
    try:
        data = path.read_bytes()
        *_, last = fields(data)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a whole ONNX file: {error}") from error
    return data, last if last.number == _METADATA_FIELD else None


def _as_arrays(outputs: Mapping[str, Any]) -> Outputs:
    return {name: np.asarray(value) for name, value in outputs.items()}


def _name_axes(graph: Any) -> None:
    """Call the open axes of inputs and outputs what they are, not ``unk__43``."""
    axes = {IMAGES: ("n", "height", "width"), LOGITS: ("n",), PROBABILITIES: ("n",)}
    for value in (*graph.input, *graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=False):
            axis.dim_param = name
