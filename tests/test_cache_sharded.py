"""Sharded caches: an index over shards, which never hands out a fill value for a feature."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter

import h5py
import numpy as np
import pytest
from cache_tools import (
    PROVENANCE,
    RECIPE,
    contents_of,
    fake_engine,
    manifest_of,
    update_cache,
)

from data_cache.cache import FeatureCache
from data_cache.errors import CacheCorruptError, CacheError
from data_cache.layout import Storage, parts_folder
from data_cache.merge import merge
from data_cache.update import CacheUpdate, UpdateOptions

SHARDED = {"storage": Storage(sharded=True), "shard_rows": 4}
TRAIN = {f"ant/{k}.jpg": (f"ant{k}", "ant") for k in range(10)} | {
    "bee/copy.jpg": ("ant3", "bee"),
    "bee/0.jpg": ("bee0", "bee"),
}
TEST = {"test/0.jpg": ("test0", "ant"), "test/copy.jpg": ("ant9", "bee")}
MANIFEST = manifest_of({"train": TRAIN, "test": TEST})


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, MANIFEST, **SHARDED)
    return path


def assert_holds(path, manifest):
    with FeatureCache.open(path, check="always") as cache:
        assert list(cache.split_names) == list(manifest.splits)
        for split, rows in manifest.splits.items():
            np.testing.assert_array_equal(cache.rows(split).ids, rows.ids)
            np.testing.assert_array_equal(cache.rows(split).labels, rows.labels)
            np.testing.assert_array_equal(cache.features(split), fake_engine(rows.content))
            shuffled = np.random.default_rng(0).permutation(len(rows))
            np.testing.assert_array_equal(
                cache.take(split, shuffled), fake_engine(rows.content[shuffled])
            )


def test_a_sharded_cache_reads_like_any_other(cache):
    assert_holds(cache, MANIFEST)
    assert len(list(parts_folder(cache).glob("shard-*.h5"))) == 3


def test_plain_h5py_reads_the_virtual_data_set_from_any_folder(cache, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere")
    shutil.move(cache, moved / cache.name)
    shutil.move(parts_folder(cache), moved / parts_folder(cache).name)
    with h5py.File(moved / cache.name) as file:
        assert file["train/features"].is_virtual
        assert np.isnan(file["train/features"].fillvalue)
        assert file["train/labels"].fillvalue == -1
        np.testing.assert_array_equal(
            file["train/features"][...], fake_engine(MANIFEST.splits["train"].content)
        )
    assert_holds(moved / cache.name, MANIFEST)


def test_statistics_joined_from_shards_equal_those_of_the_rows(cache):
    with FeatureCache.open(cache) as opened:
        for split in opened.split_names:
            features = opened.features(split).astype(np.float64)
            found = opened.statistics(split)
            np.testing.assert_allclose(found.mean, features.mean(axis=0))
            np.testing.assert_allclose(found.std, features.std(axis=0))
            np.testing.assert_array_equal(found.min, features.min(axis=0))
            np.testing.assert_array_equal(found.max, features.max(axis=0))


def test_a_missing_shard_is_refused_before_anything_is_read(cache):
    shard = sorted(parts_folder(cache).iterdir())[0]
    shard.unlink()
    with h5py.File(cache) as file:
        assert np.isnan(file["train/features"][...]).any(), "plain h5py reads NaN, and no error"
    with pytest.raises(CacheCorruptError, match=f"{shard.name} is missing"):
        FeatureCache.open(cache)


def test_a_shard_that_goes_while_the_cache_is_open_is_missed(cache):
    with FeatureCache.open(cache) as opened:
        for shard in parts_folder(cache).iterdir():
            shard.unlink()
        with pytest.raises(CacheCorruptError, match="is missing"):
            opened.features("train")


def test_a_shard_of_other_rows_in_the_place_of_one_is_refused(cache):
    first, second, *_ = sorted(parts_folder(cache).iterdir())
    shutil.copy(second, first)
    with pytest.raises(CacheCorruptError, match="is not the shard that was bound"):
        FeatureCache.open(cache)


def test_an_update_keeps_the_shards_that_are_there_and_adds_some(cache):
    before = {shard.name: shard.stat().st_ino for shard in parts_folder(cache).iterdir()}
    more = TRAIN | {f"bee/new{k}.jpg": (f"new{k}", "bee") for k in range(6)}
    manifest = manifest_of({"train": more, "test": TEST})
    assert update_cache(cache, manifest, shard_rows=4).n_missing == 6
    after = {shard.name: shard.stat().st_ino for shard in parts_folder(cache).iterdir()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    assert_holds(cache, manifest)


def test_an_open_reader_sees_the_cache_as_it_was_while_a_writer_adds_to_it(cache):
    with FeatureCache.open(cache) as opened:
        more = TRAIN | {"bee/new.jpg": ("new", "bee")}
        update_cache(cache, manifest_of({"train": more, "test": TEST}))
        rows = MANIFEST.splits["train"]
        np.testing.assert_array_equal(opened.features("train"), fake_engine(rows.content))


def test_a_single_file_can_become_sharded_and_back(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, MANIFEST)
    assert update_cache(path, MANIFEST, **SHARDED).n_missing == 0
    assert_holds(path, MANIFEST)
    assert parts_folder(path).exists()
    assert update_cache(path, MANIFEST, storage=Storage()).n_missing == 0
    assert_holds(path, MANIFEST)
    assert not parts_folder(path).exists()


def test_prune_removes_the_shards_that_no_row_needs(cache):
    manifest = manifest_of({"train": {"ant/0.jpg": TRAIN["ant/0.jpg"]}})
    update_cache(cache, manifest, prune=True)
    assert_holds(cache, manifest)
    assert len(list(parts_folder(cache).iterdir())) == 1


def test_an_index_under_another_name_is_read_and_not_updated(cache, tmp_path):
    renamed = cache.rename(tmp_path / "renamed.h5")
    assert_holds(renamed, MANIFEST)
    with pytest.raises(CacheError, match=r"renamed\.h5\.parts"):
        update_cache(renamed, MANIFEST)


def test_rows_too_scattered_for_a_virtual_data_set_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data_cache.virtual._MAX_RUNS", 3)
    with pytest.raises(CacheError, match="without --sharded"):
        update_cache(tmp_path / "c.h5", MANIFEST, **SHARDED)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_more_shards_than_files_may_be_open_are_read_right(tmp_path):
    path = tmp_path / "c.h5"
    rows = {f"{k}.jpg": (f"content{k}", "ant") for k in range(200)}
    update_cache(path, manifest_of({"train": rows}), storage=Storage(sharded=True), shard_rows=2)
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import h5py, numpy as np
from data_cache.cache import FeatureCache
with FeatureCache.open({str(path)!r}, check="always") as cache:
    np.save({str(tmp_path / "read.npy")!r}, cache.features("train"))
with h5py.File({str(path)!r}) as file:
    print(int(np.isnan(file["train/features"][...]).any()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "1", "plain h5py reads NaN, and no error"
    contents = contents_of([f"content{k}" for k in range(200)])
    np.testing.assert_array_equal(np.load(tmp_path / "read.npy"), fake_engine(contents))


@pytest.mark.parametrize("sharded", [False, True])
def test_rows_of_caches_of_each_kind_are_brought_together_a_few_at_a_time(
    tmp_path, monkeypatch, cache, sharded
):
    monkeypatch.setattr("data_cache.stock._LOCATED_AT_ONCE", 3)
    more = manifest_of({"train": {f"cow/{k}.jpg": (f"cow{k}", "bee") for k in range(7)}})
    update_cache(tmp_path / "more.h5", more)
    merged = merge([tmp_path / "more.h5", cache], tmp_path / "all.h5", sharded=sharded)
    assert len(merged) == len(MANIFEST) + len(more)
    assert_holds(tmp_path / "all.h5", merged)


def test_a_bind_opens_each_shard_to_find_it_and_to_join_its_statistics(tmp_path, monkeypatch):
    content = MANIFEST.splits["train"].content[:10]
    options = UpdateOptions(sharded=True, shard_rows=5)
    with CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE, options=options) as update:
        update.append(content, fake_engine(content))
    opened, open_file = Counter(), h5py.File
    monkeypatch.setattr(
        "h5py.File", lambda path, *args, **kw: opened.update([path]) or open_file(path, *args, **kw)
    )
    rows = manifest_of({"train": dict(list(TRAIN.items())[:10])})
    with CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE, options=options) as update:
        assert update.plan(rows).n_missing == 0
        update.bind(rows)
    assert [opened[shard] for shard in parts_folder(tmp_path / "c.h5").iterdir()] == [2, 2]


def test_contents_of_shards_lie_in_one_piece_of_memory(cache):
    with CacheUpdate.begin(cache, RECIPE, PROVENANCE) as update:
        contents = [shard.stored.content for shard in update.parts.shards]
    starts = [content.ctypes.data for content in contents]
    ends = [content.ctypes.data + content.nbytes for content in contents]
    assert len(contents) == 3
    assert starts[1:] == ends[:-1]
