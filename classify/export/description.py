"""What an exported file says of itself, as JSON in its own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from classify.export.graph import IMAGES, LOGITS, PROBABILITIES
from classify.runs import Run
from extract.extractor import Extractor

FORMAT, FORMAT_VERSION = "headstart-model", 1
KEY = "headstart"
"""Under which the JSON is kept: ``headstart.json`` where the format holds files."""

JSON_NAME = f"{KEY}.json"
_PACKAGES = ("headstart", "keras", "tensorflow", "onnx", "tf2onnx")


@dataclass(frozen=True)
class Description:
    """What is exported: one model of a run, and all that it needs.

    Attributes
    ----------
    model : name of the model in the run
    classes : names of the outputs' columns, in their order
    """

    run: Run
    model: str
    classes: tuple[str, ...]
    extractor: Extractor

    def to_json(self) -> str:
        """Return the JSON that goes into the file."""
        return json.dumps(self._content(), indent=2, ensure_ascii=False, allow_nan=False)

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "classes": self.classes,
            "model": self.model,
            "input": {IMAGES: "RGB pixels in [0, 255], (n, height, width, 3), not resized"},
            "outputs": {
                PROBABILITIES: "(n, classes), each row's sum 1",
                LOGITS: "(n, classes), whose softmax they are",
            },
            "preprocessing": self._preprocessing(),
            "weights": {
                "description": self.extractor.weights.description,
                "file_sha256": self.extractor.weights.file_sha256,
                "digest": self.extractor.weights.digest,
            },
            "recipe": asdict(self.run.recipe),
            "provenance": asdict(self.run.provenance),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }

    def _preprocessing(self) -> Mapping[str, Any]:
        """Return what the graph does before the backbone."""
        preprocessing = self.extractor.preprocessing
        scaling = preprocessing.scaling
        return {
            "image_size": preprocessing.image_size,
            "resize": "bilinear with antialiasing, in float32",
            "resize_mode": preprocessing.resize_mode,
            "scale": scaling.scale,
            "offset": scaling.offset,
            "channels": "bgr" if scaling.bgr else "rgb",
        }


def _versions() -> dict[str, str]:
    """Return the versions of the packages that write exported files, where they are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
