"""Backbones of the user's own: any feature extractor that is an ONNX file, such as DINOv2 or CLIP.

ONNX does not say how pixels are to be scaled, so a JSON file beside it must::

    {"image_size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

====================  =====================================================================
key                   meaning
====================  =====================================================================
``image_size``        side of the square input, in pixels (needed)
``mean``, ``std``     of each channel, for pixels in [0, 1]; 0 and 1 unless given
``channels``          ``rgb`` (unless given) or ``bgr``
``layout``            ``nchw`` (unless given), as PyTorch has it, or ``nhwc``
``output``            name of the output that holds the features; the first unless given
``pool``              what makes an output (n, t, d) or (n, d, h, w) a row: ``mean`` over tokens
                      or places (unless given), or ``first``, the first token; an output (n, d)
                      is taken as it is
====================  =====================================================================

The identity of such a backbone is the SHA-256 of the ONNX file; what the JSON says is part of the
recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from data_cache.errors import BackboneError
from extract.preprocess import LARGEST_PIXEL, PixelScaling

PREFIX = "onnx:"

Axes = Literal["nchw", "nhwc"]
Pool = Literal["mean", "first"]

_N_CHANNELS = 3


@dataclass(frozen=True)
class OnnxBackbone:
    """A feature extractor in an ONNX file, with all that the file itself does not say.

    Attributes
    ----------
    path : the ONNX file
    scaling : how pixels in [0, 255] become its input
    native_size : side of its input, in pixels
    axes, output, pool : as the JSON file says; an empty ``output`` is the first one
    """

    path: Path
    scaling: PixelScaling
    native_size: int
    axes: Axes = "nchw"
    output: str = ""
    pool: Pool = "mean"

    name = "onnx"

    @property
    def feature_layer(self) -> str:
        """Return what a recipe records of how a feature row is taken from the output."""
        return f"{self.output or 'first output'}, {self.pool}"

    def check_size(self, image_size: int) -> None:
        """Raise :class:`BackboneError` for any size but the one that the JSON file says."""
        if image_size != self.native_size:
            raise BackboneError(
                f"{self.path.name} takes images of {self.native_size} pixels, not {image_size}: "
                "leave --image-size out, or change image_size in the file given by --preprocess"
            )


def open_onnx_backbone(path: Path, preprocess: Path | None) -> OnnxBackbone:
    """Return the backbone in an ONNX file, read as the JSON file ``preprocess`` says.

    Raises
    ------
    BackboneError
        A file is missing, or the JSON file does not say what it should.
    """
    if not path.is_file():
        raise BackboneError(f"there is no ONNX file {path}")
    if preprocess is None:
        raise BackboneError(
            f"how are pixels scaled for {path.name}? say so in a JSON file, such as "
            '{"image_size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, '
            "and name it with --preprocess"
        )
    said = _read_settings(preprocess)
    return OnnxBackbone(
        path,
        _scaling(said["mean"], said["std"], bgr=said["channels"] == "bgr"),
        said["image_size"],
        said["layout"],
        said["output"],
        said["pool"],
    )


def _read_settings(preprocess: Path) -> dict[str, Any]:
    """Return what the JSON file says, with its defaults; refuse what means nothing."""
    try:
        said = json.loads(preprocess.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{preprocess} cannot be read as JSON ({error})") from error
    if not isinstance(said, dict) or set(said) - set(_SETTINGS):
        raise BackboneError(
            f"{preprocess} should be an object with {', '.join(_SETTINGS)} and nothing else"
        )
    settings = {key: said.get(key, setting.default) for key, setting in _SETTINGS.items()}
    for key, value in settings.items():
        if not _SETTINGS[key].is_valid(value):
            raise BackboneError(
                f"{preprocess}: {key} is {value!r}, expected {_SETTINGS[key].expected}"
            )
    return settings


def _are_numbers(values: Any) -> bool:
    """Tell whether ``values`` is one finite number for each channel."""
    return (
        isinstance(values, list)
        and len(values) == _N_CHANNELS
        and all(isinstance(value, int | float) and abs(value) < LARGEST_PIXEL for value in values)
    )


def _scaling(mean: list[float], std: list[float], *, bgr: bool) -> PixelScaling:
    """Return (x / 255 - mean) / std as a scaling whose name tells its numbers apart."""
    digest = hashlib.sha256(json.dumps([mean, std, bgr]).encode()).hexdigest()
    scale = tuple(1 / (LARGEST_PIXEL * one) for one in std)
    offset = tuple(-middle / one for middle, one in zip(mean, std, strict=True))
    return PixelScaling(f"affine-{digest[:12]}", 1, scale, offset, bgr)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Setting:
    """One key of the JSON file: its default, what it may be, and that in words."""

    default: Any
    is_valid: Callable[[Any], bool]
    expected: str


def _one_of(*choices: str) -> Callable[[Any], bool]:
    """Return a check that a value is one of ``choices``."""
    return lambda value: value in choices


_SETTINGS = {
    "image_size": _Setting(
        None, lambda value: type(value) is int and value > 0, "a whole number of pixels"
    ),
    "mean": _Setting([0.0] * _N_CHANNELS, _are_numbers, "three numbers"),
    "std": _Setting(
        [1.0] * _N_CHANNELS,
        lambda value: _are_numbers(value) and min(value) > 0,
        "three numbers above 0",
    ),
    "channels": _Setting("rgb", _one_of("rgb", "bgr"), "rgb or bgr"),
    "layout": _Setting("nchw", _one_of(*get_args(Axes)), "nchw or nhwc"),
    "output": _Setting("", lambda value: isinstance(value, str), "the name of an output"),
    "pool": _Setting("mean", _one_of(*get_args(Pool)), "mean or first"),
}
