"""``verify`` names what is at fault; ``repair`` drops that, and the next run makes it again."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from cache_tools import contents_of, fake_engine, manifest_of, update_cache

from data_cache.cache import FeatureCache
from data_cache.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheNotFoundError,
    CacheVersionError,
)
from data_cache.layout import Storage, parts_folder
from data_cache.repair import repair
from data_cache.verify import verify

N_ROWS = 2500
BLOCK_ROWS = 1024
SHARD_ROWS = 1000
ROWS = {f"{k}.jpg": (f"content{k}", "ant") for k in range(N_ROWS)}
MANIFEST = manifest_of({"train": ROWS, "test": {"t.jpg": ("test", "bee")}})


@pytest.fixture
def cache(tmp_path):
    update_cache(tmp_path / "c.h5", MANIFEST)
    return tmp_path / "c.h5"


@pytest.fixture
def sharded(tmp_path):
    options = {"storage": Storage(sharded=True), "shard_rows": SHARD_ROWS}
    update_cache(tmp_path / "c.h5", MANIFEST, **options)
    return tmp_path / "c.h5"


def offset_of_row(path, dataset, row):
    """Return where the bytes of a row are in a file."""
    with h5py.File(path) as file:
        column = file[dataset]
        chunk = column.id.get_chunk_info(row // column.chunks[0])
        width = column.dtype.itemsize * int(np.prod(column.shape[1:]))
        return chunk.byte_offset + row % column.chunks[0] * width


def flip(path, offset):
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 16]))


def assert_whole(path):
    """See that the next run mends the cache, and how many images that costs."""
    n_missing = update_cache(path, MANIFEST).n_missing
    assert verify(path).faults == ()
    with FeatureCache.open(path, check="always") as cache:
        for split, rows in MANIFEST.splits.items():
            np.testing.assert_array_equal(cache.rows(split).ids, rows.ids)
            np.testing.assert_array_equal(cache.features(split), fake_engine(rows.content))
    return n_missing


def test_a_sound_cache_has_no_faults_and_a_repair_leaves_it(cache):
    before = cache.read_bytes()
    found = verify(cache)
    assert found.faults == ()
    assert (found.n_rows, found.n_shards, found.n_bytes) == (N_ROWS + 1, 0, len(before))
    assert not repair(cache).was_needed
    assert cache.read_bytes() == before


def test_progress_adds_up_to_what_is_read(sharded):
    read = []
    found = verify(sharded, read.append)
    assert sum(read) == found.n_bytes


@pytest.mark.parametrize("column", ["features", "labels", "ids", "content"])
def test_the_rows_at_fault_are_named_and_only_those_are_made_again(cache, column):
    flip(cache, offset_of_row(cache, f"train/{column}", 1500))
    faults = verify(cache).faults
    assert "is not what was written" in str(faults[0])
    assert faults[1].split == "train"
    first, last = faults[1].rows
    assert first <= 1500 <= last
    assert first % BLOCK_ROWS == 0
    with pytest.raises(CacheCorruptError):
        FeatureCache.open(cache)
    done = repair(cache)
    assert done.n_dropped == last - first + 1
    assert done.n_kept == N_ROWS + 1 - done.n_dropped
    assert assert_whole(cache) == done.n_dropped


def test_damage_that_changes_no_row_costs_no_row(cache):
    flip(cache, 500)
    assert len(verify(cache).faults) == 1
    done = repair(cache)
    assert done.was_needed
    assert done.n_dropped == 0
    assert assert_whole(cache) == 0


def test_damage_to_the_provenance_is_not_passed_on(cache):
    flip(cache, cache.read_bytes().index(b"synthetic"))
    assert repair(cache).n_dropped == 0
    with FeatureCache.open(cache) as opened:
        assert opened.provenance.source == "unknown: lost when the file was damaged"


def test_a_file_of_which_nothing_can_be_proven_is_set_aside(cache):
    whole = cache.read_bytes()
    cache.write_bytes(whole[:5000])
    assert "was cut short: it has 5,000 bytes" in str(verify(cache).faults[0])
    done = repair(cache)
    assert done.set_aside is not None
    assert done.set_aside.read_bytes() == whole[:5000]
    assert assert_whole(cache) == N_ROWS + 1


def test_a_file_that_is_set_aside_takes_the_place_of_no_other(cache):
    torn = cache.read_bytes()[:5000]
    for _ in range(2):
        cache.write_bytes(torn)
        assert repair(cache).set_aside is not None
    assert len(list(cache.parent.glob("c.h5.damaged*"))) == 2


def test_a_bad_shard_is_named_with_its_rows_and_only_it_is_made_again(sharded):
    with FeatureCache.open(sharded) as opened:
        shard = opened.shards[opened.shards.index(next(iter(opened.stores())).path)]
        first, last = np.flatnonzero(opened.rows_in("train", shard))[[0, -1]]
    flip(shard, offset_of_row(shard, "features", 3))
    faults = verify(sharded).faults
    assert shard.name in str(faults[0])
    assert (faults[1].path, faults[1].split, faults[1].rows) == (shard, "train", (first, last))
    done = repair(sharded)
    assert done.dropped_shards == (shard,)
    assert (done.n_kept, done.n_dropped) == (N_ROWS + 1 - SHARD_ROWS, SHARD_ROWS)
    assert assert_whole(sharded) == SHARD_ROWS


def test_a_missing_shard_is_named_and_made_again(sharded):
    shard = sorted(parts_folder(sharded).iterdir())[0]
    shard.unlink()
    assert any(f"{shard} is missing" in str(fault) for fault in verify(sharded).faults)
    n_dropped = repair(sharded).n_dropped
    assert n_dropped
    assert assert_whole(sharded) == n_dropped


def test_a_bad_index_loses_no_shard(sharded):
    sharded.write_bytes(sharded.read_bytes()[:5000])
    assert repair(sharded).set_aside is not None
    assert assert_whole(sharded) == 0


def test_a_bad_shard_of_an_interrupted_run_is_refused_and_then_dropped(tmp_path):
    from cache_tools import PROVENANCE, RECIPE

    from data_cache.update import CacheUpdate, UpdateOptions

    path = tmp_path / "c.h5"
    content = contents_of([f"content{k}" for k in range(6)])
    options = UpdateOptions(shard_rows=2)
    with CacheUpdate.begin(path, RECIPE, PROVENANCE, options=options) as update:
        update.append(content, fake_engine(content))
    shard = sorted(parts_folder(path).iterdir())[1]
    flip(shard, offset_of_row(shard, "content", 0))
    with pytest.raises(CacheCorruptError, match=shard.name):
        CacheUpdate.begin(path, RECIPE, PROVENANCE)
    found = verify(path)
    assert (len(found.faults), found.n_shards) == (1, 3)
    assert repair(path).dropped_shards == (shard,)
    assert assert_whole(path) == N_ROWS + 1 - 4


def test_rows_no_longer_in_the_source_survive_a_repair(cache):
    update_cache(cache, manifest_of({"train": dict(list(ROWS.items())[:2000])}))
    flip(cache, offset_of_row(cache, "train/features", 0))
    repair(cache)
    with FeatureCache.open(cache) as opened:
        ids = opened.rows("train").ids.tolist()
    assert b"2400.jpg" in ids
    assert b"0.jpg" not in ids


@pytest.mark.parametrize("act", [verify, repair])
def test_where_there_is_no_cache_both_say_so(tmp_path, act):
    with pytest.raises(CacheNotFoundError, match="does not exist"):
        act(tmp_path / "c.h5")


@pytest.mark.parametrize("content", [b"not HDF5", b"headstart-feature-cache 2\nsha256 0\n"])
def test_a_file_that_is_no_cache_of_this_version_is_left_alone(tmp_path, content):
    (tmp_path / "c.h5").write_bytes(content)
    with pytest.raises(CacheFormatError):
        repair(tmp_path / "c.h5")
    assert (tmp_path / "c.h5").read_bytes() == content


@pytest.mark.parametrize("act", [verify, repair])
@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"format_version": 2}, "format version 2, and this program reads version 1"),
        ({"format": "other"}, "not a feature cache"),
        ({"kind": None}, "has no kind, so it was not written by headstart: choose another"),
    ],
)
def test_another_version_or_kind_is_refused_and_left_alone(tmp_path, act, attributes, problem):
    stamp = {"format": "headstart-feature-cache", "format_version": 1, "kind": "cache"}
    with h5py.File(tmp_path / "c.h5", "w") as file:
        for name, value in (stamp | attributes).items():
            if value is not None:
                file.attrs[name] = value
    before = (tmp_path / "c.h5").read_bytes()
    with pytest.raises(CacheFormatError, match=problem) as caught:
        act(tmp_path / "c.h5")
    assert "repair" not in str(caught.value)
    assert (tmp_path / "c.h5").read_bytes() == before


def test_another_version_is_refused_even_if_the_seal_is_of_this_one(cache):
    with h5py.File(cache, "r+") as file:
        file.attrs["format_version"] = 2
    for act in (verify, repair):
        with pytest.raises(CacheVersionError, match="format version 2"):
            act(cache)
    assert cache.exists()


def test_a_file_that_is_no_hdf5_is_not_said_to_need_a_repair(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CacheFormatError, match="is not an HDF5 file") as caught:
        verify(tmp_path / "notes.txt")
    assert "repair" not in str(caught.value)


def test_a_sound_shard_is_not_repaired_as_if_it_were_a_cache(sharded):
    shard = sorted(parts_folder(sharded).iterdir())[0]
    with pytest.raises(CacheFormatError, match="is a shard of a cache"):
        repair(shard)
    assert shard.exists()
