"""Arrays of images: in memory, or read from a file a few rows at a time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import SourceError
from data_cache.rows import Rows
from extract.preprocess import LARGEST_PIXEL
from extract.sources.base import SourceOptions, content_digest, digests_as_rows, text_column
from extract.sources.listing import ListedSource, Listing

ALL = "all"
"""The name of the one split of a source that names no splits."""

_IMAGE_AXES = (len("nhw"), len("nhwc"))
_BLOCK_BYTES = 1 << 26
_AMBIGUOUS_PIXEL = 32.0
"""Floating-point images whose brightest pixel is above 1, not above this, are in no known range."""


class Images(Protocol):
    """What images are read from: a NumPy array, or a data set of HDF5."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w) or (n, h, w, c)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a value."""

    def __getitem__(self, key: Any, /) -> Any:
        """Return one image, or those of a slice."""


ArraySplits = Mapping[str, tuple[Images, NDArray]]
"""For each split its images and its labels."""


@dataclass(frozen=True)
class Origin:
    """By what name arrays can be opened again in another process.

    Attributes
    ----------
    name : of a built-in set, or the absolute path of a file
    kind : ``built-in``, ``npz``, ``npy`` or ``hdf5``
    limits : for some splits of a built-in set, how many of its first rows are read
    """

    name: str
    kind: str
    limits: tuple[tuple[str, int], ...] = ()


class ArrayReader:
    """Reads single images, by their position in some arrays one after the other."""

    def __init__(self, arrays: Sequence[Images], scale: float) -> None:
        """Take arrays of images, and what brings floating-point ones to [0, 255]."""
        self._arrays = arrays
        self._starts = [0, *accumulate(images.shape[0] for images in arrays)]
        self.scale = scale

    def read(self, position: int) -> NDArray:
        """Return an image: uint8, or float32 in [0, 255]."""
        block = bisect_right(self._starts, position) - 1
        return self.as_pixels(self._arrays[block][position - self._starts[block]])

    def as_pixels(self, values: NDArray) -> NDArray:
        """Return images as they are hashed and decoded."""
        if values.dtype == np.uint8:
            return values
        return values.astype(np.float32) * np.float32(self.scale)


