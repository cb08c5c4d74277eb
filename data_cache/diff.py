"""Hold two caches against each other: recipes, classes, rows, and the features they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.cache import FeatureCache
from data_cache.digests import KeyIndex, as_keys
from data_cache.manifests import relabel
from data_cache.rows import Rows

_BATCH_ROWS = 4096


@dataclass(frozen=True)
class SplitDifference:
    """How a split differs between two caches; rows are matched by id.

    Attributes
    ----------
    n_only_first, n_only_second : rows whose id only one has
    n_changed : rows with another content
    n_relabeled : rows with another class, by name
    n_compared : rows with the same content, whose features were compared
    largest : the largest difference between two of their features
    largest_relative : the same, as a share of the largest feature of either
    """

    n_only_first: int
    n_only_second: int
    n_changed: int
    n_relabeled: int
    n_compared: int
    largest: float
    largest_relative: float

    @property
    def is_empty(self) -> bool:
        """Whether the split is the same in both."""
        counts = (self.n_only_first, self.n_only_second, self.n_changed, self.n_relabeled)
        return not any(counts) and self.largest == 0


@dataclass(frozen=True)
class Difference:
    """How two caches differ: in words for the recipe, by name for the classes, split by split."""

    recipe: tuple[str, ...]
    only_first_classes: tuple[str, ...]
    only_second_classes: tuple[str, ...]
    splits: Mapping[str, SplitDifference]

    @property
    def is_empty(self) -> bool:
        """Whether the caches hold the same; order, provenance and storage aside."""
        classes = self.only_first_classes + self.only_second_classes
        return not (self.recipe or classes) and all(one.is_empty for one in self.splits.values())


def diff(first: Path, second: Path) -> Difference:
    """Return how the cache at ``second`` differs from the one at ``first``.

    Raises as :meth:`FeatureCache.open` does.
    """
    with FeatureCache.open(first) as one, FeatureCache.open(second) as other:
        names = dict.fromkeys([*one.split_names, *other.split_names])
        return Difference(
            recipe=one.recipe.differences(other.recipe),
            only_first_classes=tuple(name for name in one.classes if name not in other.classes),
            only_second_classes=tuple(name for name in other.classes if name not in one.classes),
            splits={split: _split_difference(one, other, split) for split in names},
        )


def _split_difference(one: FeatureCache, other: FeatureCache, split: str) -> SplitDifference:
    """Return how a split differs."""
    classes = tuple(dict.fromkeys(one.classes + other.classes))
    before, after = (_rows(cache, split, classes) for cache in (one, other))
    at = KeyIndex(after.ids).find(before.ids)
    shared = np.flatnonzero(at >= 0)
    matched_before, matched_after = before.take(shared), after.take(at[shared])
    same = as_keys(matched_before.content) == as_keys(matched_after.content)
    relabeled = matched_before.labels != matched_after.labels
    largest, scale = _feature_difference(one, other, split, (shared[same], at[shared][same]))
    return SplitDifference(
        n_only_first=len(before) - len(shared),
        n_only_second=len(after) - len(shared),
        n_changed=int((~same).sum()),
        n_relabeled=int(relabeled.sum()),
        n_compared=int(same.sum()),
        largest=largest,
        largest_relative=largest / scale if scale else 0.0,
    )


def _rows(cache: FeatureCache, split: str, classes: tuple[str, ...]) -> Rows:
    """Return the rows of a split, none where there is no such split, labels in ``classes``."""
    if split not in cache.split_names:
        nothing = np.empty(0, "S1")
        return Rows(nothing, np.empty(0, np.int64), np.empty((0, 32), np.uint8))
    return relabel(cache.rows(split), cache.classes, classes)


def _feature_difference(
    one: FeatureCache,
    other: FeatureCache,
    split: str,
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> tuple[float, float]:
    """Return the largest difference of the features at matched rows, and the largest feature."""
    largest = scale = 0.0
    if one.n_features != other.n_features:
        return (float("inf"), 1.0) if len(rows[0]) else (0.0, 0.0)
    for start in range(0, len(rows[0]), _BATCH_ROWS):
        batch = slice(start, start + _BATCH_ROWS)
        left, right = one.take(split, rows[0][batch]), other.take(split, rows[1][batch])
        largest = max(largest, float(np.abs(left - right).max(initial=0)))
        scale = max(scale, *(float(np.abs(side).max(initial=0)) for side in (left, right)))
    return largest, scale
