"""Images without labels, one after another: new ones to be classified, however many there are.

Nothing is read, hashed or listed beforehand, and only the images under way are held.
"""

from __future__ import annotations

import csv
import glob
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from data_cache.errors import BadImageError, ImageUnavailableError, SourceError, UnknownSourceError
from extract.decode import DecodeOptions, decode
from extract.sources.arrays import scale_to_pixels
from extract.sources.base import Listed, Raw
from extract.sources.files import why_unreadable
from extract.sources.folders import Tree, as_text, read_folder
from extract.sources.tables import guess_delimiter


@dataclass(frozen=True)
class NoImage:
    """What stands where an image was expected, and why there is none."""

    reason: str


AnyImage = Path | str | bytes | NDArray | Image | NoImage
"""A path; the bytes of an image file; (h, w) or (h, w, 1|3|4), uint8, or floating-point in [0, 1]
or [0, 255]; or an image of Pillow's."""

_TABLES = (".csv", ".tsv")
_PATH_COLUMN = "path"


@dataclass(frozen=True)
class NamedImage:
    """An image and what it is called where it is reported."""

    id: str
    image: AnyImage


class ImageStream:
    """Images as the pipeline takes them: see :class:`extract.pipeline.Images`.

    Positions count the images from 0; an image is held from when its position is yielded until it
    is taken back with :meth:`finish`, in the same order.
    """

    def __init__(
        self,
        images: Iterable[NamedImage],
        decoding: DecodeOptions,
        scale: float | None = None,
    ) -> None:
        """Take images; ``scale`` brings floating-point arrays to [0, 255], None asks each one."""
        self._images = images
        self._decoding = decoding
        self._scale = scale
        self._under_way: dict[tuple[str, int], NamedImage] = {}
        self._order: deque[tuple[str, int]] = deque()

    def positions(self) -> Iterator[tuple[str, int]]:
        """Yield the position of every image, as far as they are asked for."""
        for row, image in enumerate(self._images):
            self._under_way["", row] = image
            self._order.append(("", row))
            yield "", row

    def finish(self, n_images: int) -> list[NamedImage]:
        """Return the ``n_images`` that have been held for longest, and hold them no more."""
        return [self._under_way.pop(self._order.popleft()) for _ in range(n_images)]

    def fetch(self, split: str, row: int) -> Raw:
        """Return the bytes of a file, or the pixels of an array.

        Raises
        ------
        BadImageError
            It cannot be read, or is no image.
        """
        image = self._under_way[split, row].image
        if isinstance(image, NoImage):
            raise BadImageError(image.reason)
        if isinstance(image, bytes):
            return image
        if isinstance(image, str | Path):
            return _read(Path(image))
        if isinstance(image, np.ndarray):
            return _as_pixels(image, self._scale)
        return decode(image, self._decoding)

    def listed(self, split: str, row: int) -> Listed:
        """Return what an image is called; its content is not known beforehand."""
        return Listed(self._under_way[split, row].id)


def find_images(paths: Sequence[str]) -> Iterator[NamedImage]:
    """Return every image that the user names, in order; the files of a folder are sorted.

    A path is an image file; a folder, searched at any depth; a glob pattern, in which ``**`` means
    any folders; or a table (.csv, .tsv) with a column ``path``, relative to the folder it is in.

    Raises
    ------
    UnknownSourceError
        Nothing is there, or nothing matches. All paths are looked at before the first image.
    SourceError
        A table has no column ``path``, or a folder cannot be read.
    """
    return chain.from_iterable([_find(path) for path in paths])


def _find(text: str) -> Iterator[NamedImage]:
    """Return the images that one path means."""
    path = Path(text)
    if path.is_dir():
        return _in_folder(text)
    if path.is_file():
        is_table = path.suffix.lower() in _TABLES
        return (
            _in_table(path, *_look(path)) if is_table else iter([NamedImage(as_text(text), path)])
        )
    matches = _matches(text) if glob.has_magic(text) else []
    if not matches:
        raise UnknownSourceError(
            f"{text}: there is no such file or folder, and as a pattern it matches none"
        )
    return (NamedImage(as_text(one), Path(one)) for one in matches)


def _matches(pattern: str) -> list[str]:
    """Return the files that a pattern means, sorted."""
    found = glob.iglob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute one)
    return sorted(one for one in found if Path(one).is_file())


def _in_folder(root: str) -> Iterator[NamedImage]:
    """Yield the images of a folder at any depth, those of one folder sorted, a folder at a time."""
    pending = [("", frozenset[tuple[int, int]]())]
    while pending:
        folder, above = pending.pop()
        here = Tree()
        try:
            stat = Path(root, folder).stat()
            identity = (stat.st_dev, stat.st_ino)
            inner = [] if identity in above else read_folder(root, folder, here)
        except OSError as error:
            raise SourceError(
                f"{error.filename or root} cannot be read: {error.strerror}"
            ) from error
        for relative in sorted(here.files):
            path = Path(root, relative)
            yield NamedImage(as_text(str(path)), path)
        pending += [(one, above | {identity}) for one in sorted(inner, reverse=True)]


def _look(table: Path) -> tuple[str, int]:
    """Return what is between the columns of a table, and where the column ``path`` is."""
    with _reading(table) as stream:
        delimiter = guess_delimiter(stream.readline())
        stream.seek(0)
        header = next(csv.reader(stream, delimiter=delimiter, strict=True), [])
        return delimiter, _path_column(table, header)


def _in_table(table: Path, delimiter: str, at: int) -> Iterator[NamedImage]:
    """Yield the images of a table, which is read as they are needed."""
    with _reading(table) as stream:
        rows = csv.reader(stream, delimiter=delimiter, strict=True)
        next(rows)
        for number, cells in enumerate(rows, start=2):
            if cells:
                yield _row(table, number, cells[at : at + 1])


@contextmanager
def _reading(table: Path) -> Iterator[TextIO]:
    """Open a table; say in words why it cannot be read."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise SourceError(f"{table} is not UTF-8 text: save it as 'CSV UTF-8'") from error
    except (OSError, csv.Error) as error:
        raise SourceError(f"{table} cannot be read as a table: {error}") from error


def _path_column(table: Path, header: list[str]) -> int:
    """Return where the column ``path`` is."""
    columns = [name.strip().lower() for name in header]
    if _PATH_COLUMN not in columns:
        raise SourceError(
            f"{table} has the columns {', '.join(columns) or '(none)'}: one called {_PATH_COLUMN} "
            "is expected"
        )
    return columns.index(_PATH_COLUMN)


def _row(table: Path, number: int, cells: list[str]) -> NamedImage:
    """Name the image of one line."""
    text = cells[0].strip() if cells else ""
    if not text:
        return NamedImage(f"{table}:{number}", NoImage(f"the line has no {_PATH_COLUMN}"))
    return NamedImage(text, table.parent / text)


def _read(path: Path) -> bytes:
    """Return the bytes of a file."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageUnavailableError(why_unreadable(error)) from error


def _as_pixels(values: NDArray, scale: float | None) -> NDArray:
    """Return an array as uint8, or as float32 in [0, 255]: of values up to 1, 1 is white."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f" or not values.size:
        raise BadImageError(
            f"an array of type {values.dtype} and shape {values.shape}, where pixels in uint8 or "
            "floating-point are expected"
        )
    try:
        scale = scale or scale_to_pixels([values[None]])
    except SourceError as error:
        raise BadImageError(str(error)) from error
    return values.astype(np.float32) * np.float32(scale)
