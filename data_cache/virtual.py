"""Sharded caches: the index that says where each row's features are, and the virtual data set.

A virtual data set shows the shards to plain HDF5 readers as one array, and lies silently: where a
shard is missing, or the limit of open files is reached, it gives its fill value and no error. So
its fill value is NaN, and this project's reader never uses it: it goes by the columns ``shard`` and
``shard_row``, after it has checked every shard.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.digests import Content, as_content
from data_cache.errors import CacheCorruptError, CacheError, CacheFormatError
from data_cache.hdf5 import decode_texts, encode_texts, open_hdf5, read_slice, write_column
from data_cache.layout import Storage
from data_cache.seal import MENDING, read_seal
from data_cache.statistics import FeatureStatistics, StatisticsAccumulator, read_statistics
from data_cache.stock import Place, Stock, gather, groups_of

_CHUNK_ROWS = 1 << 12
_MAX_RUNS = 100_000
_BATCH_ROWS = 1 << 12


def write_shard_table(file: h5py.File, folder: Path, stock: Stock) -> None:
    """Write the names of the shards, relative to the index's folder, and their seals' digests."""
    group = file.create_group("shards")
    names = tuple(shard.relative_to(folder).as_posix() for shard, _ in stock.places)
    digests = [bytes.fromhex(read_seal(shard).digest) for shard, _ in stock.places]
    write_column(group, "names", encode_texts(names), _CHUNK_ROWS)
    write_column(group, "digests", as_content(digests), _CHUNK_ROWS)


def read_shard_table(file: h5py.File, path: Path) -> list[tuple[Path, bytes]]:
    """Return the path of every shard of an index at ``path``, and its seal's digest (32 bytes).

    Raises
    ------
    CacheFormatError
        A name leads out of the folder of the index.
    """
    names = decode_texts(read_slice(file["shards/names"], slice(None)))
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise CacheFormatError(f"{path} names the shard {name}, which is not below its folder")
    digests = read_slice(file["shards/digests"], slice(None))
    shards = [path.parent.joinpath(*name.split("/")) for name in names]
    return list(zip(shards, map(bytes, digests), strict=True))


def check_shard(shard: Path, digest: bytes) -> None:
    """Raise :class:`CacheCorruptError` unless a shard is there and has the index's digest."""
    if not shard.exists():
        raise CacheCorruptError(
            f"{shard} is missing: the cache was moved without its folder {shard.parent.name}, or "
            f"written to while it was read; put the folder back, or {MENDING}"
        )
    found = read_seal(shard).digest
    if found != digest.hex():
        raise CacheCorruptError(
            f"{shard} is not the shard that was bound (its digest is {found[:12]}…, "
            f"{digest.hex()[:12]}… was expected): {MENDING}"
        )


def shard_places(content: Content, stock: Stock) -> dict[str, NDArray[np.int32]]:
    """Return the columns that say where the features of (n, 32) contents are."""
    places = {name: np.empty(len(content), np.int32) for name in ("shard", "shard_row")}
    for part, which, rows in stock.locate(content):
        places["shard"][part], places["shard_row"][part] = which, rows
    return places


def create_virtual(
    group: h5py.Group,
    stock: Stock,
    location: tuple[NDArray[np.int32], NDArray[np.int32]],
    folder: Path,
    storage: Storage,
) -> None:
    """Create the virtual data set ``features`` of an index in ``folder``.

    ``location`` is the shard (n,) and the row in it (n,); each run of rows is one mapping.

    Raises
    ------
    CacheError
        The rows are so scattered over the shards that HDF5 would take minutes to open it.
    """
    which, rows = location
    shape = (len(rows), stock.n_features)
    starts = _run_starts(which, rows)
    if len(starts) > _MAX_RUNS:
        raise CacheError(
            f"{len(rows):,} rows lie in {len(starts):,} pieces over the shards, more than "
            f"{_MAX_RUNS:,}: bind them into one file, without --sharded"
        )
    if not shape[0]:
        group.create_dataset("features", shape, storage.dtype, fillvalue=np.nan)
        return
    lengths = [len(store.content) for store in stock.stores()]
    sources = [
        h5py.VirtualSource(path.relative_to(folder).as_posix(), name, (n, stock.n_features))
        for (path, name), n in zip(stock.places, lengths, strict=True)
    ]
    layout = h5py.VirtualLayout(shape, storage.dtype)
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        first = int(rows[start])
        layout[start:stop] = sources[which[start]][first : first + stop - start]
    group.create_virtual_dataset("features", layout, fillvalue=np.nan)


def joined_statistics(
    stock: Stock, which: NDArray[np.int32], rows: NDArray[np.int32]
) -> FeatureStatistics:
    """Return the statistics of rows in shards.

    A shard whose every row is used once brings its own along; the rows of any other are read.
    """
    gathered = StatisticsAccumulator(stock.n_features)
    for positions in groups_of(which):
        _join_shard(gathered, stock.places[which[positions[0]]], rows[positions])
    return gathered.result()


def _join_shard(gathered: StatisticsAccumulator, place: Place, rows: NDArray[np.int32]) -> None:
    """Take some rows of one shard into account."""
    with open_hdf5(place[0]) as file:
        length, n_features = file[place[1]].shape
        if len(rows) == length == len(np.unique(rows)):
            gathered.join(read_statistics(file), length)
            return
    for start in range(0, len(rows), _BATCH_ROWS):
        batch = rows[start : start + _BATCH_ROWS]
        gathered.add(gather([place], np.zeros_like(batch), batch, n_features))


def _run_starts(which: NDArray[np.int32], rows: NDArray[np.int32]) -> list[int]:
    """Return where a row does not follow, in the same shard, the row before it."""
    breaks = (np.diff(which) != 0) | (np.diff(rows) != 1)
    return [0, *(np.flatnonzero(breaks) + 1).tolist()] if len(rows) else []
