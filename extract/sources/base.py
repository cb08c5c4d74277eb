"""What every source of images is, and the options that the user has about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_cache.digests import array_digest
from data_cache.part import Part, PartListing
from data_cache.rows import BadImage, Manifest

Raw = bytes | NDArray
"""An image as a source keeps it: the bytes of a file, or a row of an array."""

Format = Literal["auto", "class-folders", "split-folders", "csv", "tsv", "npz", "npy", "hdf5"]

FORMATS: tuple[Format, ...] = (
    "auto",
    "class-folders",
    "split-folders",
    "csv",
    "tsv",
    "npz",
    "npy",
    "hdf5",
)

DEFAULT_TEST_FRACTION = 0.2
"""The part of a source without splits that becomes ``test`` when the user does not say."""


@dataclass(frozen=True)
class SourceOptions:
    """What the user may choose about a source.

    Attributes
    ----------
    format : what SOURCE is; ``auto`` looks
    validation_fraction, test_fraction : the parts, in [0, 1), of the images without a split that
        become ``val`` and ``test``; None is 0 and, where a source names no split at all,
        :data:`DEFAULT_TEST_FRACTION` for the test
    seed : of the division and of the limits
    train_limit, test_limit : the most images to keep of a split, drawn with each class's share
    group_duplicates : whether images that look alike are kept on one side of the division
    exclude : a CSV with the columns ``split`` and ``id`` of rows to leave out
    rehash : whether to read every file again, even where its size and times are as remembered
    part : which part of the source to list, None for all of it
    """

    format: Format = "auto"
    validation_fraction: float | None = None
    test_fraction: float | None = None
    seed: int = 0
    train_limit: int | None = None
    test_limit: int | None = None
    group_duplicates: bool = False
    exclude: Path | None = None
    rehash: bool = False
    part: Part | None = None

    @property
    def is_row_by_row(self) -> bool:
        """Whether each image's split follows from that image alone, whatever others there are."""
        limits = (self.train_limit, self.test_limit)
        return limits == (None, None) and not self.group_duplicates


@dataclass(frozen=True)
class Listed:
    """What is known of an image before it is read.

    Attributes
    ----------
    id : what it is called in a cache, and where it is reported
    content : the SHA-256 (32 bytes) that it must have, or None where it was not read before
    """

    id: str
    content: bytes | None = None


class Source(Protocol):
    """Images with their labels, divided into splits; reading one is safe from many threads.

    Attributes
    ----------
    name : as the user would write it
    manifest : every row of every split, with its content digest
    unreadable : files that could not even be read while they were listed
    notes : what the user should know about how the source was understood, a line each
    part : how the rows lie in the whole source where they are only a part of it, else None
    """

    name: str
    manifest: Manifest
    unreadable: tuple[BadImage, ...]
    notes: tuple[str, ...]
    part: PartListing | None

    def fetch(self, split: str, row: int) -> Raw:
        """Return the image of a row as it is now; whoever caches it compares its digest first.

        Raises
        ------
        ImageUnavailableError
            The image is no longer there, or cannot be read.
        """

    def listed(self, split: str, row: int) -> Listed:
        """Return the id of a row, and the digest that its image had when it was listed."""


def content_digest(raw: Raw) -> bytes:
    """Return the SHA-256 (32 bytes) of an image: of a file's bytes, or of an array's pixels.

    Of an array it is :func:`data_cache.digests.array_digest`, as the format's page has it.
    """
    return hashlib.sha256(raw).digest() if isinstance(raw, bytes) else array_digest(raw)


def digests_as_rows(digests: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return SHA-256 digests as (n, 32) uint8."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def text_column(texts: Sequence[str]) -> NDArray[np.bytes_]:
    """Return (n,) fixed-length UTF-8 bytes."""
    return np.array([text.encode() for text in texts], np.bytes_)
