"""The bound file: every split of a manifest and its features, written whole and sealed.

By default the features are in it, and it needs nothing else. With ``sharded`` storage it is an
index: the features stay in the shards, each row's place is a column of its own, and a virtual data
set shows them to plain HDF5 readers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.digests import as_content, block_digests, split_context
from data_cache.files import whole_file
from data_cache.hdf5 import create_hdf5, encode_texts, write_column
from data_cache.identity import write_identity, write_provenance
from data_cache.layout import UNLABELED, Storage, chunk_rows
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import BadImage, Manifest, Rows
from data_cache.seal import seal
from data_cache.statistics import StatisticsAccumulator, write_statistics
from data_cache.stock import Stock
from data_cache.storage import as_stored, create_features, write_block_digests, write_storage
from data_cache.virtual import (
    create_virtual,
    joined_statistics,
    shard_places,
    write_shard_table,
)

_BATCH_BYTES = 16 << 20
_COLUMN_CHUNK_ROWS = 1 << 12


@dataclass(frozen=True)
class BadRow:
    """An image that was left out, with the digest of what could not be decoded (32 bytes)."""

    image: BadImage
    content: bytes


@dataclass(frozen=True)
class Contents:
    """Everything that a bound file says, features aside."""

    manifest: Manifest
    bad_rows: tuple[BadRow, ...]
    recipe: Recipe
    provenance: Provenance


def write_bound(path: Path, contents: Contents, stock: Stock, storage: Storage) -> None:
    """Write the file at ``path``, whole and sealed.

    Features are streamed from the stock in batches of 16 MiB, whatever the number of rows. For
    sharded storage every place of the stock is a shard in a folder beside ``path``.

    Raises
    ------
    CacheError
        A row has no features in the stock, or sharded rows are too scattered for a virtual data
        set.
    """
    with whole_file(path) as temporary:
        with create_hdf5(temporary) as file:
            write_root(file, contents, "cache")
            write_storage(file, storage)
            if storage.sharded:
                write_shard_table(file, path.parent, stock)
            for split in contents.manifest.splits:
                _SplitWriter(file, contents, split, path.parent).write(stock, storage)
        seal(temporary)


def columns_of(rows: Rows) -> dict[str, NDArray[Any]]:
    """Return the columns of rows by their name in the file, in the order of the digests."""
    columns: dict[str, NDArray[Any]] = {
        "ids": rows.ids,
        "labels": rows.labels.astype(np.int64, copy=False),
        "content": rows.content,
    }
    return columns if rows.groups is None else columns | {"groups": rows.groups}


def write_root(file: h5py.File, contents: Contents, kind: str) -> None:
    """Write what concerns every split; HDF5 does not keep the order of groups, so it is listed."""
    write_identity(file, kind, contents.recipe)
    write_provenance(file, contents.provenance)
    splits = list(contents.manifest.splits)
    file.attrs.create("splits", splits, dtype=h5py.string_dtype())
    classes = encode_texts(contents.manifest.classes)
    write_column(file, "classes", classes, _COLUMN_CHUNK_ROWS)
    _write_bad_rows(file.create_group("bad_images"), contents.bad_rows)


def _write_bad_rows(group: h5py.Group, bad_rows: Sequence[BadRow]) -> None:
    """Write the images that were left out, as columns."""
    for name in ("split", "id", "reason"):
        texts = tuple(getattr(bad.image, name) for bad in bad_rows)
        write_column(group, name, encode_texts(texts), _COLUMN_CHUNK_ROWS)
    content = as_content([bad.content for bad in bad_rows])
    write_column(group, "content", content, _COLUMN_CHUNK_ROWS)


class _SplitWriter:
    """Writes one split: its columns, its features, their statistics and the block digests."""

    def __init__(self, file: h5py.File, contents: Contents, split: str, folder: Path) -> None:
        manifest = contents.manifest
        self._folder = folder
        self._group = file.create_group(split)
        self._rows = manifest.splits[split]
        self._columns = columns_of(self._rows)
        self._context = split_context(contents.recipe.digest(), manifest.classes, split)

    def write(self, stock: Stock, storage: Storage) -> None:
        """Write everything."""
        if storage.sharded:
            self._columns |= shard_places(self._rows.content, stock)
        for name, values in self._columns.items():
            fill = {"fillvalue": UNLABELED} if name == "labels" else {}
            write_column(self._group, name, values, _COLUMN_CHUNK_ROWS, **fill)
        put = self._map_features if storage.sharded else self._copy_features
        put(stock, storage)

    def _copy_features(self, stock: Stock, storage: Storage) -> None:
        """Copy the features into the file, batch by batch."""
        n_block_rows = chunk_rows(stock.n_features)
        target = create_features(self._group, (len(self._rows), stock.n_features), storage)
        gathered, digests = StatisticsAccumulator(stock.n_features), list[bytes]()
        for batch in _batches(len(self._rows), stock.n_features):
            features = as_stored(stock.read(self._rows.content[batch]), storage)
            target[batch] = features
            gathered.add(features)
            columns = [*(values[batch] for values in self._columns.values()), features]
            digests += block_digests(self._context, columns, n_block_rows)
        write_statistics(self._group, gathered.result())
        write_block_digests(self._group, digests, n_block_rows)

    def _map_features(self, stock: Stock, storage: Storage) -> None:
        """Point at the features, which stay in their shards."""
        which, rows = self._columns["shard"], self._columns["shard_row"]
        create_virtual(self._group, stock, (which, rows), self._folder, storage)
        write_statistics(self._group, joined_statistics(stock, which, rows))
        n_block_rows = chunk_rows(stock.n_features)
        columns = list(self._columns.values())
        digests = list(block_digests(self._context, columns, n_block_rows))
        write_block_digests(self._group, digests, n_block_rows)


def _batches(n_rows: int, n_features: int) -> Iterator[slice]:
    """Cut rows into slices of whole blocks, of about 16 MiB of features each."""
    block = chunk_rows(n_features)
    length = block * max(1, _BATCH_BYTES // (4 * max(1, n_features) * block))
    for start in range(0, n_rows, length):
        yield slice(start, min(start + length, n_rows))
