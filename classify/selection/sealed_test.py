"""The test split under seal: its labels open once, when every choice is made.

So nothing that was chosen can have seen them, and how often they were opened is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.selection.division import TRAINING_SPLIT, LabeledSplits, Part
from classify.selection.test_log import Scorings, record_scorings
from data_cache.errors import CacheError, DataError

TEST_SPLIT = "test"


class SealedTest:
    """A test split whose features are in the open, and whose labels open once.

    Parameters
    ----------
    cache : stays open as long as this is used
    split : the test split's name
    log_beside : the files beside which scorings are logged, one or more; by default the cache's

    Raises
    ------
    DataError
        The split has no rows.
    """

    def __init__(self, cache: LabeledSplits, split: str, *log_beside: Path) -> None:
        rows = cache.rows(split)
        if not len(rows):
            raise DataError(f"the split {split!r} of {cache.path} has no rows: expected some")
        self.split = split
        self.ids = rows.ids
        self._labels: NDArray[np.int64] | None = rows.labels
        self._cache = cache
        self._log_beside = log_beside or (cache.path,)

    def __len__(self) -> int:
        return len(self.ids)

    def features(self) -> Any:
        """Return the features, (n, d) float32, perhaps streamed; or images, (n, h, w, c) uint8."""
        return self._cache.features(self.split)

    def open(self, models: Sequence[str], run: Path) -> OpenedTest:
        """Count the models that are about to be scored, then give out the labels; once.

        Where scorings are logged in several places, all of them get these, and the highest count
        is told: each of those files may have been scored without the others.

        Raises
        ------
        RuntimeError
            The seal is open already.
        """
        labels = self._break_seal()
        logged = [record_scorings(path, self.ids, models, run) for path in self._log_beside]
        most = max(filter(None, logged), key=lambda scorings: scorings.last, default=None)
        return OpenedTest(labels, most)

    def learn(self) -> Part:
        """Give out the rows to learn from: no scoring is counted, and none can follow.

        Raises
        ------
        RuntimeError
            The seal is open already.
        """
        groups = self._cache.rows(self.split).groups
        return Part(self.ids, self.features(), self._break_seal(), groups)

    def _break_seal(self) -> NDArray[np.int64]:
        """Return the labels, once."""
        if self._labels is None:
            raise RuntimeError(f"the labels of {self.split!r} are open already: they open once")
        labels, self._labels = self._labels, None
        return labels


@dataclass(frozen=True)
class OpenedTest:
    """What the seal kept: the labels (n,) int64, and how often they were scored by now."""

    labels: NDArray[np.int64]
    scorings: Scorings | None


def find_test_split(cache: LabeledSplits, name: str | None) -> str | None:
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
