"""Image files: read once to know their content, read again to be decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import fstat, stat_result
from pathlib import Path

import numpy as np

from data_cache.console import progress
from data_cache.errors import ImageUnavailableError, SourceError
from data_cache.manifests import relabel
from data_cache.rows import BadImage, Rows
from data_cache.stat_index import StatIndex, memory_folder
from extract.sources.base import SourceOptions, digests_as_rows, text_column
from extract.sources.listing import ListedSource, Listing, Whole, names_digest

_N_READERS = 8
_FILES_AT_A_TIME = 32


@dataclass(frozen=True)
class ImageFile:
    """A file that a source names as an image.

    Attributes
    ----------
    path : where it is
    id : what it is called in the cache: the path relative to the source
    label : the name of its class
    split : the split that the source names, or None
    group : the group that the source names, or None
    """

    path: Path
    id: str
    label: str
    split: str | None = None
    group: str | None = None


class FileSource(ListedSource):
    """Images that are files, one each."""

    def __init__(
        self,
        name: str,
        files: Sequence[ImageFile],
        options: SourceOptions,
        notes: Sequence[str] = (),
    ) -> None:
        """Read every file for its digest, unless its size and times are as remembered."""
        chosen = _of_part(files, options)
        digests = digest_files([files[i].path for i in chosen], rehash=options.rehash)
        pairs = [(files[i], found) for i, found in zip(chosen, digests, strict=True)]
        part = options.part
        readable = [(file, found) for file, found in pairs if isinstance(found, bytes)]
        unreadable = [
            BadImage(file.split or "", file.id, found)
            for file, found in pairs
            if isinstance(found, str) and (part is None or part.has(text_column([file.id])).all())
        ]
        if unreadable and not readable and options.part is None:
            raise SourceError(
                f"{name}: none of {len(files)} files can be read; the first, {files[0].path}: "
                f"{unreadable[0].reason}"
            )
        self.paths = [file.path for file, _ in readable]
        listing = _list([file for file, _ in readable], [digest for _, digest in readable])
        if options.part is not None:
            listing = _in_whole(listing, files, chosen, digests)
        super().__init__(name, listing, options, unreadable=unreadable, notes=notes)

    def read(self, position: int) -> bytes:
        """Return the bytes of a file; raise :class:`ImageUnavailableError` where that fails."""
        return read_file(self.paths[position])


def read_file(path: Path) -> bytes:
    """Return the bytes of a file; raise :class:`ImageUnavailableError` where that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageUnavailableError(why_unreadable(error)) from error


def _of_part(files: Sequence[ImageFile], options: SourceOptions) -> list[int]:
    """Return the positions of the files to read: of a part's own, where no other matters to it."""
    if options.part is None or not options.is_row_by_row:
        return list(range(len(files)))
    ids = np.array([file.id.encode() for file in files], object)
    return np.flatnonzero(options.part.has(ids)).tolist()


def _in_whole(
    listing: Listing,
    files: Sequence[ImageFile],
    chosen: Sequence[int],
    digests: Sequence[bytes | str],
) -> Listing:
    """Return a listing of some files with the classes of all, and where in the whole they lie."""
    readable = [i for i, found in zip(chosen, digests, strict=True) if isinstance(found, bytes)]
    classes = tuple(sorted({file.label for file in files}))
    names = names_digest(f"{file.id}\n{file.label}\n{file.split}".encode() for file in files)
    whole = Whole(np.array(readable, np.int64), names)
    return replace(
        listing,
        classes=classes,
        rows=relabel(listing.rows, listing.classes, classes),
        whole=whole,
    )


def digest_files(paths: Sequence[Path], *, rehash: bool = False) -> list[bytes | str]:
    """Return each file's SHA-256 (32 bytes), or in words why it cannot be read.

    A file whose path, size, times and inode are as they were when it was last read is not read
    again, unless ``rehash``.
    """
    index = StatIndex.load(memory_folder() / "digests.sqlite")
    try:
        return _digest_files(paths, index, rehash=rehash)
    finally:
        index.close()


def _digest_files(paths: Sequence[Path], index: StatIndex, *, rehash: bool) -> list[bytes | str]:
    digests: list[bytes | str] = [b""] * len(paths)
    unknown = []
    for position, path in enumerate(paths):
        known = None if rehash else _remembered(path, index)
        if known is None:
            unknown.append(position)
        else:
            digests[position] = known
    batches = [unknown[i : i + _FILES_AT_A_TIME] for i in range(0, len(unknown), _FILES_AT_A_TIME)]
    with progress("Reading", len(unknown), "files") as advance, _readers() as readers:
        tasks = readers.map(lambda batch: [_digest(paths[i]) for i in batch], batches)
        for batch, results in zip(batches, tasks, strict=True):
            for position, (found, stat) in zip(batch, results, strict=True):
                digests[position] = found
                if stat is not None and isinstance(found, bytes):
                    index.remember(paths[position], stat, found)
            advance(len(batch))
    index.save()
    return digests


def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_N_READERS, thread_name_prefix="headstart-read")


def _remembered(path: Path, index: StatIndex) -> bytes | None:
    """Return the digest that the index has of a file as it is now, or None."""
    try:
        return index.lookup(path, path.stat())
    except (OSError, ValueError):
        return None


def _digest(path: Path) -> tuple[bytes | str, stat_result | None]:
    """Return a file's digest and its stat from before it was read; or why it cannot be read."""
    try:
        with path.open("rb", buffering=0) as stream:
            stat = fstat(stream.fileno())
            return hashlib.sha256(stream.read()).digest(), stat
    except (OSError, ValueError) as error:
        return why_unreadable(error), None


def why_unreadable(error: OSError | ValueError) -> str:
    """Say in words why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return f"it cannot be read: {getattr(error, 'strerror', None) or error}"


def _list(files: Sequence[ImageFile], digests: Sequence[bytes]) -> Listing:
    """List files: classes are sorted by name."""
    classes = tuple(sorted({file.label for file in files}))
    position = {name: i for i, name in enumerate(classes)}
    labels = np.array([position[file.label] for file in files], np.int64)
    groups = _column(file.group for file in files)
    rows = Rows(
        text_column([file.id for file in files]),
        labels,
        digests_as_rows(digests),
        None if groups is None else text_column(groups),
    )
    splits = _column(file.split for file in files)
    return Listing(classes, rows, None if splits is None else np.array(splits))


def _column(values: Iterable[str | None]) -> list[str] | None:
    """Return the values, or None where one is missing."""
    found = list(values)
    texts = [value for value in found if value is not None]
    return texts if len(texts) == len(found) else None