class ArraySource(ListedSource):
    """Images in arrays, in splits.

    Rows are called ``train/000017`` after the split and the position that they are given with.
    """

    def __init__(
        self,
        name: str,
        splits: ArraySplits,
        classes: Sequence[str],
        options: SourceOptions | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Take the images as they are; nothing is copied.

        Parameters
        ----------
        name : as the user would write it
        splits : for each split its images, (n, h, w) or (n, h, w, 1|3|4), uint8, or floating-point
            in [0, 1] or [0, 255], the same for all; and its labels, (n,) integers. A sole split
            called ``all`` is divided
        classes : the names that the labels count into
        options : see :class:`SourceOptions`; None takes the defaults
        groups : for each split (n,) the groups that are never divided
        origin : how other processes can open the arrays; None where they cannot

        Raises
        ------
        SourceError
            The shapes, types, ranges or labels are not such.
        """
        for split, (images, _labels) in splits.items():
            check_images(images, split)
        self._images = [images for images, _labels in splits.values()]
        self.origin = origin
        self.reader = ArrayReader(self._images, scale_to_pixels(self._images))
        listing = self._list(splits, tuple(classes), groups)
        notes = ["float pixels up to 1: 1 is read as white"] if self.reader.scale > 1 else []
        super().__init__(name, listing, options or SourceOptions(), notes=notes)

    def read(self, position: int) -> NDArray:
        """Return the image at a position of the listing: uint8, or float32 in [0, 255]."""
        return self.reader.read(position)

    def _list(
        self,
        splits: ArraySplits,
        classes: tuple[str, ...],
        groups: Mapping[str, Sequence[str]] | None,
    ) -> Listing:
        """List the rows of every split, one split after the other."""
        ids: list[str] = []
        digests: list[bytes] = []
        labels = []
        for split, (images, given) in splits.items():
            n_rows = images.shape[0]
            labels.append(check_labels(given, n_rows, len(classes)))
            ids += [f"{split}/{row:06d}" for row in range(n_rows)]
            for block in _blocks(images):
                digests += [content_digest(image) for image in self.reader.as_pixels(block)]
        joined = None
        if groups is not None:
            joined = text_column([group for split in splits for group in groups[split]])
        rows = Rows(text_column(ids), np.concatenate(labels), digests_as_rows(digests), joined)
        if set(splits) == {ALL}:
            return Listing(classes, rows)
        counts = [images.shape[0] for images in self._images]
        return Listing(classes, rows, np.repeat(np.array(list(splits)), counts))


def check_images(images: Images, where: str) -> None:
    """Raise :class:`SourceError` unless the shape and the type are those of images."""
    shape = images.shape
    channels = shape[3:] or (1,)
    if len(shape) not in _IMAGE_AXES or channels[0] not in (1, 3, 4) or 0 in shape[1:]:
        raise SourceError(
            f"{where}: images of shape {shape}, where (n, height, width) or "
            "(n, height, width, 1, 3 or 4) is expected"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise SourceError(
            f"{where}: images of type {images.dtype}, where uint8 or floating-point is expected"
        )


def check_labels(labels: NDArray, n_images: int, n_classes: int) -> NDArray[np.int64]:
    """Return the labels, (n,) int64; raise :class:`SourceError` unless they are those of images."""
    labels = one_label_each(labels, n_images)
    if labels.dtype.kind not in "iu":
        raise SourceError(f"labels of type {labels.dtype}, where whole numbers are expected")
    outside = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(outside):
        first = int(outside[0])
        raise SourceError(
            f"label {labels[first]} in row {first}, where 0 to {n_classes - 1} is expected"
        )
    return labels.astype(np.int64)


def one_label_each(labels: NDArray, n_images: int) -> NDArray:
    """Return (n,) labels for (n,) or (n, 1) ones; raise :class:`SourceError` for others."""
    if labels.shape == (n_images, 1):
        return labels[:, 0]
    if labels.shape == (n_images,):
        return labels
    several = labels.ndim > 1 and len(labels) == n_images
    raise SourceError(
        f"labels of shape {labels.shape} for {n_images} images, where one label each is expected"
        + (": several labels an image are not supported yet" if several else "")
    )


def _blocks(images: Images) -> Iterator[NDArray]:
    """Yield the images, a few MB at a time."""
    n_rows, *one = images.shape
    step = max(1, _BLOCK_BYTES // (math.prod(one) * images.dtype.itemsize))
    for start in range(0, n_rows, step):
        yield np.asarray(images[start : start + step])


def scale_to_pixels(arrays: Sequence[Images]) -> float:
    """Return what brings floating-point images to [0, 255]: 255 for those in [0, 1], else 1.

    Raises
    ------
    SourceError
        They are in neither range: below 0, above 255, NaN, or all too dark to tell.
    """
    floats = [images for images in arrays if images.dtype.kind == "f" and images.shape[0]]
    extremes = [
        (float(block.min()), float(block.max())) for images in floats for block in _blocks(images)
    ]
    if not extremes:
        return 1.0
    lowest, highest = min(low for low, _ in extremes), max(high for _, high in extremes)
    finite = np.isfinite(extremes).all()
    if finite and lowest >= 0 and highest <= 1:
        return LARGEST_PIXEL
    if finite and lowest >= 0 and _AMBIGUOUS_PIXEL < highest <= LARGEST_PIXEL:
        return 1.0
    raise SourceError(
        f"floating-point images from {lowest:g} to {highest:g}"
        f"{'' if finite else ', some of them not finite'}: scale them to [0, 1] or [0, 255], or "
        "give uint8"
    )
