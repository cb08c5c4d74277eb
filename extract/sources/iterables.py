"""Anything that yields images: kept in a temporary file, so that memory does not grow."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import SourceError
from data_cache.rows import Rows
from extract.sources.arrays import check_images
from extract.sources.base import (
    Raw,
    SourceOptions,
    content_digest,
    digests_as_rows,
    text_column,
)
from extract.sources.listing import SPLIT_NAMES, ListedSource, Listing


@dataclass(frozen=True)
class Sample:
    """One image of an iterable.

    Attributes
    ----------
    image : the bytes of an image file; its path; or an array, (h, w) or (h, w, 1|3|4), uint8
    label : the name of its class, or its number
    split : ``train``, ``val`` or ``test``; None for all or for none
    id : what it is called in the cache; None is ``train/000017``, or ``all/000017``
    group : images of one group are never divided; None for all or for none
    """

    image: bytes | Path | NDArray
    label: str | int
    split: str | None = None
    id: str | None = None
    group: str | None = None


class IterableSource(ListedSource):
    """Images that an iterable yields, once.

    They wait in a temporary file, which goes with this object.
    """

    def __init__(
        self,
        name: str,
        samples: Iterable[Sample],
        options: SourceOptions | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Take every sample.

        Parameters
        ----------
        name : for the cache to say where its features come from
        samples : the images, in any order
        options : see :class:`SourceOptions`; None takes the defaults
        classes : the names that numbers as labels count into; None: the labels that there are,
            sorted

        Raises
        ------
        SourceError
            A sample is not such; some have a split or a group and some have none.
        """
        self._spool = _Spool()
        listing = _list(name, samples, self._spool, classes)
        super().__init__(name, listing, options or SourceOptions())

    def read(self, position: int) -> Raw:
        """Return the image at a position of the listing."""
        return self._spool.get(position)


class _Spool:
    """Images in a temporary file, appended once and read by position."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(tempfile.TemporaryFile(prefix="headstart-"))
            weakref.finalize(self, stack.pop_all().close)
        self._places: list[tuple[int, int, np.dtype | None, tuple[int, ...]]] = []
        self._lock = threading.Lock()

    def append(self, raw: Raw) -> None:
        """Keep an image."""
        data = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).tobytes()
        dtype, shape = (None, ()) if isinstance(raw, bytes) else (raw.dtype, raw.shape)
        self._places.append((self._file.tell(), len(data), dtype, shape))
        self._file.write(data)

    def get(self, position: int) -> Raw:
        """Return the image that was appended at a position."""
        start, length, dtype, shape = self._places[position]
        with self._lock:
            self._file.seek(start)
            data = self._file.read(length)
        return data if dtype is None else np.frombuffer(data, dtype).reshape(shape)


@dataclass
class _Columns:
    """What is noted of the samples while they go by."""

    ids: list[str]
    labels: list[str | int]
    digests: list[bytes]
    splits: list[str]
    groups: list[str]


def _list(
    name: str, samples: Iterable[Sample], spool: _Spool, classes: Sequence[str] | None
) -> Listing:
    columns = _Columns([], [], [], [], [])
    for sample in samples:
        raw = _raw(name, sample)
        spool.append(raw)
        _note(name, sample, raw, columns)
    n_samples = len(columns.ids)
    for column in (columns.splits, columns.groups):
        if len(column) not in (0, n_samples):
            raise SourceError(
                f"{name}: {len(column)} of {n_samples} samples have a split or a group: all or "
                "none is expected"
            )
    names, labels = _count_labels(name, columns.labels, classes)
    groups = text_column(columns.groups) if columns.groups else None
    rows = Rows(text_column(columns.ids), labels, digests_as_rows(columns.digests), groups)
    return Listing(names, rows, np.array(columns.splits) if columns.splits else None)


def _raw(name: str, sample: Sample) -> Raw:
    """Return a sample's image as it is kept."""
    if isinstance(sample.image, bytes):
        return sample.image
    if isinstance(sample.image, Path):
        try:
            return sample.image.read_bytes()
        except OSError as error:
            raise SourceError(f"{name}: {error}") from error
    check_images(sample.image[None], name)
    if sample.image.dtype != np.uint8:
        raise SourceError(f"{name}: an array of type {sample.image.dtype}: uint8 is expected")
    return sample.image


def _note(name: str, sample: Sample, raw: Raw, columns: _Columns) -> None:
    """Append one sample to the columns."""
    if sample.split is not None:
        if sample.split.lower() not in SPLIT_NAMES:
            raise SourceError(f"{name}: split {sample.split!r}: train, val or test is expected")
        columns.splits.append(SPLIT_NAMES[sample.split.lower()])
    if sample.group is not None:
        columns.groups.append(sample.group)
    default = f"{columns.splits[-1] if columns.splits else 'all'}/{len(columns.ids):06d}"
    columns.ids.append(default if sample.id is None else sample.id)
    columns.labels.append(sample.label)
    columns.digests.append(content_digest(raw))


def _count_labels(
    name: str, labels: Sequence[str | int], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the classes, and the labels as positions in them."""
    values: list[str | int] = sorted(set(labels), key=lambda label: (str(type(label)), label))
    kinds = {isinstance(label, str) for label in values}
    if len(kinds) > 1:
        raise SourceError(f"{name}: some labels are text and some numbers: one kind is expected")
    if classes is not None:
        values = list(classes) if True in kinds else list(range(len(classes)))
    position = {label: i for i, label in enumerate(values)}
    unknown = next((label for label in labels if label not in position), None)
    if unknown is not None:
        raise SourceError(f"{name}: label {unknown!r} is none of the {len(values)} classes")
    names = classes if classes is not None else [str(value) for value in values]
    return tuple(names), np.array([position[label] for label in labels], np.int64)
