"""Digests of rows: finding a content among millions, and proving a block of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.layout import DIGEST_BYTES

_HASHED_AT_ONCE = 1 << 16
_FOUND_AT_ONCE = 1 << 20
_FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)
"""Odd numbers of 64 bits without a pattern, from the generators SplitMix64 and rrmxmx."""

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
    """Where each of many byte strings is; of equal ones, the first.

    The keys are sorted by a hash of 64 bits, which is many times faster than by themselves, and
    needs no copy of them. Each find is confirmed on the key itself. Keys of one hash that differ,
    which chance alone never brings about, are sorted as they are.

    A key takes 12 bytes, or 16 where there are 2**31 or more, and while they are sorted twice that.

    Attributes
    ----------
    first : (m,) int32 or int64, the position of each different key, in no order
    """

    def __init__(self, keys: NDArray[np.bytes_]) -> None:
        self._keys = keys
        hashes = _hashes(keys)
        self.first: NDArray[np.signedinteger] = _narrow(np.argsort(hashes))
        self._sorted = hashes[self.first]
        self._is_exact = False
        again = np.flatnonzero(self._sorted[1:] == self._sorted[:-1]) + 1
        if len(again):
            self._merge_equal(again)

    def _merge_equal(self, again: NDArray[np.int64]) -> None:
        """Keep the first of the keys of one hash, which is the one they all are.

        ``again`` are the positions in the order whose hash is that of the one before.
        """
        starts = np.flatnonzero(np.diff(again, prepend=-1) != 1)
        heads = again[starts] - 1
        others = self.first[again]
        firsts = np.minimum(self.first[heads], np.minimum.reduceat(others, starts))
        all_firsts = np.repeat(firsts, np.diff(np.append(starts, len(again))))
        same = self._keys[self.first[heads]] == self._keys[firsts]
        if same.all() and (self._keys[others] == self._keys[all_firsts]).all():
            self.first[heads] = firsts
            self.first, self._sorted = np.delete(self.first, again), np.delete(self._sorted, again)
        else:
            self._is_exact = True
            self._exact, self.first = np.unique(self._keys, return_index=True)

    def find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Return the position of each of ``keys`` ((m,) bytes), -1 for those that are not there."""
        found = np.full(len(keys), -1, np.int64)
        if len(self.first):
            for start in range(0, len(keys), _FOUND_AT_ONCE):
                part = slice(start, start + _FOUND_AT_ONCE)
                self._find(keys[part], found[part])
        return found

    def _find(self, keys: NDArray[np.bytes_], found: NDArray[np.int64]) -> None:
        """Fill in where keys are; what is not there stays."""
        wanted, known = (keys, self._exact) if self._is_exact else (_hashes(keys), self._sorted)
        # Neighbors in the order are neighbors in memory too: the search of one helps the next.
        order = np.argsort(wanted)
        at = np.searchsorted(known, wanted[order]).clip(max=len(known) - 1)
        candidates = self.first[at]
        is_found = self._keys[candidates] == keys[order]
        found[order[is_found]] = candidates[is_found]


def _narrow(positions: NDArray[np.int64]) -> NDArray[np.signedinteger]:
    """Return positions, each below their number, in half the bytes where those suffice."""
    return positions if len(positions) > np.iinfo(np.int32).max else positions.astype(np.int32)


def _hashes(keys: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Return a number for each byte string (n,), equal for equal ones, of whatever width.

    Each 8 bytes are multiplied by an odd number of their place, and mixed so that 0 stays 0, for
    padding must not count; the results are combined by exclusive or.
    """
    width = -(-keys.dtype.itemsize // 8)
    hashes = np.zeros(len(keys), np.uint64)
    for start in range(0, len(keys), _HASHED_AT_ONCE):
        part = slice(start, start + _HASHED_AT_ONCE)
        words = np.ascontiguousarray(keys[part].astype(f"S{8 * width}", copy=False))
        columns = words.view(np.uint64).reshape(-1, width)
        for place in range(width):
            mixed = columns[:, place] * np.uint64(_FACTORS[place % len(_FACTORS)] + 16 * place)
            mixed ^= mixed >> np.uint64(32)
            mixed *= np.uint64(_FACTORS[0])
            mixed ^= mixed >> np.uint64(29)
            hashes[part] ^= mixed
    return hashes


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
