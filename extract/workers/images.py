"""Images as another process is sent them: by name, so that it can read them itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import SourceError
from extract.pipeline import Position
from extract.sources import ArraySource, FileSource, Source
from extract.sources.arrays import ArrayReader, Origin
from extract.sources.base import Listed, Raw
from extract.sources.files import read_file
from extract.sources.opening import reopen_images

Place = str | int
"""Where an image is: the absolute path of a file, or a position in arrays."""

Read = Callable[[Place], Raw]


@dataclass(frozen=True)
class TaskImages:
    """The images of one task, n of them.

    Attributes
    ----------
    splits, ids : (n,) what each is called
    content : (n, 32) uint8, the SHA-256 that each must have
    places : (n,) where each is
    """

    splits: tuple[str, ...]
    ids: tuple[str, ...]
    content: NDArray[np.uint8]
    places: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self) -> Iterator[Position]:
        """Yield a position for each image; its row is a row of the task."""
        return iter([(split, row) for row, split in enumerate(self.splits)])


@dataclass(frozen=True)
class ReadableImages:
    """The images of a task where they can be read; see :class:`extract.pipeline.Images`."""

    images: TaskImages
    read: Read

    def fetch(self, _split: str, row: int) -> Raw:
        """Return an image."""
        return self.read(self.images.places[row])

    def listed(self, _split: str, row: int) -> Listed:
        """Return what is known of an image beforehand."""
        return Listed(self.images.ids[row], self.images.content[row].tobytes())


@dataclass(frozen=True)
class Opening:
    """How a worker opens the source: nothing for files, which it reads by their paths.

    Attributes
    ----------
    origin : of arrays; None for files
    scale : what brings the values of arrays to [0, 255]
    """

    origin: Origin | None = None
    scale: float = 1.0

    def open(self) -> Read:
        """Return a function that reads an image; arrays are opened, but not read, by it."""
        if self.origin is None:
            return lambda place: read_file(Path(str(place)))
        reader = ArrayReader(reopen_images(self.origin), self.scale)
        return lambda place: reader.read(int(place))


def opening_of(source: Source) -> Opening:
    """Return how a worker can open a source.

    Raises
    ------
    SourceError
        Its images are in the memory, or in a temporary file, of this process alone.
    """
    if isinstance(source, FileSource):
        return Opening()
    if isinstance(source, ArraySource) and source.origin is not None:
        return Opening(source.origin, source.reader.scale)
    raise SourceError(
        f"{source.name} is held by this process alone, and the workers of a cluster cannot open "
        "it by its name: use a folder, a table, a .npz, .npy or .h5 file or a built-in set, or "
        "leave --cluster out"
    )


def task_images(source: Source, positions: Sequence[Position]) -> TaskImages:
    """Return the images at some positions of a source that :func:`opening_of` takes."""
    listed = [source.listed(*position) for position in positions]
    content = np.frombuffer(b"".join(one.content or b"" for one in listed), np.uint8)
    return TaskImages(
        tuple(split for split, _ in positions),
        tuple(one.id for one in listed),
        content.reshape(-1, 32),
        tuple(_place(source, *position) for position in positions),
    )


def _place(source: Source, split: str, row: int) -> Place:
    """Return where an image is."""
    if isinstance(source, FileSource):
        return str(source.paths[source.position(split, row)].absolute())
    if isinstance(source, ArraySource):
        return source.position(split, row)
    raise TypeError(type(source))
