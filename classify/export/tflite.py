"""TFLite, for phones: one image of a fixed size, uint8, to one output of probabilities.

Resizing is left to whoever calls it, as the libraries for phones expect. ``labels.txt`` and
``headstart.json`` are in a zip at the end of the file, where those libraries and ``unzip`` find
them; see :mod:`classify.export.tflite_metadata`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from classify.export.formats import (
    Format,
    Runner,
    as_bytes,
    expect,
    opened_zip,
    zip_digests,
    zipped,
)
from classify.export.graph import Plan
from classify.export.images import Sample
from classify.export.sealing import JSON_NAME, digest
from classify.export.tflite_head import with_float_head
from classify.export.tflite_metadata import LABELS_NAME, with_metadata
from data_cache.console import import_keras, standard_error_silenced
from data_cache.cores import n_cores
from data_cache.errors import ExportError, ModelError
from extract.converters import quiet
from extract.preprocess import SCALINGS, Pixels, Preprocessing, preprocess

Quantize = Literal["none", "float16", "dynamic", "int8"]
QUANTIZATIONS: tuple[Quantize, ...] = ("none", "float16", "dynamic", "int8")

N_CALIBRATION = 100
"""How many images say which ranges the numbers of an int8 model have."""

_MOST_LOADED = 4  # each has weights of its own


@dataclass(frozen=True)
class TfliteFormat(Format):
    """TFLite.

    Attributes
    ----------
    classes : what the columns of the output are called
    quantize : ``float16`` stores weights so; ``dynamic`` stores them in 8 bits, and finds the
        ranges of other numbers for each image; ``int8`` computes in whole numbers, with ranges
        fixed beforehand. The head of both is float32: see :mod:`classify.export.tflite_head`
    calibration : the images that ``int8`` is calibrated on, else None
    license_text : under what terms its weights may be used
    """

    classes: tuple[str, ...] = ()
    quantize: Quantize = "none"
    calibration: Sample | None = None
    license_text: str = ""
    name: ClassVar[str] = "tflite"
    suffix: ClassVar[str] = ".tflite"

    def write(self, plan: Plan, path: Path) -> None:
        """Convert the graph, and add Google's metadata."""
        expect("tflite", "tflite", "ai_edge_litert")
        import_keras()
        try:
            with quiet(), standard_error_silenced():
                model = self._converted(plan)
        except Exception as error:  # converters raise anything
            raise ExportError(f"this model cannot be converted to TFLite ({error})") from error
        described = with_metadata(
            model,
            image_size=plan.preprocessing.image_size,
            license_text=self.license_text,
            other_file=JSON_NAME,
        )
        path.write_bytes(described)
        _append(path, LABELS_NAME, self._labels())

    def content(self, path: Path) -> dict[str, str]:
        """Digest the model itself, and the labels at its end."""
        with opened_zip(path) as archive:
            start = min((one.header_offset for one in archive.infolist()), default=0)
        return {"model": digest(path.read_bytes()[:start]), **zip_digests(path)}

    def describe(self, path: Path, description: str) -> None:
        """Add the description to the zip at the end."""
        _append(path, JSON_NAME, description)

    def description(self, path: Path) -> bytes:
        """Take the description out of the zip."""
        return zipped(path, JSON_NAME)

    def check_safe(self, path: Path) -> None:
        """Do nothing: TFLite's operations are arithmetic, and no library of others is loaded."""

    def runner(self, path: Path) -> Runner:
        """Load it in LiteRT, which runs one call at a time, so a few times; a size of its own."""
        n_concurrent = min(n_cores(), _MOST_LOADED)
        idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(n_concurrent):
            idle.put(_interpreter(path, n_cores() // n_concurrent))

        def run(images: Pixels) -> NDArray[np.floating]:
            interpreter = idle.get()
            try:
                return np.concatenate([_run(interpreter, one[None]) for one in as_bytes(images)])
            finally:
                idle.put(interpreter)

        return Runner(run, n_concurrent)

    def _labels(self) -> str:
        """Return a line for each class; a line end within a name becomes a space."""
        return "".join(" ".join(name.splitlines()) + "\n" for name in self.classes)

    def _converted(self, plan: Plan) -> bytes:
        """Run TensorFlow's converter; of an 8-bit model the head stays in float32."""
        import tensorflow as tf

        keeps_head = self.quantize in ("int8", "dynamic")
        is_int8 = self.quantize == "int8"
        dtype = "float32" if is_int8 else "uint8"
        model = plan.build_fixed_features(dtype) if keeps_head else plan.build_fixed()
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if self.quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if self.quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if is_int8:
            converter.representative_dataset = lambda: self._calibration(plan.preprocessing)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
        converted: bytes = converter.convert()
        return with_float_head(converted, plan.layers) if keeps_head else converted

    def _calibration(self, preprocessing: Preprocessing) -> Iterator[list[NDArray[np.float32]]]:
        """Yield images to calibrate on; one has black and white in its corners.

        So the range of the input is [0, 255], and a whole number in it stands for itself.
        """
        if self.calibration is None:
            raise ExportError("int8 needs images to calibrate on")
        for number in range(len(self.calibration)):
            pixels = fit(self.calibration.image(number), preprocessing).astype(np.float32)
            if number == 0:
                pixels[0, 0], pixels[-1, -1] = 0, 255
            yield [pixels[None]]


def fit(pixels: Pixels, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize an image (h, w, 3) as for training, but to whole numbers: (S, S, 3) uint8."""
    unscaled = Preprocessing(
        SCALINGS["identity"], preprocessing.image_size, preprocessing.resize_mode
    )
    return np.rint(preprocess(pixels[None], unscaled)[0]).clip(0, 255).astype(np.uint8)


def fit_as_phones_do(pixels: Pixels, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize an image (h, w, 3) without antialiasing: bilinear between the four nearest pixels.

    So do the image classes of Android and TFLite's own resizing; of a large photo most pixels then
    play no part.
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    size, mode = preprocessing.image_size, preprocessing.resize_mode
    sides = (width, height)
    square = {"stretch": None, "crop": min(sides), "pad": max(sides)}[mode]
    shown = sides if square is None else (square, square)
    left, top = ((side - part) / 2 for side, part in zip(sides, shown, strict=True))
    gray = (127, 127, 127)
    resized = Image.fromarray(as_bytes(pixels)).transform(
        (size, size),
        Image.Transform.EXTENT,
        (left, top, left + shown[0], top + shown[1]),
        Image.Resampling.BILINEAR,
        fillcolor=gray,
    )
    return np.asarray(resized)


def _append(path: Path, name: str, text: str) -> None:
    """Put a file into the zip at the end of another file, not compressed, as phones expect it."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, text)


def _run(interpreter: Any, image: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Run a file on an image (1, S, S, 3); return its probabilities (1, k)."""
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(source["index"], image)
    interpreter.invoke()
    probabilities: NDArray[np.floating] = interpreter.get_tensor(target["index"])
    return probabilities


def _interpreter(path: Path, n_threads: int) -> Any:
    """Load a file in LiteRT; raise :class:`ModelError` where it is none."""
    expect("tflite", "tflite", "ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    try:
        with standard_error_silenced():
            interpreter = Interpreter(model_path=str(path), num_threads=n_threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"LiteRT cannot load {path} ({error})") from error
    return interpreter
