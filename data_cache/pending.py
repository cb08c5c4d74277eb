"""Feature rows on their way into a shard."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from data_cache.digests import Content


class PendingRows:
    """Rows that were appended and are in no shard yet.

    Attributes
    ----------
    n_rows : how many there are
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Content, NDArray[np.float32]]] = []
        self._since = time.monotonic()
        self.n_rows = 0

    def add(self, content: Content, features: NDArray[np.float32]) -> None:
        """Take a copy of some rows, whose arrays the caller may use again."""
        if not self._batches:
            self._since = time.monotonic()
        self._batches.append((np.array(content, np.uint8), np.array(features, np.float32)))
        self.n_rows += len(content)

    def age(self) -> float:
        """Return for how many seconds rows have waited."""
        return time.monotonic() - self._since if self._batches else 0.0

    def first(self, n_rows: int) -> tuple[Content, NDArray[np.float32]]:
        """Return the first rows, at most ``n_rows``: (m, 32) uint8 and (m, d) float32."""
        contents, features = zip(*self._batches, strict=True)
        self._batches = [(np.concatenate(contents), np.concatenate(features))]
        content, rows = self._batches[0]
        return content[:n_rows], rows[:n_rows]

    def drop(self, n_rows: int) -> None:
        """Forget the first rows, which are durable."""
        content, rows = self._batches[0]
        self._batches = [(content[n_rows:], rows[n_rows:])] if len(content) > n_rows else []
        self.n_rows = sum(len(content) for content, _ in self._batches)
        self._since = time.monotonic()
