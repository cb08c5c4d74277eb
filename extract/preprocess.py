"""The one preprocessing function: pixels in, the backbone's square input out.

An image is resized as ``tf.image.resize(..., method="bilinear", antialias=True)`` resizes it, then
scaled as the backbone's own ``preprocess_input`` in Keras scales it. Both are linear in the pixels,
so an image costs a few small matrix products in NumPy: rows first, then columns, with the scaling
and the step from one gray channel to three folded into the weights of the columns. NumPy releases
the interpreter's lock in all of them, and each is small enough to stay on the calling thread.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import BadImageError

Pixels = NDArray[np.uint8] | NDArray[np.float32]
ResizeMode = Literal["stretch", "crop", "pad"]

RESIZE_MODES: tuple[ResizeMode, ...] = ("stretch", "crop", "pad")
RESIZING = "triangle/1"
"""Name and version of the resizing; a change of its results is a change of the version."""

PAD_FILL = 127.5
"""The pixel around an image in mode ``pad``: middle gray, which the scaling ``tf`` makes 0."""

LARGEST_PIXEL = 255.0
_RANGE_TOLERANCE = 1e-4
_PRODUCT_SIZE = 250_000
"""Multiplications in one product; OpenBLAS wakes its other threads above 262,144."""

_BATCH_VALUES = 1 << 18
"""Intermediate values held at a time (1 MiB), so that they stay in the processor's cache."""

_CACHED_LENGTH = 1024
"""Weights for longer sides are made anew each time: they are large, and such images slow anyhow."""


@dataclass(frozen=True)
class PixelScaling:
    """The affine map from a pixel in [0, 255] to what a backbone was trained on.

    Attributes
    ----------
    name, version : a part of the cache's identity; new numbers mean a new version
    scale, offset : one number for each output channel; the result is ``scale * x + offset``
    bgr : whether the output's channels are blue, green, red instead of red, green, blue
    """

    name: str
    version: int
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    bgr: bool = False

    @property
    def identity(self) -> str:
        """Name and version, such as ``tf/1``."""
        return f"{self.name}/{self.version}"

    @property
    def lowest(self) -> float:
        """The smallest number that a pixel can become: -1 for ``tf``."""
        return min(self.offset)

    @property
    def highest(self) -> float:
        """The largest number that a pixel can become: 1 for ``tf``."""
        pairs = zip(self.scale, self.offset, strict=True)
        return max(LARGEST_PIXEL * scale + offset for scale, offset in pairs)


_TORCH_MEAN = (0.485, 0.456, 0.406)
_TORCH_STD = (0.229, 0.224, 0.225)

