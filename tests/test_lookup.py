"""Finding the features of an image in a cache by its content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cache_tools
import numpy as np

from data_cache.cache import FeatureCache
from data_cache.lookup import FeatureLookup

RNG = np.random.default_rng(0)
SPLITS = {
    "train": (RNG.normal(size=(40, 8)).astype(np.float32), np.arange(40) % 3),
    "test": (RNG.normal(size=(9, 8)).astype(np.float32), np.arange(9) % 3),
}


def test_every_content_finds_its_own_features(
    tmp_path: Path, make_cache: Callable[..., Path]
) -> None:
    with FeatureCache.open(make_cache(tmp_path / "c.h5", SPLITS)) as cache:
        lookup = FeatureLookup(cache)
        for features, _ in SPLITS.values():
            for content, row in zip(cache_tools.digests_of(features), features, strict=True):
                np.testing.assert_array_equal(lookup.find(content.tobytes()), row)


def test_unknown_content_finds_nothing(tmp_path: Path, make_cache: Callable[..., Path]) -> None:
    with FeatureCache.open(make_cache(tmp_path / "c.h5", SPLITS)) as cache:
        assert FeatureLookup(cache).find(b"\xff" * 32) is None
        assert FeatureLookup(cache).find(b"\0" * 32) is None
