"""Every image of a source in memory, as uint8, for a network that learns from pixels."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from data_cache.console import Advance, progress
from data_cache.cores import n_cores
from data_cache.errors import BadImageError, BadImagesError, ParameterError, SourceError
from data_cache.rows import BadImage, Rows
from extract.decode import DecodeOptions, decode
from extract.preprocess import SCALINGS, Pixels, Preprocessing, ResizeMode, preprocess
from extract.sources import Source

PIXEL_SCALING = "x / 255"
"""What the network does to a pixel before anything else: [0, 255] becomes [0, 1]."""

SMALLEST_SIDE = 4
"""Pixels that two poolings need."""

LARGEST_OWN_SIDE = 256
"""Pixels above which images are not taken at their own size: such a network would be huge."""

_CHUNK = 256


@dataclass(frozen=True)
class ImageOptions:
    """How the images of a source become what the network takes.

    Attributes
    ----------
    image_size : side of the square that images are resized to, in pixels; None takes them at their
        own size, which must then be the same for all
    resize_mode : how an image that is not square becomes so
    decoding : see :class:`extract.decode.DecodeOptions`
    """

    image_size: int | None = None
    resize_mode: ResizeMode = "stretch"
    decoding: DecodeOptions = field(default_factory=DecodeOptions)

    def check(self) -> None:
        """Raise :class:`ParameterError` if the size is too small for the network."""
        if self.image_size is not None and self.image_size < SMALLEST_SIDE:
            raise ParameterError(
                f"image size {self.image_size}: expected {SMALLEST_SIDE} pixels or more"
            )


@dataclass(frozen=True)
class LoadedImages:
    """The images of a source that could be read, by split.

    Attributes
    ----------
    path : the source, as the user named it
    classes : the names that labels count into
    bad_images : those that are left out, and why
    """

    path: Path
    classes: tuple[str, ...]
    bad_images: tuple[BadImage, ...]
    _rows: Mapping[str, Rows]
    _images: Mapping[str, NDArray[np.uint8]]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits, in the order of the source."""
        return tuple(self._rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels, 1 or 3, of every image."""
        height, width, n_channels = next(iter(self._images.values())).shape[1:]
        return height, width, n_channels

    def rows(self, split: str) -> Rows:
        """Return what is known of the images of a split."""
        return self._rows[split]

    def features(self, split: str) -> NDArray[np.uint8]:
        """Return the images of a split: (n, h, w, c) uint8."""
        return self._images[split]


def load_images(source: Source, options: ImageOptions) -> LoadedImages:
    """Decode every image of a source, resize it where that is asked for, and keep it as uint8.

    Gray images stay one channel, unless there are colored ones beside them. Images that cannot be
    read are left out. Floating-point and 16-bit pixels are rounded to whole numbers in [0, 255].

    Raises
    ------
    SourceError
        There is no image; or no size was asked for, and the images differ in size, or are larger
        than :data:`LARGEST_OWN_SIDE` or smaller than :data:`SMALLEST_SIDE`.
    BadImagesError
        Not one image could be read.
    ParameterError
        The size asked for is too small.
    """
    options.check()
    reader = _Reader(source, options)
    splits = source.manifest.splits
    with progress("Decoding", total=len(source.manifest)) as advance:
        kept = {split: reader.read(split, len(rows), advance) for split, rows in splits.items()}
    shape = reader.shape()
    return LoadedImages(
        path=Path(source.name),
        classes=source.manifest.classes,
        bad_images=(*source.unreadable, *reader.bad_images),
        _rows={split: rows.take(kept[split]) for split, rows in splits.items()},
        _images={split: _stack(reader.images.pop(split), shape) for split in splits},
    )


@dataclass
class _Reader:
    """Reads the images of a source, split by split, and sees that they fit each other."""

    source: Source
    options: ImageOptions
    images: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict)
    bad_images: list[BadImage] = field(default_factory=list)

    def read(self, split: str, n_rows: int, advance: Advance) -> NDArray[np.bool_]:
        """Add the images of a split; return which ones could be read, (n,)."""
        images = self.images[split] = []
        kept = np.zeros(n_rows, bool)
        with ThreadPoolExecutor(n_cores(), "decode") as pool:
            for start in range(0, n_rows, _CHUNK):
                rows = range(start, min(start + _CHUNK, n_rows))
                for row, image in zip(
                    rows, pool.map(partial(self._load, split), rows), strict=True
                ):
                    if isinstance(image, BadImage):
                        self.bad_images.append(image)
                        continue
                    self._check_size(image, split, row)
                    images.append(image)
                    kept[row] = True
                advance(len(rows))
        return kept

    def shape(self) -> tuple[int, int, int]:
        """Return height, width and channels that hold all images; refuse to go on without any."""
        shapes = {image.shape for image in chain.from_iterable(self.images.values())}
        if not shapes:
            self._refuse_none()
        height, width, _ = next(iter(shapes))
        return height, width, max(n_channels for _, _, n_channels in shapes)

    def _refuse_none(self) -> NoReturn:
        """Say why there is not one image."""
        bad_images = (*self.source.unreadable, *self.bad_images)
        if not bad_images:
            raise SourceError(f"{self.source.name}: every image is left out: expected some to use")
        raise BadImagesError(
            f"not one of {len(bad_images):,} images could be read (first: {bad_images[0].id}: "
            f"{bad_images[0].reason})"
        )

    def _load(self, split: str, row: int) -> NDArray[np.uint8] | BadImage:
        """Return an image, (h, w, 1) or (h, w, 3), or why there is none."""
        try:
            pixels = decode(self.source.fetch(split, row), self.options.decoding)
            return _as_bytes(pixels, self.options)
        except BadImageError as error:
            return BadImage(split, self.source.listed(split, row).id, str(error))

    def _check_size(self, image: NDArray[np.uint8], split: str, row: int) -> None:
        """Refuse an image of another size than the others, or of a size that no network takes."""
        first = next(filter(None, self.images.values()), [image])[0]
        height, width = image.shape[:2]
        name = self.source.listed(split, row).id
        if image.shape[:2] != first.shape[:2]:
            raise SourceError(
                f"{name} has {width} x {height} pixels and others {first.shape[1]} x "
                f"{first.shape[0]}: bring them to one size with --image-size, such as 64"
            )
        if max(height, width) > LARGEST_OWN_SIDE and not self.options.image_size:
            raise SourceError(
                f"{name} has {width} x {height} pixels: sides up to {LARGEST_OWN_SIDE} are taken "
                "as they are; for larger ones give --image-size, such as 64"
            )
        if min(height, width) < SMALLEST_SIDE:
            raise SourceError(
                f"{name} has {width} x {height} pixels, where at least {SMALLEST_SIDE} x "
                f"{SMALLEST_SIDE} are expected: give --image-size"
            )


def _as_bytes(pixels: Pixels, options: ImageOptions) -> NDArray[np.uint8]:
    """Return a decoded image (h, w, 1|3) in the size asked for, as whole numbers."""
    n_channels = pixels.shape[2]
    if options.image_size:
        unscaled = Preprocessing(SCALINGS["identity"], options.image_size, options.resize_mode)
        pixels = preprocess(pixels[None], unscaled)[0, :, :, :n_channels]
    is_whole = pixels.dtype == np.uint8
    return np.asarray(pixels if is_whole else np.rint(pixels).clip(0, 255), np.uint8)


def _stack(images: list[NDArray[np.uint8]], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return images as one array (n, h, w, c); gray ones are repeated where others are colored."""
    stacked = np.empty((len(images), *shape), np.uint8)
    for target, image in zip(stacked, images, strict=True):
        target[...] = image
    return stacked
