"""A cache gives back what was put in, to this reader and to plain h5py."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from data_cache.cache import FeatureCache
from data_cache.errors import CacheError


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return {
        "train": (rng.normal(size=(300, 17)).astype(np.float32), rng.integers(0, 3, 300)),
        "test": (rng.normal(size=(41, 17)).astype(np.float32), rng.integers(0, 3, 41)),
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory, data, make_cache):
    return make_cache(tmp_path_factory.mktemp("cache") / "c.h5", data, ("ant", "bee", "cat"))


def test_the_reader_returns_what_was_written(cache, data):
    with FeatureCache.open(cache) as opened:
        assert opened.classes == ("ant", "bee", "cat")
        assert opened.split_names == ("train", "test")
        assert opened.n_features == 17
        for split, (features, labels) in data.items():
            np.testing.assert_array_equal(opened.features(split), features)
            rows = opened.rows(split)
            np.testing.assert_array_equal(rows.labels, labels)
            assert rows.ids[1] == f"{split}/000001".encode()


def test_plain_h5py_reads_the_cache(cache, data):
    with h5py.File(cache, "r") as file:
        np.testing.assert_array_equal(file["test/features"][...], data["test"][0])
        assert file["train/labels"].dtype == np.int64
        assert file["train/ids"].dtype.kind == "S"
        assert file["train/features"].fletcher32
        assert file.attrs["format"] == "headstart-feature-cache"
        assert file.attrs["backbone"] == "mobilenet_v2"


def test_an_unknown_split_is_refused_with_the_names_of_those_there_are(cache):
    with (
        FeatureCache.open(cache) as opened,
        pytest.raises(CacheError, match=r"'val'.*train, test"),
    ):
        opened.rows("val")
