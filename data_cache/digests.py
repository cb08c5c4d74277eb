"""Digests of rows: finding a content among millions, and proving a block of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.layout import DIGEST_BYTES

Content = NDArray[np.uint8]
"""(n, 32) uint8, a SHA-256 a row."""


def as_keys(content: Content) -> NDArray[np.bytes_]:
    """Return (n, 32) uint8 digests as (n,) byte strings that compare and sort as a whole."""
    return np.ascontiguousarray(content, np.uint8).reshape(-1, DIGEST_BYTES).view("S32").reshape(-1)


def as_content(digests: Sequence[bytes]) -> Content:
    """Return n digests of 32 bytes as (n, 32) uint8."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def array_digest(row: NDArray[Any]) -> bytes:
    """Return the SHA-256 (32 bytes) of an array: its element type, its shape, its bytes.

    The type is NumPy's name for it, the bytes are little-endian and in C order whatever the
    machine, so an array has one digest everywhere.
    """
    little = np.ascontiguousarray(row, row.dtype.newbyteorder("<"))
    sha256 = hashlib.sha256(f"{row.dtype.name}{list(row.shape)}".encode())
    sha256.update(little.reshape(-1).view(np.uint8).data)
    return sha256.digest()


class KeyIndex:
    """Where each of many byte strings is; of equal ones, the first."""

    def __init__(self, keys: NDArray[np.bytes_]) -> None:
        self._sorted, self._positions = np.unique(keys, return_index=True)

    def find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Return the position of each of ``keys`` ((m,) bytes), -1 for those that are not there."""
        if not len(self._sorted):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._positions[at], -1).astype(np.int64)


def shard_context(recipe_digest: str) -> bytes:
    """Return what the block digests of a shard start from."""
    return _context([recipe_digest])


def split_context(recipe_digest: str, classes: tuple[str, ...], split: str) -> bytes:
    """Return what the block digests of a split start from: labels mean little without classes."""
    return _context([recipe_digest, list(classes), split])


def _context(said: list[Any]) -> bytes:
    """Return the SHA-256 (32 bytes) of canonical JSON."""
    return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).digest()


def block_digests(
    context: bytes, columns: Sequence[NDArray[Any]], n_block_rows: int
) -> Iterator[bytes]:
    """Yield the digest (32 bytes) of each block of ``n_block_rows`` rows of some columns.

    It is the SHA-256 of the context and of the block's little-endian bytes, column by column.
    """
    for at in range(0, len(columns[0]), n_block_rows):
        sha256 = hashlib.sha256(context)
        for column in columns:
            rows = column[at : at + n_block_rows]
            little = np.ascontiguousarray(rows, column.dtype.newbyteorder("<"))
            sha256.update(little.reshape(-1).view(np.uint8).data)
        yield sha256.digest()
