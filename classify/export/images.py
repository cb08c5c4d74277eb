"""Images whose features a cache holds, found again by their content.

What an exported file makes of them is compared with what the head makes of the cached features.
They are read one at a time, so that large photos take no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from classify.runs import Run
from classify.selection import TRAINING_SPLIT
from data_cache.cache import FeatureCache
from data_cache.digests import KeyIndex, as_content, as_keys
from data_cache.errors import ImageUnavailableError, SourceError
from extract.decode import DecodeOptions, decode
from extract.preprocess import Pixels
from extract.sources import Source, open_source
from extract.sources.base import Raw, content_digest
from extract.sources.files import digest_files

_SEED = 0
_N_CHANNELS = 3


class Place(Protocol):
    """Somewhere images are found by their content."""

    @property
    def content(self) -> NDArray[np.uint8]:
        """The digest of each image, (n, 32) uint8."""

    def fetch(self, position: int) -> Raw:
        """Return the image at a position of ``content``; raises BadImageError."""


@dataclass(frozen=True)
class SourcePlace:
    """A source that is open again."""

    source: Source

    @property
    def content(self) -> NDArray[np.uint8]:
        """The digest of each image, split after split."""
        return np.concatenate([rows.content for rows in self.source.manifest.splits.values()])

    def fetch(self, position: int) -> Raw:
        """Return the image at a position of ``content``."""
        for split, rows in self.source.manifest.splits.items():
            if position < len(rows):
                return self.source.fetch(split, position)
            position -= len(rows)
        raise IndexError(position)


@dataclass(frozen=True)
class FolderPlace:
    """Image files, whatever their folders are called."""

    paths: tuple[Path, ...]
    content: NDArray[np.uint8]

    @classmethod
    def below(cls, folder: Path) -> FolderPlace:
        """Take every readable file of a folder, at any depth."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = zip(paths, digest_files(paths), strict=True)
        found = [(path, digest) for path, digest in digests if isinstance(digest, bytes)]
        return cls(tuple(path for path, _ in found), as_content([digest for _, digest in found]))

    def fetch(self, position: int) -> bytes:
        """Return the bytes of a file."""
        try:
            return self.paths[position].read_bytes()
        except OSError as error:
            raise ImageUnavailableError(f"it cannot be read: {error}") from error


@dataclass(frozen=True)
class Sample:
    """Images that were found again, and what the cache holds of them.

    Attributes
    ----------
    place, positions : where they are
    content : (n, 32) uint8, their digests
    decoding : how they were decoded for the cache
    features : (n, d) float32, from the cache
    """

    place: Place
    positions: NDArray[np.int64]
    content: NDArray[np.uint8]
    decoding: DecodeOptions
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.positions)

    def image(self, number: int) -> Pixels:
        """Read and decode an image: (h, w, 3) uint8; float32 where it has more than 8 bits.

        Raises
        ------
        BadImageError
            It is no longer the image that it was.
        """
        raw = self.place.fetch(int(self.positions[number]))
        if content_digest(raw) != self.content[number].tobytes():
            raise ImageUnavailableError("an image was changed while it was exported: try again")
        pixels = decode(raw, self.decoding)
        return pixels if pixels.shape[2] == _N_CHANNELS else pixels.repeat(_N_CHANNELS, axis=2)


def open_place(run: Run, images: Path | None) -> Place:
    """Open the run's source again, or what the user names instead.

    Raises
    ------
    SourceError
        It cannot be opened; the message says to name the images.
    """
    if images is not None:
        return FolderPlace.below(images) if images.is_dir() else SourcePlace(_open(images))
    try:
        return SourcePlace(_open(run.provenance.source))
    except SourceError as error:
        raise SourceError(
            f"the images that {run.path} learnt from cannot be opened again ({error}): say where "
            "they are with --images"
        ) from error


def draw(cache: FeatureCache, place: Place, decoding: DecodeOptions, n: int) -> Sample:
    """Draw ``n`` training images of a cache, or all where it has fewer, that are in ``place``.

    The same cache and place give the same images.

    Raises
    ------
    SourceError
        There are fewer.
    """
    content = cache.rows(TRAINING_SPLIT).content
    found = KeyIndex(as_keys(place.content)).find(as_keys(content))
    order = np.random.default_rng(_SEED).permutation(len(found))
    n_wanted = min(n, len(found))
    rows = order[found[order] >= 0][:n_wanted]
    if len(rows) < n_wanted:
        raise SourceError(
            f"{len(rows)} of the {len(found):,} training images of {cache.path} were found again, "
            f"expected {n_wanted}: say where they are with --images"
        )
    features = cache.take(TRAINING_SPLIT, rows)
    return Sample(place, found[rows], content[rows], decoding, features)


def _open(text: Path | str) -> Source:
    return open_source(str(text))
