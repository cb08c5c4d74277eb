"""What a cache says of its rows, features aside: the ids, labels, contents and groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """The rows of one split, in their order.

    Attributes
    ----------
    ids : (n,) fixed-length bytes, UTF-8: the path relative to the source, or ``train/000017``
    labels : (n,) int64, positions in ``Manifest.classes``
    content : (n, 32) uint8, the SHA-256 of what was read for each row
    groups : (n,) fixed-length bytes, UTF-8, or None; rows of one group are never divided
    """

    ids: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    content: NDArray[np.uint8]
    groups: NDArray[np.bytes_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> Rows:
        """Return the rows at ``indices`` ((m,) integers or an (n,) mask), in that order."""
        groups = None if self.groups is None else self.groups[indices]
        return Rows(self.ids[indices], self.labels[indices], self.content[indices], groups)


@dataclass(frozen=True)
class Manifest:
    """Every split's rows, and the names of the classes that their labels count into."""

    classes: tuple[str, ...]
    splits: Mapping[str, Rows]

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.splits.values())


@dataclass(frozen=True)
class BadImage:
    """An image that is left out, and why; ``reason`` is for a person to read.

    ``is_passing`` tells that the next run may read it, so it is not remembered as bad.
    """

    split: str
    id: str
    reason: str
    is_passing: bool = field(default=False, compare=False)
