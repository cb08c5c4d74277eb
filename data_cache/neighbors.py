"""Rows that are close to one another, found block by block so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""(n, d) float32, each of length 1, so that a dot product is a cosine."""

_BLOCK_ROWS = 2048


def unit_vectors(values: NDArray[np.float32], origin: NDArray[np.float32] | float = 0.0) -> Vectors:
    """Return (n, d) values as seen from ``origin`` ((d,) or 0), each scaled to length 1.

    A row that lies at the origin stays 0: it is close to nothing.
    """
    moved = values - np.asarray(origin, np.float32)
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return moved / np.maximum(lengths, np.finfo(np.float32).tiny)


def nearest(
    queries: Vectors, references: Iterable[Vectors], n_nearest: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the nearest references of each query.

    Parameters
    ----------
    queries : (q, d), held in memory
    references : blocks of (m, d), read once, in order
    n_nearest : k

    Returns
    -------
    similarities : (q, k) float32 cosines, the nearest first; -1 where there are fewer references
    positions : (q, k) int64, counted over all blocks; -1 where there are fewer
    """
    similarities = np.full((len(queries), n_nearest), -1, np.float32)
    positions = np.full((len(queries), n_nearest), -1, np.int64)
    start = 0
    for block in references:
        for rows in _runs(len(queries)):
            found = queries[rows] @ block.T
            best, at = _largest(found, n_nearest)
            both = np.hstack([similarities[rows], best])
            similarities[rows], chosen = _largest(both, n_nearest)
            candidates = np.hstack([positions[rows], at + start])
            positions[rows] = np.take_along_axis(candidates, chosen, axis=1)
        start += len(block)
    order = np.argsort(-similarities, axis=1, kind="stable")
    return (
        np.take_along_axis(similarities, order, axis=1),
        np.take_along_axis(positions, order, axis=1),
    )


def pairs_above(vectors: Vectors, threshold: float) -> NDArray[np.int64]:
    """Return (m, 2) positions i < j of all rows whose cosine is at least ``threshold``."""
    found = [np.empty((0, 2), np.int64)]
    for rows in _runs(len(vectors)):
        for others in _runs(len(vectors)):
            if others.start < rows.start:
                continue
            close = np.argwhere(vectors[rows] @ vectors[others].T >= threshold)
            pairs = close + np.array([rows.start, others.start])
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def connected(n_rows: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Return, for each row, the first row that a chain of pairs leads to: (n,) int64."""
    parents = list(range(n_rows))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parents[second] = first
    return np.array([root(row) for row in range(n_rows)], np.int64)


def _runs(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, n_rows))


def _largest(
    values: NDArray[np.float32], n_largest: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the largest values of each row and where they are, in no order; (r, <= k) each."""
    n_columns = values.shape[1]
    if n_columns <= n_largest:
        at = np.broadcast_to(np.arange(n_columns), values.shape)
    else:
        split = n_columns - n_largest
        at = np.argpartition(values, split, axis=1)[:, split:]
    return np.take_along_axis(values, at, axis=1), at
