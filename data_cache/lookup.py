"""Features by content: what a cache holds of an image, wherever in it that may be."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from data_cache.cache import FeatureCache
from data_cache.digests import KeyIndex, as_keys


class FeatureLookup:
    """Finds the features of an image in an open cache by the image's digest.

    Holds 40 bytes for each row of the cache. Safe to use from many threads.
    """

    def __init__(self, cache: FeatureCache) -> None:
        contents = [cache.rows(split).content for split in cache.split_names]
        self._cache = cache
        self._starts = np.cumsum([0, *map(len, contents)])
        self._index = KeyIndex(as_keys(np.concatenate(contents)))
        self._lock = threading.Lock()

    def find(self, content: bytes) -> NDArray[np.float32] | None:
        """Return the features, (d,), of the image with a SHA-256 (32 bytes), or None.

        Raises
        ------
        CacheCorruptError
            The cache holds them, but not as they were written.
        """
        at = int(self._index.find(np.array([content], "S32"))[0])
        if at < 0:
            return None
        which = int(np.searchsorted(self._starts, at, side="right")) - 1
        row = np.array([at - self._starts[which]])
        with self._lock:
            features: NDArray[np.float32] = self._cache.take(self._cache.split_names[which], row)[0]
        return features
