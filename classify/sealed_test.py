"""The test split under seal: its labels open once, when every choice is made.

So nothing that was chosen can have seen them, and how often they were opened is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.selection import TRAINING_SPLIT
from classify.test_log import Scorings, record_scorings
from data_cache.cache import FeatureCache
from data_cache.errors import CacheError, DataError

TEST_SPLIT = "test"


class SealedTest:
    """A test split whose features are in the open, and whose labels open once.

    Parameters
    ----------
    cache : stays open as long as this is used
    split : the test split's name

    Raises
    ------
    DataError
        The split has no rows.
    """

    def __init__(self, cache: FeatureCache, split: str) -> None:
        rows = cache.rows(split)
        if not len(rows):
            raise DataError(f"the split {split!r} of {cache.path} has no rows: expected some")
        self.split = split
        self.ids = rows.ids
        self._labels: NDArray[np.int64] | None = rows.labels
        self._cache = cache

    def __len__(self) -> int:
        return len(self.ids)

    def features(self) -> NDArray[np.float32]:
        """Return the features, (n, d) float32."""
        return self._cache.features(self.split)

    def open(self, models: Sequence[str], run: Path) -> OpenedTest:
        """Count the models that are about to be scored, then give out the labels; once.

        Raises
        ------
        RuntimeError
            The seal is open already.
        """
        if self._labels is None:
            raise RuntimeError(f"the labels of {self.split!r} are open already: they open once")
        labels, self._labels = self._labels, None
        return OpenedTest(labels, record_scorings(self._cache.path, self.ids, models, run))


@dataclass(frozen=True)
class OpenedTest:
    """What the seal kept: the labels (n,) int64, and how often they were scored by now."""

    labels: NDArray[np.int64]
    scorings: Scorings | None


def find_test_split(cache: FeatureCache, name: str | None) -> str | None:
    """Return the split that is the test: the one named, else ``test``, else None.

    Raises
    ------
    CacheError
        The split named is not there, or is the training split.
    """
    if name is None:
        return TEST_SPLIT if TEST_SPLIT in cache.split_names else None
    others = [split for split in cache.split_names if split != TRAINING_SPLIT]
    if name not in others:
        raise CacheError(
            f"{cache.path} has no test split {name!r}; it could be: {', '.join(others) or 'none'}"
        )
    return name
