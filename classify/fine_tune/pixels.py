"""Images as the backbone takes them, for every epoch: decoded and scaled as extraction does it.

An image is read and decoded once, as long as there is room: of its decoded pixels and its scaled
ones the smaller is kept, so nothing is rounded and what is trained on is, bit for bit, what
features are extracted from. Images beyond :data:`MOST_BYTES` are read and decoded again in each
epoch. So memory is bounded, whatever the number of images.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classify.fine_tune.network import MEASURING, Batch
from classify.fine_tune.rows import SourceRows
from data_cache.errors import BadImageError, BadImagesError, ImageUnavailableError
from extract.augment import View
from extract.decode import DecodeOptions, decode
from extract.pipeline import Images, ScaledBatch
from extract.preprocess import Pixels, Preprocessing
from extract.sources.base import content_digest

MOST_BYTES = 1 << 30
"""Bytes of pixels that are kept at most, of all images together."""


class Room:
    """Counts the bytes that are kept; safe to use from many threads."""

    def __init__(self, n_bytes: int = MOST_BYTES) -> None:
        self._left = n_bytes
        self._lock = threading.Lock()

    def take(self, n_bytes: int) -> bool:
        """Take a place for so many bytes, if there is one."""
        with self._lock:
            is_free = n_bytes <= self._left
            self._left -= n_bytes if is_free else 0
            return is_free


@dataclass(frozen=True)
class Imaging:
    """What becomes of an image before the backbone sees it, and the room to keep it.

    ``view_seed`` asks for a random view of each image in training, a new one in each epoch: the
    :class:`extract.augment.View` that has the epoch's number. None is the image itself.
    """

    decoding: DecodeOptions
    preprocessing: Preprocessing
    room: Room
    view_seed: int | None = None

    @property
    def scaled_bytes(self) -> int:
        """Bytes of a scaled image, (S, S, 3) float32."""
        return 12 * self.preprocessing.image_size**2


class PixelInputs:
    """Images of a source, n rows of it: inputs (m, S, S, 3) of a network."""

    def __init__(self, source: Images, rows: SourceRows, imaging: Imaging) -> None:
        self._source, self._rows, self._imaging = source, rows, imaging
        self._decoded: dict[int, Pixels] = {}
        self._scaled: dict[int, NDArray[np.float32]] = {}

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Return the scaled pixels of rows (m,), (m, S, S, 3) float32.

        Raises
        ------
        BadImagesError
            An image cannot be read or decoded, or was changed after it was listed.
        """
        side = self._imaging.preprocessing.image_size
        result = np.empty((len(rows), side, side, 3), np.float32)
        fresh = ScaledBatch(len(rows), self._imaging.preprocessing)
        places = []
        for place, row in enumerate(rows.tolist()):
            if (scaled := self._scaled.get(row)) is not None:
                result[place] = scaled
            else:
                fresh.add(self._view(self._pixels(row), row, epoch))
                places.append(place)
        result[places] = fresh.finish()
        self._keep_scaled(rows[places], result[places])
        return (result,)

    def _pixels(self, row: int) -> Pixels:
        """Return the decoded pixels of a row; keep them where that is the cheapest way."""
        if (kept := self._decoded.get(row)) is not None:
            return kept
        pixels = self._decode(row)
        if self._keeps_decoded(pixels) and self._imaging.room.take(pixels.nbytes):
            self._decoded[row] = pixels
        return pixels

    def _keeps_decoded(self, pixels: Pixels) -> bool:
        """Tell whether to keep an image decoded: new views need that, else the smaller is kept."""
        imaging = self._imaging
        return imaging.view_seed is not None or pixels.nbytes <= imaging.scaled_bytes

    def _keep_scaled(self, rows: NDArray[np.int64], scaled: NDArray[np.float32]) -> None:
        """Keep scaled images where they are smaller than decoded ones, and never change."""
        if self._imaging.view_seed is not None:
            return
        for row, image in zip(rows.tolist(), scaled, strict=True):
            if row not in self._decoded and self._imaging.room.take(image.nbytes):
                self._scaled[row] = image.copy()

    def _decode(self, row: int) -> Pixels:
        """Read and decode an image that is as it was when it was listed."""
        split, at = self._rows.split, int(self._rows.at[row])
        try:
            raw = self._source.fetch(split, at)
            if content_digest(raw) != self._rows.rows.content[row].tobytes():
                raise ImageUnavailableError("it was changed after it was listed: run again")
            return decode(raw, self._imaging.decoding)
        except BadImageError as error:
            name = self._source.listed(split, at).id
            raise BadImagesError(f"{split}/{name}: {error}") from error

    def _view(self, pixels: Pixels, row: int, epoch: int) -> Pixels:
        """Return the pixels as an epoch sees them."""
        seed = self._imaging.view_seed
        if seed is None or epoch == MEASURING:
            return pixels
        return View(seed, epoch).of(pixels, self._rows.rows.content[row].tobytes())
