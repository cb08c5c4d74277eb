"""Tell what a cache holds from what was stored when it was bound, without reading the features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_cache.cache import FeatureCache
from data_cache.errors import CacheError, HeadstartError
from data_cache.layout import Storage
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import BadImage
from data_cache.seal import is_sealed


@dataclass(frozen=True)
class FeatureSummary:
    """The features of a split in a few numbers.

    ``mean`` and ``std`` are averages over the features; ``n_constant`` counts the features that
    are the same in every row, from which nothing can be learnt.
    """

    mean: float
    std: float
    min: float
    max: float
    n_constant: int


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds: how many rows, of each class, of how many groups, and its features."""

    n_rows: int
    class_counts: Mapping[str, int]
    n_groups: int | None
    features: FeatureSummary


@dataclass(frozen=True)
class Inspection:
    """What a cache holds.

    ``n_bytes`` is the size of the file and of the shards that it names; ``n_unbound_shards``
    counts finished shards of a run that was interrupted.
    """

    path: Path
    n_bytes: int
    n_features: int
    recipe: Recipe
    provenance: Provenance
    storage: Storage
    classes: tuple[str, ...]
    splits: Mapping[str, SplitSummary]
    bad_images: tuple[BadImage, ...]
    n_shards: int
    n_unbound_shards: int


def inspect(path: Path) -> Inspection:
    """Return what the cache at ``path`` holds; neither the features nor the seal are read.

    Raises as :meth:`FeatureCache.open` does, for what it reads.
    """
    with FeatureCache.open(path, check="never") as cache:
        files = [path, *(shard for shard in cache.shards if shard.exists())]
        return Inspection(
            path=path,
            n_bytes=sum(file.stat().st_size for file in files),
            n_features=cache.n_features,
            recipe=cache.recipe,
            provenance=cache.provenance,
            storage=cache.storage,
            classes=cache.classes,
            splits={split: _summarize(cache, split) for split in cache.split_names},
            bad_images=tuple(row.image for row in cache.bad_rows()),
            n_shards=len(cache.shards),
            n_unbound_shards=len(cache.unbound_shards()),
        )


def find_caches(folder: Path) -> Iterator[Inspection | HeadstartError]:
    """Yield every cache in a folder by name, or what is wrong with it; other files are skipped.

    Raises
    ------
    CacheError
        ``folder`` is no folder.
    """
    if not folder.is_dir():
        raise CacheError(f"{folder} is not a folder: name the folder that holds the caches")
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and is_sealed(path):
            try:
                yield inspect(path)
            except HeadstartError as error:
                yield error


def _summarize(cache: FeatureCache, split: str) -> SplitSummary:
    """Return what a split holds."""
    labels, groups = cache.labels(split), cache.groups(split)
    counts = np.bincount(labels, minlength=len(cache.classes)).tolist()
    return SplitSummary(
        n_rows=len(labels),
        class_counts=dict(zip(cache.classes, counts, strict=True)),
        n_groups=None if groups is None else len(np.unique(groups)),
        features=_summarize_features(cache, split),
    )


def _summarize_features(cache: FeatureCache, split: str) -> FeatureSummary:
    """Return the stored statistics of a split in a few numbers."""
    found = cache.statistics(split)
    return FeatureSummary(
        mean=float(found.mean.mean()),
        std=float(found.std.mean()),
        min=float(found.min.min(initial=np.inf)),
        max=float(found.max.max(initial=-np.inf)),
        n_constant=int((found.min == found.max).sum()) if cache.n_rows(split) else 0,
    )
