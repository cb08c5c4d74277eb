"""The one preprocessing function: pixels in, the backbone's square input out.

An image is resized as ``tf.image.resize(..., method="bilinear", antialias=True)`` resizes it, then
scaled as the backbone's own ``preprocess_input`` in Keras scales it. Both are linear in the pixels,
so an image costs matrix products in NumPy: rows first, then columns, with the scaling and the step
from one gray channel to three folded into the weights of the columns.

The weights are nearly all zero, so the products are cut into small ones, of bands of pixels. All
bands are of one size and lie at even steps, so NumPy does them in one call and holds no lock
meanwhile: with a call for each band, threads spend several times as long handing the lock around
as they do resizing. Each product is small enough for BLAS to stay on the calling thread.
"""

from __future__ import annotations

import functools
import math
import threading
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided
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

_BLOCK_VALUES = 1 << 18
"""Input values turned to float at a time (1 MiB), so that a large photo is never held as float."""

_SCRATCH_VALUES = 1 << 20
"""Intermediate arrays up to this size (4 MiB) stay with their thread: new ones cost page faults."""

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
class _Even:
    """``count`` pieces of one ``size``, each ``step`` after the one before.

    They may overlap; what two pieces have in common is computed twice.
    """

    count: int
    step: int
    size: int

    @classmethod
    def cut(cls, length: int, most: int) -> _Even:
        """Cover a length, 1 or more, by pieces of ``most`` or less that overlap by a few."""
        count = -(-length // most)
        while length - (count - 1) * (length // count) > most:
            count += 1
        step = length // count
        return cls(count, step, length - (count - 1) * step)

    def times(self, n: int) -> _Even:
        """Return the pieces where each place has ``n`` values."""
        return _Even(self.count, self.step * n, self.size * n)


@dataclass(frozen=True)
class _Bands:
    """Runs of output pixels of one side, and the runs of input pixels that they are made of.

    Attributes
    ----------
    out : the runs of output pixels
    source : the runs of input pixels; they may reach beyond the image, where every weight is 0
    before, after : how many pixels beyond the image they may be read
    first : where the first run of input pixels starts
    weights : (bands, pixels out, pixels in) of rows, (bands, pixels in * c, pixels out * 3) of
        columns
    """

    out: _Even
    source: _Even
    first: int
    after: int
    weights: NDArray[np.float32]

    @property
    def before(self) -> int:
        return max(0, -self.first)


@dataclass(frozen=True)
class _Plan:
    """What to do to every image of one height, width and number of channels."""

    scaling: PixelScaling
    rows: _Span
    columns: _Span
    row_bands: _Bands
    column_bands: _Bands
    n_channels: int
    n_intermediate: int


def _plan(height: int, width: int, n_channels: int, preprocessing: Preprocessing) -> _Plan:
    rows, columns = _spans(height, width, preprocessing)
    return _Plan(
        preprocessing.scaling,
        rows,
        columns,
        _row_bands(rows),
        _column_bands(columns, n_channels, preprocessing.scaling),
        n_channels,
        rows.length * width * n_channels,
    )


def _preprocess_part(images: Pixels, plan: _Plan, out: NDArray[np.float32]) -> None:
    """Preprocess so few images that what lies between stays in the processor's cache."""
    n_images, height = images.shape[:2]
    if plan.rows.length < out.shape[1] or plan.columns.length < out.shape[2]:
        _fill(out, plan.scaling)
    flat, c = images.reshape(n_images, height, -1), plan.n_channels
    before, after = plan.column_bands.before * c, plan.column_bands.after * c
    width = before + flat.shape[2] + after
    resized = _scratch.array("rows", (n_images, plan.rows.length, width))
    resized[:, :, :before] = resized[:, :, width - after :] = 0
    _apply_rows(plan.row_bands, flat, resized[:, :, before : width - after])
    area = out[:, plan.rows.start : plan.rows.stop, plan.columns.start : plan.columns.stop]
    _apply_columns(plan.column_bands, c, resized, area)
    _add_offset(area, plan.scaling)
    if images.dtype != np.uint8:
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


def _row_bands(span: _Span) -> _Bands:
    """Return the bands of the rows."""
    return _cached_row_bands(span) if span.n_in <= _CACHED_LENGTH else _make_row_bands(span)


def _column_bands(span: _Span, n_channels: int, scaling: PixelScaling) -> _Bands:
    """Return the bands of the columns."""
    make = _cached_column_bands if span.n_in <= _CACHED_LENGTH else _make_column_bands
    return make(span, n_channels, scaling)


def _make_row_bands(span: _Span) -> _Bands:
    """Return bands whose weights are (bands, out, in) float32.

    Output pixel x lies at s = (x + 1/2) n_in / n_resized in the input, and input pixel j, whose
    middle is at j + 1/2, has weight max(0, 1 - |j + 1/2 - s| / r) there, normalized to sum 1, with
    r = max(1, n_in / n_resized). Positions are rounded to float32 where TensorFlow's kernel
    ``ScaleAndTranslate`` rounds them, or long sides would differ at sharp edges.
    """
    stride = np.float32(1 / float(np.float32(span.n_resized) / np.float32(span.n_in)))
    radius = max(stride, np.float32(1))
    out = _Even.cut(span.length, _band_length(float(stride)))
    tops = np.arange(out.count) * out.step
    index = (tops[:, None] + np.arange(span.skip, span.skip + out.size)).astype(np.float32)
    middle = (index + np.float32(0.5)) * stride
    step = round(out.step * float(stride))
    shifts = step * np.arange(out.count)
    first = int((np.ceil(middle[:, 0] - radius - 0.5).astype(np.int64) - shifts).min())
    last = int((np.floor(middle[:, -1] + radius - 0.5).astype(np.int64) - shifts).max())
    n_in = last + 1 - first
    pixels = (first + shifts)[:, None] + np.arange(n_in)
    inside = (pixels >= 0) & (pixels < span.n_in)
    distance = np.abs((pixels.astype(np.float32) + np.float32(0.5))[:, None] - middle[:, :, None])
    weights = np.maximum(np.float32(0), 1 - distance / radius) * inside[:, None]
    weights /= weights.sum(axis=2, keepdims=True)
    after = max(0, int(pixels[-1, -1]) + 1 - span.n_in)
    return _Bands(out, _Even(out.count, step, n_in), first, after, weights)


def _make_column_bands(span: _Span, n_channels: int, scaling: PixelScaling) -> _Bands:
    """Return bands of columns: those of rows, turned, with channels mixed and scaled."""
    bands = _make_row_bands(span)
    n_bands, n_out, n_in = bands.weights.shape
    mixed = np.zeros((n_bands, n_in, n_channels, n_out, 3), np.float32)
    for to in range(3):
        origin = 0 if n_channels == 1 else 2 - to if scaling.bgr else to
        turned = bands.weights.transpose(0, 2, 1)
        mixed[:, :, origin, :, to] = turned * np.float32(scaling.scale[to])
    return replace(bands, weights=mixed.reshape(n_bands, n_in * n_channels, n_out * 3))


_cached_row_bands = functools.lru_cache(maxsize=1024)(_make_row_bands)
_cached_column_bands = functools.lru_cache(maxsize=256)(_make_column_bands)


_BAND_LENGTHS = ((0.5, 32), (1.0, 16), (8.0, 8))


def _band_length(stride: float) -> int:
    """Return how many output pixels share one product, by how many pixels in make one out.

    A longer band wastes multiplications by zero, a shorter one has more overhead. As measured.
    """
    return next((length for limit, length in _BAND_LENGTHS if stride < limit), 4)


class _Scratch(threading.local):
    """Memory for intermediate arrays, which each thread uses again for its next images."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.float32]] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array that holds anything, good until the next of this name."""
        size = math.prod(shape)
        if size > _SCRATCH_VALUES:
            return np.empty(shape, np.float32)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, np.float32)
        return kept[:size].reshape(shape)


_scratch = _Scratch()


def _apply_rows(bands: _Bands, flat: Pixels, out: NDArray[np.float32]) -> None:
    """Resize the rows of (n, h, w * c) pixels into ``out``, (n, rows, w * c), block by block.

    A block is as many bands as fit, or of a large photo a part of one.
    """
    n_images, _, n_values = flat.shape
    room = _BLOCK_VALUES // n_images
    source, n_bands = bands.source, bands.out.count
    if source.step:
        n_bands = max(1, 1 + (room // n_values - source.size) // source.step)
    width = max(1, min(n_values, room // source.size))
    for band in range(0, bands.out.count, n_bands):
        chosen = slice(band, min(band + n_bands, bands.out.count))
        for start in range(0, n_values, width):
            part = slice(start, start + width)
            _apply_row_bands(bands, chosen, flat[:, :, part], out[:, :, part])


def _apply_row_bands(bands: _Bands, chosen: slice, flat: Pixels, out: NDArray[np.float32]) -> None:
    """Resize the rows of some bands; the columns in pieces that follow one another."""
    n_images, height, n_values = flat.shape
    rows_in, rows_out = bands.source, bands.out
    if (count := chosen.stop - chosen.start) < rows_out.count:
        rows_in, rows_out = replace(rows_in, count=count), replace(rows_out, count=count)
    top = bands.first + chosen.start * rows_in.step
    n_rows = (count - 1) * rows_in.step + rows_in.size
    above, below = max(0, -top), max(0, top + n_rows - height)
    block = _scratch.array("block", (n_images, n_rows, n_values))
    block[:, :above] = block[:, n_rows - below :] = 0
    block[:, above : n_rows - below] = flat[:, top + above : top + n_rows - below]
    pieces = _Even.cut(n_values, max(1, _PRODUCT_SIZE // bands.weights[0].size))
    target = _tiles(out[:, chosen.start * rows_out.step :], rows_out, pieces)
    np.matmul(bands.weights[chosen, None], _tiles(block, rows_in, pieces), out=target)


def _apply_columns(
    bands: _Bands, n_channels: int, rows: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Resize the columns of rows of values into ``out``, (n, r, out, 3); no offset yet.

    ``rows`` is (n, r, (before + w + after) * c), 0 beyond the image.
    """
    n_rows, c = rows.shape[1], n_channels
    pieces = _Even.cut(n_rows, max(2, _PRODUCT_SIZE // bands.weights[0].size))
    source = rows[:, :, (bands.first + bands.before) * c :]
    target = out.reshape(*out.shape[:2], -1)
    np.matmul(
        _tiles(source, pieces, bands.source.times(c)),
        bands.weights,
        out=_tiles(target, pieces, bands.out.times(3)),
    )


def _tiles(values: NDArray[np.float32], down: _Even, across: _Even) -> NDArray[np.float32]:
    """View (n, h, w) values as tiles, (n, tiles down, tiles across, rows, columns).

    The tiles must lie within the values. NumPy's ``as_strided`` would do it too, but takes as long
    as resizing a few rows.
    """
    image, row, column = values.strides
    shape = (len(values), down.count, across.count, down.size, across.size)
    strides = (image, down.step * row, across.step * column, row, column)
    owner = values if values.base is None else values.base
    if not (isinstance(owner, np.ndarray) and owner.flags.c_contiguous):
        return as_strided(values, shape, strides)
    return np.ndarray(shape, values.dtype, owner, _address(values) - _address(owner), strides)


def _address(values: NDArray) -> int:
    """Return where in memory an array begins."""
    address: int = values.__array_interface__["data"][0]
    return address


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
