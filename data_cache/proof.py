"""Prove rows: hold every block of a split, or of a shard, against the digest stored for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.digests import block_digests
from data_cache.errors import HeadstartError
from data_cache.hdf5 import naming_damage

_ORDER = ("ids", "labels", "content", "groups", "shard", "shard_row", "features")
_BATCH_BLOCKS = 32


def sound_rows(group: h5py.Group, context: bytes) -> NDArray[np.bool_]:
    """Return which rows of a split or shard are as they were written, as (n,) bool.

    ``context`` is what its block digests start from. A row is sound if its whole block is: what
    cannot be read, or has another digest, is not.

    Raises
    ------
    CacheCorruptError
        Not even the digests can be read.
    """
    with naming_damage(f"{group.file.filename}: {group.name}"):
        sound = np.zeros(len(group["content"]), bool)
        digests = group["block_digests"][...]
        length = int(group.attrs["block_rows"])
    for first in range(0, len(digests), _BATCH_BLOCKS):
        blocks = slice(first, min(first + _BATCH_BLOCKS, len(digests)))
        found = list(_digests(group, context, blocks, length))
        for number, digest in enumerate(found, start=first):
            sound[number * length : (number + 1) * length] = digest == digests[number].tobytes()
    return sound


def _digests(
    group: h5py.Group, context: bytes, blocks: slice, length: int
) -> Iterator[bytes | None]:
    """Yield the digest of each of some blocks; where they cannot be read at once, one by one."""
    try:
        columns = _read(group, slice(blocks.start * length, blocks.stop * length))
        yield from list(block_digests(context, columns, length))
    except HeadstartError:
        if blocks.stop - blocks.start == 1:
            yield None
            return
        for number in range(blocks.start, blocks.stop):
            yield from _digests(group, context, slice(number, number + 1), length)


def _read(group: h5py.Group, rows: slice) -> list[NDArray[Any]]:
    """Return some rows of every column that the digests cover, in their order."""
    with naming_damage(f"{group.file.filename}: {group.name}"):
        columns = [group[name] for name in _ORDER if name in group]
        return [column[rows] for column in columns if not column.is_virtual]


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and the last position of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [
        (int(first), int(stop) - 1) for first, stop in zip(edges[::2], edges[1::2], strict=True)
    ]
