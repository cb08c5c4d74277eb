"""Images whose features a cache holds, found again by their content.

What an exported file makes of them is compared with what the head makes of the cached features.
They are read one at a time, so that large photos take no memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from classify.results.runs import Run
from classify.selection.division import TRAINING_SPLIT, VALIDATION_SPLIT
from data_cache.cache import FeatureCache
from data_cache.digests import KeyIndex, as_content, as_keys
from data_cache.errors import ImageUnavailableError, SourceError
from data_cache.rows import Rows
from extract.decode import DecodeOptions, decode
from extract.preprocess import Pixels
from extract.sources import Source, open_source
from extract.sources.base import Raw, content_digest
from extract.sources.files import digest_files

_SEED = 0
_N_CHANNELS = 3
_MOST_VALUES = 1 << 20  # in images that go through together


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
    labels : (n,) int64, positions in the classes of the cache
    n_validation : how many of them, the first, the run validated on
    """

    place: Place
    positions: NDArray[np.int64]
    content: NDArray[np.uint8]
    decoding: DecodeOptions
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    n_validation: int = 0

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
        return as_rgb(decode(raw, self.decoding))

    def take(self, rows: slice) -> Sample:
        """Return a part of the sample."""
        kept = range(len(self))[rows]
        return Sample(
            self.place,
            self.positions[rows],
            self.content[rows],
            self.decoding,
            self.features[rows],
            self.labels[rows],
            sum(number < self.n_validation for number in kept),
        )


def as_rgb(pixels: Pixels) -> Pixels:
    """Return (h, w, 3) pixels for (h, w, 1) gray ones, and color as it is."""
    return pixels if pixels.shape[2] == _N_CHANNELS else pixels.repeat(_N_CHANNELS, axis=2)


def in_batches(
    images: Iterable[tuple[int, Pixels]],
) -> Iterator[tuple[list[int], Pixels]]:
    """Yield the numbers of images of one shape and type (h, w, 3), and those as (n, h, w, 3).

    Large ones come alone: of one shape at most 2**20 values wait.
    """
    waiting: dict[tuple[Any, ...], dict[int, Pixels]] = defaultdict(dict)
    for number, pixels in images:
        group = waiting[(*pixels.shape, pixels.dtype)]
        group[number] = pixels
        if len(group) * pixels.size >= _MOST_VALUES:
            yield _stacked(group)
            group.clear()
    yield from map(_stacked, filter(None, waiting.values()))


def _stacked(group: dict[int, Pixels]) -> tuple[list[int], Pixels]:
    """Return images of one shape and type as one array, and their numbers."""
    batch: Pixels = np.stack(list(group.values()))  # type: ignore[assignment]
    return list(group), batch


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


@dataclass(frozen=True)
class Pool:
    """The images of a cache that an export may look at: those a run learnt and validated on.

    Attributes
    ----------
    cache : the cache
    splits : the splits that they are in
    validation : the ids of those that the run validated on
    """

    cache: FeatureCache
    splits: tuple[str, ...] = (TRAINING_SPLIT,)
    validation: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, run: Run, cache: FeatureCache) -> Pool:
        """Take a run's images, but none of its test."""
        has_own_split = run.metrics.get("validation_drawn") is False
        validates = has_own_split and VALIDATION_SPLIT in cache.split_names
        splits = (TRAINING_SPLIT, VALIDATION_SPLIT) if validates else (TRAINING_SPLIT,)
        return cls(cache, splits, frozenset(one.encode() for one in run.part_ids("validation")))

    def rows(self) -> list[Rows]:
        """Return the rows of each split."""
        return [self.cache.rows(split) for split in self.splits]

    def features(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features (m, d) at positions, which count through all splits."""
        features = np.empty((len(rows), self.cache.n_features), np.float32)
        start = 0
        for split in self.splits:
            stop = start + self.cache.n_rows(split)
            here = (rows >= start) & (rows < stop)
            features[here] = self.cache.take(split, rows[here] - start)
            start = stop
        return features


def draw(pool: Pool, place: Place, decoding: DecodeOptions, n: int) -> Sample:
    """Draw ``n`` images of a pool that are in ``place``, or all where it has fewer.

    Those that the run validated on come first. The same pool and place give the same images.

    Raises
    ------
    SourceError
        There are fewer.
    """
    parts = pool.rows()
    content = np.concatenate([rows.content for rows in parts])
    ids = [one for rows in parts for one in rows.ids.tolist()]
    validated = np.array([one in pool.validation for one in ids], bool)
    found = KeyIndex(as_keys(place.content)).find(as_keys(content))
    order = np.random.default_rng(_SEED).permutation(len(found))
    order = order[np.argsort(~validated[order], kind="stable")]
    n_wanted = min(n, len(found))
    rows = order[found[order] >= 0][:n_wanted]
    if len(rows) < n_wanted:
        raise SourceError(
            f"{len(rows)} of the {len(found):,} training images of {pool.cache.path} were found "
            f"again, expected {n_wanted}: say where they are with --images"
        )
    return Sample(
        place,
        found[rows],
        content[rows],
        decoding,
        pool.features(rows),
        np.concatenate([one.labels for one in parts])[rows],
        int(validated[rows].sum()),
    )


def _open(text: Path | str) -> Source:
    return open_source(str(text))
