"""The stock: every feature row that is finished already, found by its content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.digests import Content, KeyIndex, as_keys
from data_cache.errors import CacheError
from data_cache.hdf5 import naming_damage, open_hdf5, read_rows
from data_cache.shards import StoredRows

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
        self._rows = np.concatenate([np.empty(0, np.int64), *(store.rows for store in stores)])
        contents = [np.empty((0, 32), np.uint8), *(store.content for store in stores)]
        self._content = np.concatenate(contents)
        self._index = KeyIndex(as_keys(self._content))

    def stores(self) -> Iterator[StoredRows]:
        """Yield what the stock was made from, without a copy of what the stock holds itself."""
        for (path, dataset), start, stop in zip(
            self.places, self._starts, self._starts[1:], strict=False
        ):
            part = slice(int(start), int(stop))
            yield StoredRows(path, dataset, self._content[part], self._rows[part], self.n_features)

    def has(self, content: Content) -> NDArray[np.bool_]:
        """Return which of the contents ((m, 32) uint8) have a finished row, as (m,) bool."""
        return self._index.find(as_keys(content)) >= 0

    def locate(self, content: Content) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the place of each content ((m, 32) uint8), (m,), and its row there, (m,).

        Raises
        ------
        CacheError
            A content has no row.
        """
        at = self._index.find(as_keys(content))
        if (at < 0).any():
            n_missing = int((at < 0).sum())
            raise CacheError(f"{n_missing:,} rows have no features: append them before binding")
        return np.searchsorted(self._starts, at, side="right") - 1, self._rows[at]

    def read(self, content: Content) -> NDArray[np.float32]:
        """Return the features ((m, d) float32) of contents ((m, 32) uint8)."""
        return gather(self.places, *self.locate(content), self.n_features)


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
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _common_width(stores: Sequence[StoredRows]) -> int:
    """Return the width of the features of every store."""
    widths = {store.n_features for store in stores}
    if len(widths) > 1:
        raise CacheError(f"features of different widths cannot be bound together: {widths}")
    return widths.pop() if widths else 0
