"""The stock: every feature row that is finished already, found by its content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.digests import Content, KeyIndex, as_keys
from data_cache.errors import CacheError
from data_cache.hdf5 import naming_damage, open_hdf5, read_rows
from data_cache.shards import StoredRows

_LOCATED_AT_ONCE = 1 << 20

Place = tuple[Path, str]
"""A file, and the name of the (n, d) data set of features in it."""


class Stock:
    """Feature rows of one recipe, in any number of files; of equal contents the first serves.

    Attributes
    ----------
    places : the files and data sets
    n_features : d, 0 for an empty stock
    """

    def __init__(self, stores: Sequence[StoredRows]) -> None:
        self.places: tuple[Place, ...] = tuple((store.path, store.dataset) for store in stores)
        self.n_features = _common_width(stores)
        self._starts = np.cumsum([0, *(len(store.content) for store in stores)])
        self._rows = _rows_in_places(stores)
        contents = [np.empty((0, 32), np.uint8), *(store.content for store in stores)]
        self._content = np.concatenate(contents)

    @cached_property
    def _index(self) -> KeyIndex:
        """Where each content is; made late, when the stores may have gone, for it takes memory."""
        return KeyIndex(as_keys(self._content))

    def stores(self) -> Iterator[StoredRows]:
        """Yield what the stock was made from, without a copy of what the stock holds itself."""
        for (path, dataset), start, stop in zip(
            self.places, self._starts, self._starts[1:], strict=False
        ):
            part = slice(int(start), int(stop))
            rows = None if self._rows is None else self._rows[part]
            yield StoredRows(path, dataset, self._content[part], rows, self.n_features)

    def has(self, content: Content) -> NDArray[np.bool_]:
        """Return which of the contents ((m, 32) uint8) have a finished row, as (m,) bool."""
        return self._index.find(as_keys(content)) >= 0

    def locate(
        self, content: Content
    ) -> Iterator[tuple[slice, NDArray[np.integer], NDArray[np.integer]]]:
        """Yield a slice of contents ((m, 32) uint8), the places these are in, and the rows there.

        There are at most a million at a time, for memory's sake.

        Raises
        ------
        CacheError
            A content has no row.
        """
        for start in range(0, len(content), _LOCATED_AT_ONCE):
            part = slice(start, start + _LOCATED_AT_ONCE)
            at = self._index.find(as_keys(content[part]))
            if (at < 0).any():
                n_missing = int((~self.has(content)).sum())
                raise CacheError(f"{n_missing:,} rows have no features: append them before binding")
            which = np.searchsorted(self._starts, at, side="right") - 1
            yield part, which, at - self._starts[which] if self._rows is None else self._rows[at]

    def read(self, content: Content) -> NDArray[np.float32]:
        """Return the features ((m, d) float32) of contents ((m, 32) uint8)."""
        found = [
            gather(self.places, which, rows, self.n_features)
            for _, which, rows in self.locate(content)
        ]
        if len(found) == 1:
            return found[0]
        return np.concatenate([np.empty((0, self.n_features), np.float32), *found])


def gather(
    places: Sequence[Place],
    which: NDArray[np.integer],
    rows: NDArray[np.integer],
    n_features: int,
) -> NDArray[np.float32]:
    """Return features, (m, d) float32: of each row (m,), in the place that ``which`` (m,) counts.

    One file is open at a time, however many there are.
    """
    parts = groups_of(which)
    features = np.empty((len(rows), n_features), np.float32)
    for positions in parts:
        path, dataset = places[int(which[positions[0]])]
        with open_hdf5(path) as file, naming_damage(str(path)):
            found = read_rows(file[dataset], rows[positions].astype(np.int64))
        if len(parts) == 1 and found.dtype == features.dtype:
            return found
        features[positions] = found
    return features


def groups_of(values: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Return, for each different value, its positions in ``values`` ((n,)), in order."""
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)


def _rows_in_places(stores: Sequence[StoredRows]) -> NDArray[np.integer] | None:
    """Return where the rows of every store are; None where each has all rows of its data set."""
    if all(store.rows is None for store in stores):
        return None
    return np.concatenate(
        [np.arange(len(one.content)) if one.rows is None else one.rows for one in stores]
    )


def _common_width(stores: Sequence[StoredRows]) -> int:
    """Return the width of the features of every store."""
    widths = {store.n_features for store in stores}
    if len(widths) > 1:
        raise CacheError(f"features of different widths cannot be bound together: {widths}")
    return widths.pop() if widths else 0