# The modes of keras.applications.imagenet_utils.preprocess_input, and that of the backbones that
# do their own scaling in a first layer.
SCALINGS: dict[str, PixelScaling] = {
    "tf": PixelScaling("tf", 1, (1 / 127.5,) * 3, (-1.0,) * 3),
    "caffe": PixelScaling("caffe", 1, (1.0,) * 3, (-103.939, -116.779, -123.68), bgr=True),
    "torch": PixelScaling(
        "torch",
        1,
        (1 / 255 / _TORCH_STD[0], 1 / 255 / _TORCH_STD[1], 1 / 255 / _TORCH_STD[2]),
        (
            -_TORCH_MEAN[0] / _TORCH_STD[0],
            -_TORCH_MEAN[1] / _TORCH_STD[1],
            -_TORCH_MEAN[2] / _TORCH_STD[2],
        ),
    ),
    "identity": PixelScaling("identity", 1, (1.0,) * 3, (0.0,) * 3),
}


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded image becomes the backbone's input.

    Attributes
    ----------
    scaling : what happens to each pixel
    image_size : side S of the square result, in pixels
    resize_mode : how an image that is not square becomes so. ``stretch`` resizes each side to S;
        ``crop`` resizes the short side to S and keeps the middle of the long one; ``pad`` resizes
        the long side to S and puts the image in the middle of a square of :data:`PAD_FILL`
    """

    scaling: PixelScaling
    image_size: int
    resize_mode: ResizeMode = "stretch"

    @property
    def identity(self) -> str:
        """What a recipe records, besides the size and the mode: ``triangle/1 tf/1``."""
        return f"{RESIZING} {self.scaling.identity}"


def preprocess(
    images: Pixels, preprocessing: Preprocessing, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Resize and scale images of one size; safe to call from many threads.

    Parameters
    ----------
    images : (n, h, w, 1) or (n, h, w, 3), uint8, or float32 in [0, 255]
    preprocessing : the size, the mode and the scaling
    out : (n, S, S, 3) float32, C-contiguous, filled and returned; None makes a new array

    Returns
    -------
    (n, S, S, 3) float32, within 1e-5 of the scaling's range of what TensorFlow and Keras give

    Raises
    ------
    BadImageError
        A float image has values outside [0, 255] that show in the result, or that are not finite.
    ValueError
        ``out`` is not such.
    """
    n_images, height, width, n_channels = images.shape
    size = preprocessing.image_size
    shape = (n_images, size, size, 3)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous float32 of shape {shape}")
    resize = _plan(height, width, n_channels, preprocessing)
    step = max(1, _BATCH_VALUES // max(resize.n_intermediate, size * size * 3))
    for start in range(0, n_images, step):
        part = slice(start, start + step)
        with np.errstate(invalid="ignore"):  # infinite pixels, which the range tells of below
            _preprocess_part(images[part], resize, out[part])
    return out


@dataclass(frozen=True)
class _Span:
    """One side of an image: ``n_in`` pixels resized to ``n_resized``, of which a part is kept.

    The part starts at resized pixel ``skip``, has ``length`` pixels and lands at ``start``.
    """

    n_in: int
    n_resized: int
    skip: int
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class _Band:
    """A run of output pixels of one side, and the run of input pixels that they are made of."""

    out: slice
    source: slice
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class _Plan:
    """What to do to every image of one height, width and number of channels."""

    scaling: PixelScaling
    rows: _Span
    columns: _Span
    row_bands: tuple[_Band, ...]
    column_bands: tuple[_Band, ...]
    n_intermediate: int


def _plan(height: int, width: int, n_channels: int, preprocessing: Preprocessing) -> _Plan:
    rows, columns = _spans(height, width, preprocessing)
    return _Plan(
        preprocessing.scaling,
        rows,
        columns,
        _row_bands(rows),
        _column_bands(columns, n_channels, preprocessing.scaling),
        rows.length * width * n_channels,
    )


def _preprocess_part(images: Pixels, plan: _Plan, out: NDArray[np.float32]) -> None:
    """Preprocess so few images that what lies between stays in the processor's cache."""
    n_images, height = images.shape[:2]
    if plan.rows.length < out.shape[1] or plan.columns.length < out.shape[2]:
        _fill(out, plan.scaling)
    resized = _apply_rows(plan.row_bands, images.reshape(n_images, height, -1), plan.rows.length)
    area = out[:, plan.rows.start : plan.rows.stop]
    _apply_columns(plan.column_bands, resized, area.reshape(n_images, plan.rows.length, -1))
    _add_offset(area[:, :, plan.columns.start : plan.columns.stop], plan.scaling)
    _check_range(out, plan.scaling)


def _spans(height: int, width: int, preprocessing: Preprocessing) -> tuple[_Span, _Span]:
    """Return how the rows and how the columns are resized, cropped and placed."""
    size = preprocessing.image_size
    if preprocessing.resize_mode == "crop":
        anchor = min(height, width)
    elif preprocessing.resize_mode == "pad":
        anchor = max(height, width)
    else:
        return _Span(height, size, 0, 0, size), _Span(width, size, 0, 0, size)
    return _span(height, anchor, size), _span(width, anchor, size)


def _span(n_in: int, anchor: int, size: int) -> _Span:
    """Resize a side by ``size / anchor``, rounded to whole pixels, and center it on ``size``."""
    n_resized = max(1, (2 * n_in * size + anchor) // (2 * anchor))
    length = min(n_resized, size)
    return _Span(n_in, n_resized, (n_resized - length) // 2, (size - length) // 2, length)


def _row_bands(span: _Span) -> tuple[_Band, ...]:
    """Return the bands of the rows; their weights are (rows out, rows in)."""
    return _cached_row_bands(span) if span.n_in <= _CACHED_LENGTH else _make_row_bands(span)


def _column_bands(span: _Span, n_channels: int, scaling: PixelScaling) -> tuple[_Band, ...]:
    """Return the bands of the columns; their weights are (columns in * c, columns out * 3)."""
    make = _cached_column_bands if span.n_in <= _CACHED_LENGTH else _make_column_bands
    return make(span, n_channels, scaling)


def _make_row_bands(span: _Span) -> tuple[_Band, ...]:
    tops, starts, weights = _triangle_weights(span)
    _, n_out, n_in = weights.shape
    return tuple(
        _Band(slice(top, top + n_out), slice(start, start + n_in), one)
        for top, start, one in zip(tops, starts, weights, strict=True)
    )


def _make_column_bands(span: _Span, n_channels: int, scaling: PixelScaling) -> tuple[_Band, ...]:
    tops, starts, weights = _triangle_weights(span)
    n_bands, n_out, n_in = weights.shape
    mixed = np.zeros((n_bands, n_in, n_channels, n_out, 3), np.float32)
    for to in range(3):
        origin = 0 if n_channels == 1 else 2 - to if scaling.bgr else to
        mixed[:, :, origin, :, to] = weights.transpose(0, 2, 1) * np.float32(scaling.scale[to])
    flat = mixed.reshape(n_bands, n_in * n_channels, n_out * 3)
    bands = []
    for top, start, one in zip(tops, starts, flat, strict=True):
        out = slice(3 * (span.start + top), 3 * (span.start + top + n_out))
        bands.append(_Band(out, slice(start * n_channels, (start + n_in) * n_channels), one))
    return tuple(bands)


_cached_row_bands = functools.lru_cache(maxsize=1024)(_make_row_bands)
_cached_column_bands = functools.lru_cache(maxsize=256)(_make_column_bands)


def _triangle_weights(span: _Span) -> tuple[list[int], list[int], NDArray[np.float32]]:
    """Return where each band starts in the output and in the input, and its weights.

    Output pixel x lies at s = (x + 1/2) n_in / n_resized in the input, and input pixel j, whose
    middle is at j + 1/2, has weight max(0, 1 - |j + 1/2 - s| / r) there, normalized to sum 1, with
    r = max(1, n_in / n_resized). Positions are rounded to float32 where TensorFlow's kernel
    ``ScaleAndTranslate`` rounds them, or long sides would differ at sharp edges.

    The weights are (bands, out, in) float32. The last band reaches back into the one before, so
    all are of one size: a band of one pixel would be a vector, for which BLAS wakes its threads.
    """
    stride = np.float32(1 / float(np.float32(span.n_resized) / np.float32(span.n_in)))
    radius = max(stride, np.float32(1))
    n_out = min(_band_length(float(stride)), span.length)
    tops = np.minimum(np.arange(0, span.length, n_out), span.length - n_out)
    index = (tops[:, None] + np.arange(span.skip, span.skip + n_out)).astype(np.float32)
    middle = (index + np.float32(0.5)) * stride
    first = np.clip(np.ceil(middle[:, 0] - radius - 0.5), 0, span.n_in - 1)
    last = np.clip(np.floor(middle[:, -1] + radius - 0.5), 0, span.n_in - 1)
    n_in = int((last - first).max()) + 1
    starts = np.minimum(first.astype(np.int64), span.n_in - n_in)
    pixel = (starts[:, None] + np.arange(n_in)).astype(np.float32) + np.float32(0.5)
    distance = np.abs(pixel[:, None, :] - middle[:, :, None]) / radius
    weights = np.maximum(np.float32(0), 1 - distance)
    weights /= weights.sum(axis=2, keepdims=True)
    return tops.tolist(), starts.tolist(), weights


_BAND_LENGTHS = ((0.5, 32), (0.8, 16), (8.0, 8))


def _band_length(stride: float) -> int:
    """Return how many output pixels share one product, by how many pixels in make one out.

    A longer band wastes multiplications by zero, a shorter one calls too often. As measured.
    """
    return next((length for limit, length in _BAND_LENGTHS if stride < limit), 4)


def _apply_rows(bands: tuple[_Band, ...], flat: Pixels, n_rows: int) -> NDArray[np.float32]:
    """Resize the rows of (n, h, w * c) pixels: (n, n_rows, w * c) float32.

    A band is turned to float a piece at a time, so a large photo is never held as float.
    """
    n_images, _, n_values = flat.shape
    result = np.empty((n_images, n_rows, n_values), np.float32)
    n_out, n_in = bands[0].weights.shape
    step = max(1, _PRODUCT_SIZE // (n_out * n_in))
    scratch = np.empty((n_images, n_in, min(step, n_values)), np.float32)
    for band in bands:
        for start in range(0, n_values, step):
            piece = flat[:, band.source, start : start + step]
            block = scratch[:, :, : piece.shape[2]]
            np.copyto(block, piece)
            np.matmul(band.weights, block, out=result[:, band.out, start : start + step])
    return result


def _apply_columns(
    bands: tuple[_Band, ...], rows: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Resize the columns of (n, r, w * c) values into ``out``, (n, r, S * 3); no offset yet."""
    n_rows = rows.shape[1]
    for band in bands:
        step = min(n_rows, max(2, _PRODUCT_SIZE // band.weights.size))
        for start in range(0, n_rows, step):
            part = slice(min(start, n_rows - step), start + step)
            np.matmul(rows[:, part, band.source], band.weights, out=out[:, part, band.out])


def _add_offset(area: NDArray[np.float32], scaling: PixelScaling) -> None:
    """Add the scaling's offset to (n, r, c, 3) values; one number is faster than three."""
    if len(set(scaling.offset)) == 1:
        area += np.float32(scaling.offset[0])
    else:
        area += np.array(scaling.offset, np.float32)


def _fill(out: NDArray[np.float32], scaling: PixelScaling) -> None:
    """Fill ``out`` with what :data:`PAD_FILL` becomes."""
    out[:] = np.array(scaling.scale, np.float32) * np.float32(PAD_FILL) + np.array(
        scaling.offset, np.float32
    )


def _check_range(out: NDArray[np.float32], scaling: PixelScaling) -> None:
    """Raise :class:`BadImageError` unless every value is one that the scaling can give."""
    if not out.size:
        return
    lowest, highest = float(out.min()), float(out.max())
    slack = _RANGE_TOLERANCE * (scaling.highest - scaling.lowest)
    if scaling.lowest - slack <= lowest and highest <= scaling.highest + slack:
        return
    raise BadImageError(
        f"pixels become {lowest:g} to {highest:g} where {scaling.lowest:g} to "
        f"{scaling.highest:g} is possible: a float image must hold 0 to 255"
    )
