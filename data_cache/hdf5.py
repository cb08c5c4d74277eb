"""HDF5 files as every part of a cache opens and creates them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheNotFoundError,
    HeadstartError,
)
from data_cache.files import write_all
from data_cache.layout import SEAL_BYTES
from data_cache.seal import MENDING

_SPAN_CHUNKS = 64
_SIGNS_OF_DAMAGE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; files of a cache never change, so no lock is taken.

    Raises
    ------
    CacheNotFoundError
        Nothing is at the path.
    CacheFormatError
        Something is, but not an HDF5 file that can be opened.
    """
    if not path.exists():
        raise CacheNotFoundError(f"{path} does not exist: make it with `extract-features`")
    if path.is_dir():
        raise CacheFormatError(f"{path} is a folder; a feature cache is a file")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise CacheFormatError(
            f"{path} is not an HDF5 file, or was cut short ({reason}); a feature cache, as "
            "`extract-features` writes it, was expected"
        ) from error
    with file:
        yield file


@contextmanager
def naming_damage(what: str) -> Iterator[None]:
    """Turn whatever h5py says of a damaged file, which varies, into one kind of error.

    Raises
    ------
    CacheCorruptError
        The body failed; the message starts with ``what``.
    """
    try:
        yield
    except HeadstartError:
        raise
    except _SIGNS_OF_DAMAGE as error:
        raise CacheCorruptError(f"{what} cannot be read ({error}): {MENDING}") from error


def datasets_within(file: h5py.File) -> list[h5py.Dataset]:
    """Return every dataset of a file that may be somebody else's, having read none of them.

    HDF5 would open whatever file of the machine a link, or the storage of a dataset, names.

    Raises
    ------
    ValueError
        Anything in the file is a soft or an external link, or a dataset whose values lie elsewhere.
    """
    found: list[h5py.Dataset] = []
    groups, seen = [file["/"]], set()
    while groups:
        group = groups.pop()
        if (place := h5py.h5o.get_info(group.id).addr) in seen:
            continue
        seen.add(place)
        for name in group:
            item = _item_within(group, name)
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                found.append(item)
    return found


def _item_within(group: h5py.Group, name: str) -> h5py.HLObject:
    """Return what has a name in a group; raise ``ValueError`` where that lies outside the file."""
    if isinstance(group.get(name, getlink=True), h5py.HardLink):
        item = group[name]
        if not isinstance(item, h5py.Dataset) or not (item.external or item.is_virtual):
            return item
    raise ValueError(f"{group.name.rstrip('/')}/{name} in it lies outside the file")


@contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create a file with an empty user block; the first failed write is raised at the end.

    HDF5 does not recover from a full disk: it keeps the file open and fails again wherever it is
    flushed. So it writes through a :class:`_Sink`, which never fails before HDF5 is done.

    Raises
    ------
    OSError
        A write failed; what is at ``path`` is worth nothing.
    """
    with path.open("w+b", buffering=0) as raw:
        sink = _Sink(raw)
        try:
            with h5py.File(sink, "w", userblock_size=SEAL_BYTES) as file:
                yield file
        except BaseException:
            if sink.failure is not None:
                raise sink.failure from None
            raise
        if sink.failure is not None:
            raise sink.failure


class _Sink(io.RawIOBase):
    """A file that swallows every write after the first that failed, which it remembers."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__()
        self._raw = raw
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``, or pretend to after a failure."""
        view = memoryview(data).cast("B")
        try:
            if self.failure is None:
                write_all(self._raw, view)
                return len(view)
        except OSError as error:
            self.failure = error
        self._raw.seek(len(view), io.SEEK_CUR)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file; remembered, not raised, where it fails."""
        try:
            if self.failure is None:
                return self._raw.truncate(size)
        except OSError as error:
            self.failure = error
        return size or 0

    def readinto(self, buffer: Any) -> int:
        """Read what HDF5 asks to see again of its own metadata."""
        return self._raw.readinto(buffer)  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._raw.tell()

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


def text_dtype(width: int) -> np.dtype[np.bytes_]:
    """Return the type of UTF-8 text of at most ``width`` bytes, padded with NUL."""
    dtype: np.dtype[np.bytes_] = h5py.string_dtype("utf-8", max(1, width))
    return dtype


def encode_texts(texts: tuple[str, ...]) -> NDArray[np.bytes_]:
    """Return texts as (n,) fixed-length UTF-8 bytes."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, dtype=f"S{max(map(len, encoded), default=1) or 1}")


def decode_texts(texts: NDArray[np.bytes_]) -> tuple[str, ...]:
    """Return (n,) fixed-length UTF-8 bytes as texts."""
    return tuple(text.decode() for text in texts.tolist())


def write_column(
    group: h5py.Group, name: str, values: NDArray[Any], n_chunk_rows: int, **options: Any
) -> None:
    """Write a column of one value or one vector a row, with fletcher32 on every chunk."""
    if values.dtype.kind == "S":
        text = text_dtype(values.dtype.itemsize)
        values = values.astype(text, copy=False).view(text)  # astype alone may lose the encoding
    column = create_column(group, name, values.shape, values.dtype, n_chunk_rows, **options)
    column[...] = values


def create_column(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | str,
    n_chunk_rows: int,
    **options: Any,
) -> h5py.Dataset:
    """Create an empty column; one without rows has no chunks, and so no checksum."""
    if 0 in shape:
        return group.create_dataset(name, shape, dtype, fillvalue=options.get("fillvalue"))
    chunks = (min(n_chunk_rows, shape[0]), *shape[1:])
    return group.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True, **options)


def read_slice(dataset: h5py.Dataset, rows: slice) -> NDArray[Any]:
    """Read consecutive rows.

    Raises
    ------
    CacheCorruptError
        A checksum is wrong; the message names the file, the data set and the rows.
    """
    first, stop, _ = rows.indices(len(dataset))
    with naming_damage(f"{dataset.file.filename}: {dataset.name}, rows {first} to {stop - 1},"):
        values: NDArray[Any] = dataset[rows]
    return values


def read_rows(dataset: h5py.Dataset, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Read ``rows`` ((m,) positions, in any order, repeats allowed), each chunk at most once.

    Rows in neighboring chunks are read as one slice, so neither a sorted nor a shuffled order costs
    a call for each row. No more than 64 chunks are in memory besides the result, and no chunk is
    read that holds none of the rows.
    """
    if len(rows) and (np.diff(rows) == 1).all():
        return read_slice(dataset, slice(int(rows[0]), int(rows[-1]) + 1))
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    result = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
    for start, stop in _spans(ordered // (dataset.chunks or (1,))[0]):
        first = int(ordered[start])
        values = read_slice(dataset, slice(first, int(ordered[stop - 1]) + 1))
        result[order[start:stop]] = values[ordered[start:stop] - first]
    return result


def _spans(chunks: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Cut sorted chunk numbers where one is left out, and where a multiple of 64 is passed."""
    is_cut = (np.diff(chunks) > 1) | (np.diff(chunks // _SPAN_CHUNKS) > 0)
    edges = [0, *(np.flatnonzero(is_cut) + 1).tolist(), len(chunks)]
    return list(itertools.pairwise(edges)) if len(chunks) else []
