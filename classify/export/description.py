"""What an exported file says of itself, as JSON in its own metadata; written here and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from classify.export.graph import IMAGES, LOGITS, PROBABILITIES
from classify.export.licenses import TUNED, License, license_of
from classify.export.parity import AnyParity
from classify.export.sealing import seal
from classify.results.runs import TUNED_KIND, Run
from data_cache.errors import ModelError
from extract.decode import DecodeOptions
from extract.extractor import Extractor
from extract.preprocess import RESIZE_MODES, SCALINGS, Preprocessing

Probabilities = Literal["raw", "calibrated"]

_PACKAGES = ("headstart", "keras", "tensorflow", "onnx", "tf2onnx", "ai-edge-litert")


@dataclass(frozen=True)
class Description:
    """What is exported: one model of a run, and all that it needs.

    Attributes
    ----------
    model : name of the model in the run
    classes : names of the outputs' columns, in their order
    file_format : name of the format
    quantize : ``none``, or how a TFLite file is quantized
    temperature : what the logits were divided by; None where they are raw
    """

    run: Run
    model: str
    classes: tuple[str, ...]
    extractor: Extractor
    file_format: str
    quantize: str = "none"
    temperature: float | None = None

    @property
    def takes_one_size(self) -> bool:
        """Whether the file takes resized images only, and gives nothing but probabilities."""
        return self.file_format == "tflite"

    @property
    def source(self) -> str:
        """What the images are called that it learned from; not where they are on this machine."""
        source = self.run.provenance.source
        return Path(source).name or source

    @property
    def license(self) -> License:
        """The license of the backbone's weights."""
        if self.run.kind == TUNED_KIND:
            return TUNED
        return license_of(self.extractor.backbone, self.extractor.weights)

    def sealed(self, content: Mapping[str, str], parities: Sequence[AnyParity]) -> str:
        """Return the JSON that goes into the file, whose parts have the digests ``content``."""
        return seal(self._said() | {"checked": [one.figures() for one in parities]}, content)

    def _said(self) -> dict[str, Any]:
        provenance = asdict(self.run.provenance)
        del provenance["weights_path"]  # of this machine, and nobody else's business
        provenance["source"] = self.source
        return {
            "file_format": self.file_format,
            "classes": self.classes,
            "model": self.model,
            **self._tensors(),
            "preprocessing": self._preprocessing(),
            "probabilities": "raw" if self.temperature is None else "calibrated",
            "temperature": self.temperature,
            "quantize": self.quantize,
            "weights": {
                "description": self.extractor.weights.description,
                "file_sha256": self.extractor.weights.file_sha256,
                "digest": self.extractor.weights.digest,
                "license": asdict(self.license),
            },
            "recipe": asdict(self.run.recipe),
            "provenance": provenance,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }

    def _tensors(self) -> dict[str, Any]:
        """Return what goes in and what comes out."""
        probabilities = "(n, classes), each row's sum 1"
        if self.takes_one_size:
            size = self.extractor.preprocessing.image_size
            taken = f"RGB pixels in [0, 255], uint8, (1, {size}, {size}, 3), resized by the caller"
            return {"input": {IMAGES: taken}, "outputs": {PROBABILITIES: probabilities}}
        return {
            "input": {IMAGES: "RGB pixels in [0, 255], (n, height, width, 3), not resized"},
            "outputs": {
                PROBABILITIES: probabilities,
                LOGITS: "(n, classes), whose softmax they are",
            },
        }

    def _preprocessing(self) -> Mapping[str, Any]:
        """Return what the graph does before the backbone."""
        preprocessing = self.extractor.preprocessing
        scaling = preprocessing.scaling
        return {
            "image_size": preprocessing.image_size,
            "resize": "bilinear with antialiasing"
            + (", by the caller" if self.takes_one_size else ", in float32"),
            "resize_mode": preprocessing.resize_mode,
            "scale": scaling.scale,
            "offset": scaling.offset,
            "channels": "bgr" if scaling.bgr else "rgb",
        }


@dataclass(frozen=True)
class Described:
    """What a description that was read back tells whoever classifies with the file.

    Attributes
    ----------
    classes : names of the columns
    probabilities : ``raw`` or ``calibrated``
    decoding : how a file becomes pixels
    preprocessing : how pixels are resized; the scaling is that of the file, and left out
    """

    classes: tuple[str, ...]
    probabilities: Probabilities
    decoding: DecodeOptions
    preprocessing: Preprocessing

    @classmethod
    def of(cls, path: Path, said: Mapping[str, Any]) -> Described:
        """Read what :func:`classify.export.sealing.unseal` returned.

        Raises
        ------
        ModelError
            Something is missing, or not what this program would write.
        """
        try:
            return cls(
                _classes(said["classes"]),
                _one_of(said["probabilities"], ("raw", "calibrated")),
                DecodeOptions.from_identity(said["recipe"]["decoding"]),
                _resizing(said["preprocessing"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{path} has a description that this program cannot use ({error}): use the program "
                "that wrote it"
            ) from error


def _classes(names: Any) -> tuple[str, ...]:
    """Return the names of classes; raise ``ValueError`` for anything else."""
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ValueError("the classes are not a list of names")
    if not names or len(set(names)) != len(names):
        raise ValueError("the classes are not different names")
    return tuple(names)


def _one_of(found: Any, allowed: Sequence[Any]) -> Any:
    """Return what is one of a few; raise ``ValueError`` for anything else."""
    if found not in allowed:
        raise ValueError(f"{found!r}, expected {' or '.join(allowed)}")
    return found


def _resizing(said: Mapping[str, Any]) -> Preprocessing:
    """Return how images are resized, unscaled."""
    size = said["image_size"]
    if type(size) is not int or size < 1:
        raise ValueError(f"image size {size!r}, expected a whole number of pixels")
    mode = _one_of(said["resize_mode"], RESIZE_MODES)
    return Preprocessing(SCALINGS["identity"], size, mode)


def _versions() -> dict[str, str]:
    """Return the versions of the packages that write exported files, where they are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
