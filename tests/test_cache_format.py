"""The format as FORMAT.md says it: read here by other means than the program's own reader."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from cache_tools import RECIPE, contents_of, fake_engine, manifest_of, update_cache

from data_cache.cache import FeatureCache
from data_cache.errors import CacheCorruptError, CacheFormatError, CacheNotFoundError
from data_cache.layout import Storage, parts_folder
from data_cache.rows import BadImage
from data_cache.verify import verify

DATA = Path(__file__).parent / "data"
sys.path.insert(0, str(DATA))

import make_archives as archives  # noqa: E402

RECIPE_FIELDS = [
    "backbone",
    "weights_digest",
    "image_size",
    "preprocessing",
    "decoding",
    "resize_mode",
    "feature_layer",
    "numeric_class",
]
PROVENANCE_FIELDS = [
    "source",
    "weights",
    "weights_sha256",
    "engine",
    "created",
    "versions",
    "backbone_parameters",
    "weights_path",
]
COLUMNS = ["ids", "labels", "content", "groups", "shard", "shard_row", "features"]


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


def attributes(file, names):
    values = {name: file.attrs[name] for name in names if name in file.attrs}
    return {
        name: int(value) if isinstance(value, np.integer) else value
        for name, value in values.items()
    }


def assert_as_documented(path):
    """See that a file, bound or shard, is what FORMAT.md says."""
    whole = path.read_bytes()
    lines = f"headstart-feature-cache 1\nsha256 {sha256(whole[512:])}\nsize {len(whole)}\n"
    assert whole[:512] == lines.encode().ljust(512, b"\0")
    with h5py.File(path) as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == (
            "headstart-feature-cache",
            1,
        )
        assert file.attrs["recipe_digest"] == sha256(canonical(attributes(file, RECIPE_FIELDS)))
        if file.attrs["kind"] == "shard":
            assert_group_as_documented(file, [file.attrs["recipe_digest"]])
            name = sha256(
                bytes.fromhex(file.attrs["recipe_digest"]), file["content"][...].tobytes()
            )
            assert path.name == f"shard-{name[:24]}.h5"
            return
        provenance = attributes(file, PROVENANCE_FIELDS)
        assert file.attrs["provenance_digest"] == sha256(canonical(provenance))
        classes = [name.decode() for name in file["classes"][...]]
        for split in file.attrs["splits"]:
            context = [file.attrs["recipe_digest"], classes, split]
            assert_group_as_documented(file[split], context)
        if file.attrs["sharded"]:
            assert_index_as_documented(path, file)


def assert_group_as_documented(group, context):
    """See that the data sets of a split or shard have their types, filters and digests."""
    columns = [group[name] for name in COLUMNS if name in group]
    for column in columns:
        assert column.is_virtual or len(column) == 0 or column.fletcher32
    features = group["features"]
    assert features.dtype == group.file.attrs["dtype"]
    assert np.isnan(features.fillvalue)
    starts = hashlib.sha256(canonical(context)).digest()
    length = group.attrs["block_rows"]
    for number, digest in enumerate(group["block_digests"][...]):
        rows = slice(number * length, (number + 1) * length)
        parts = [column[rows].tobytes() for column in columns if not column.is_virtual]
        assert digest.tobytes().hex() == sha256(starts, *parts)
    values = features[...].astype(np.float64)
    if len(values):
        np.testing.assert_allclose(group["statistics/mean"], values.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(group["statistics/std"], values.std(axis=0), atol=1e-9)
        np.testing.assert_array_equal(group["statistics/min"], values.min(axis=0))
        np.testing.assert_array_equal(group["statistics/max"], values.max(axis=0))


def assert_index_as_documented(path, file):
    """See that an index leads to its shards."""
    names = [name.decode() for name in file["shards/names"][...]]
    shards = [path.parent / name for name in names]
    for shard, digest in zip(shards, file["shards/digests"][...], strict=True):
        assert sha256(shard.read_bytes()[512:]) == digest.tobytes().hex()
        assert_as_documented(shard)
    for split in file.attrs["splits"]:
        group = file[split]
        for row, (number, at) in enumerate(zip(group["shard"], group["shard_row"], strict=True)):
            with h5py.File(shards[number]) as shard:
                np.testing.assert_array_equal(shard["features"][at], group["features"][row])
                np.testing.assert_array_equal(shard["content"][at], group["content"][row])


SPLITS = {
    "train": {f"ant/{k}.jpg": (f"ant{k}", "ant") for k in range(2100)}
    | {"bee/0.jpg": ("bee", "bee")},
    "val": {},
    "test": {"tést/0.jpg": ("test", "bee"), "copy.jpg": ("bee", "bee")},
}


@pytest.mark.parametrize(
    "storage",
    [
        Storage(),
        Storage("float16"),
        Storage(compression=3),
        Storage(sharded=True),
        Storage("float16", 1, sharded=True),
    ],
    ids=str,
)
def test_files_are_as_the_format_page_says(tmp_path, storage):
    path = tmp_path / "c.h5"
    bad = BadImage("train", "ant/bäd.jpg", "törn")
    update_cache(path, manifest_of(SPLITS), (bad,), storage=storage, shard_rows=500)
    assert_as_documented(path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(
            file["test/features"][...],
            fake_engine(contents_of(["test", "bee"])).astype(np.float16)
            if storage.dtype == "float16"
            else fake_engine(contents_of(["test", "bee"])),
        )
        assert file["test/ids"][0].decode() == "tést/0.jpg"
        assert file["bad_images/reason"][0].decode() == "törn"
        assert file["train/labels"].dtype == np.int64
        assert h5py.check_string_dtype(file["train/ids"].dtype) == ("utf-8", 12)
        assert file["train/features"].compression == (
            "gzip" if storage.compression and not storage.sharded else None
        )


@pytest.mark.parametrize("name", archives.STORAGES)
def test_archived_caches_are_read_for_ever(name):
    path = DATA / name
    assert_as_documented(path)
    assert verify(path).faults == ()
    with FeatureCache.open(path, check="always") as cache:
        assert cache.recipe == RECIPE
        assert cache.classes == archives.CLASSES
        assert cache.split_names == tuple(archives.SPLITS)
        assert cache.provenance.source == "synthetic"
        assert [row.image for row in cache.bad_rows()] == [archives.BAD_IMAGE]
        for split in archives.SPLITS:
            rows, expected = cache.rows(split), archives.rows_of(split)
            np.testing.assert_array_equal(rows.ids, expected.ids)
            np.testing.assert_array_equal(rows.labels, expected.labels)
            np.testing.assert_array_equal(rows.content, expected.content)
            np.testing.assert_array_equal(rows.groups, expected.groups)
            np.testing.assert_array_equal(cache.features(split), archives.features_of(split))


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, manifest_of({"train": {"a.jpg": ("a", "ant"), "b.jpg": ("b", "bee")}}))
    return path


def edit(path, change):
    """Change a cache with h5py, and seal it again as FORMAT.md says."""
    with h5py.File(path, "r+") as file:
        change(file)
    body = path.read_bytes()[512:]
    lines = f"headstart-feature-cache 1\nsha256 {sha256(body)}\nsize {len(body) + 512}\n"
    path.write_bytes(lines.encode().ljust(512, b"\0") + body)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CacheNotFoundError, match="does not exist: make it with"):
        FeatureCache.open(tmp_path / "nothing.h5")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    (tmp_path / "c.h5").write_bytes(content)
    with pytest.raises(CacheFormatError, match="is not an HDF5 file"):
        FeatureCache.open(tmp_path / "c.h5")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CacheFormatError, match="is a folder; a feature cache is a file"):
        FeatureCache.open(tmp_path)


def test_another_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(CacheFormatError, match="not a feature cache"):
        FeatureCache.open(tmp_path / "c.h5")


def test_an_unknown_version_is_refused_by_its_seal(cache):
    whole = cache.read_bytes()
    cache.write_bytes(whole.replace(b"cache 1\n", b"cache 2\n", 1))
    with pytest.raises(
        CacheFormatError, match="format version 2, and this program reads version 1"
    ):
        FeatureCache.open(cache)


def test_an_unknown_version_is_refused_by_its_attribute(cache):
    with h5py.File(cache, "r+") as file:
        file.attrs.modify("format_version", 7)  # in place: the file keeps its length
    with pytest.raises(CacheFormatError, match="format version 7"):
        FeatureCache.open(cache)


def test_a_shard_is_not_taken_for_a_cache(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, manifest_of({"train": {"a": ("a", "ant")}}), storage=Storage(sharded=True))
    shard = next(parts_folder(path).iterdir())
    with pytest.raises(CacheFormatError, match="is a shard of a cache"):
        FeatureCache.open(shard)


@pytest.mark.parametrize("n_bytes", [100, 511, 512, 600, -1])
def test_a_cache_that_was_cut_short_is_refused(cache, n_bytes):
    cache.write_bytes(cache.read_bytes()[:n_bytes])
    with pytest.raises((CacheCorruptError, CacheFormatError), match=r"cut short|no whole seal"):
        FeatureCache.open(cache, check="never")


def test_a_cache_that_grew_is_refused(cache):
    cache.write_bytes(cache.read_bytes() + b"\0")
    with pytest.raises(CacheCorruptError, match="has grown"):
        FeatureCache.open(cache, check="never")


def test_a_cache_that_was_written_to_is_refused(cache):
    with h5py.File(cache, "r+") as file:
        file["train/labels"][0] = 1
    with pytest.raises(CacheCorruptError, match="is not what was written"):
        FeatureCache.open(cache)


def test_a_wrong_checksum_is_named_with_its_rows(cache):
    with h5py.File(cache) as file:
        offset = file["train/features"].id.get_chunk_info(0).byte_offset
    whole = bytearray(cache.read_bytes())
    whole[offset] ^= 1
    cache.write_bytes(whole)
    with (
        FeatureCache.open(cache, check="never") as opened,
        pytest.raises(CacheCorruptError, match="/train/features, rows 0 to 1, cannot be read"),
    ):
        opened.features("train")


def test_a_chunk_that_hdf5_cannot_find_does_not_pass_for_data(cache):
    def lose(file):
        features = file["train/features"]
        shape, chunks = features.shape, features.chunks
        del file["train/features"]
        file["train"].create_dataset("features", shape, "f4", chunks=chunks, fillvalue=np.nan)

    edit(cache, lose)
    with (
        FeatureCache.open(cache) as opened,
        pytest.raises(CacheCorruptError, match="train, row 0, are not there"),
    ):
        opened.features("train")


def test_features_that_are_no_numbers_are_refused(cache):
    def spoil(file):
        file["train/features"][1, 3] = np.inf
        file["train/statistics/max"][3] = np.inf

    edit(cache, spoil)
    with (
        FeatureCache.open(cache) as opened,
        pytest.raises(CacheCorruptError, match="NaN or infinite"),
    ):
        opened.features("train")


def test_rows_without_a_label_are_refused_for_now(cache):
    edit(cache, lambda file: file["train/labels"].__setitem__(0, -1))
    with (
        FeatureCache.open(cache) as opened,
        pytest.raises(CacheFormatError, match="1 rows of train have no label"),
    ):
        opened.rows("train")


def test_rows_of_several_labels_are_refused_for_now(cache):
    def widen(file):
        del file["train/labels"]
        file["train/labels"] = np.zeros((2, 5), np.int64)

    edit(cache, widen)
    with (
        FeatureCache.open(cache) as opened,
        pytest.raises(CacheFormatError, match="5 labels a row"),
    ):
        opened.rows("train")


def test_labels_that_count_into_no_class_are_refused(cache):
    edit(cache, lambda file: file["train/labels"].__setitem__(0, 2))
    with (
        FeatureCache.open(cache) as opened,
        pytest.raises(CacheCorruptError, match="from 1 to 2, but there are 2 classes"),
    ):
        opened.rows("train")


@pytest.mark.parametrize(
    "name", ["classes", "train", "train/features", "train/labels", "train/ids"]
)
def test_a_cache_without_a_part_of_it_is_refused(cache, name):
    edit(cache, lambda file: file.__delitem__(name))
    with pytest.raises(CacheFormatError, match=f"lacks {name.split('/')[-1]}"):
        FeatureCache.open(cache)


def test_columns_of_different_lengths_are_refused(cache):
    def shorten(file):
        del file["train/labels"]
        file["train/labels"] = np.zeros(1, np.int64)

    edit(cache, shorten)
    with pytest.raises(CacheCorruptError, match="differ in length"):
        FeatureCache.open(cache)


def test_a_recipe_that_was_edited_is_refused(cache):
    edit(cache, lambda file: file.attrs.__setitem__("image_size", 224))
    with pytest.raises(CacheCorruptError, match="recipe does not have the digest"):
        FeatureCache.open(cache)


def test_a_recipe_that_lacks_a_field_is_refused(cache):
    edit(cache, lambda file: file.attrs.__delitem__("backbone"))
    with pytest.raises(CacheFormatError, match="lacks the attribute backbone"):
        FeatureCache.open(cache)


def test_provenance_of_an_older_program_has_defaults_for_what_came_later(cache):
    def age(file):
        del file.attrs["backbone_parameters"]
        values = attributes(file, PROVENANCE_FIELDS)
        file.attrs["provenance_digest"] = sha256(canonical(values))

    edit(cache, age)
    with FeatureCache.open(cache) as opened:
        assert opened.provenance.backbone_parameters == 0


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, manifest_of({"train": {"a": ("a", "ant")}}), storage=Storage(sharded=True))

    def lead_out(file):
        name = file["shards/names"][0]
        del file["shards/names"]
        file["shards/names"] = np.array([b"../" + name])

    edit(path, lead_out)
    with pytest.raises(CacheFormatError, match="not below its folder"):
        FeatureCache.open(path)


def test_a_digest_is_checked_the_first_time_and_remembered_by_stat(cache, monkeypatch):
    import os

    from data_cache import checking

    calls = []
    check_seal = checking.check_seal
    monkeypatch.setattr(checking, "check_seal", lambda path: calls.append(path) or check_seal(path))
    old = cache.stat().st_mtime - 60
    os.utime(cache, (old, old))
    monkeypatch.setattr("data_cache.stat_index._SETTLED_SECONDS", -1.0)
    for _ in range(3):
        FeatureCache.open(cache).close()
    assert calls == [cache]
    FeatureCache.open(cache, check="always").close()
    assert calls == [cache, cache]
    os.utime(cache, (old - 1, old - 1))
    FeatureCache.open(cache).close()
    assert calls == [cache, cache, cache]
    moved = shutil.copy(cache, cache.with_name("moved.h5"))
    FeatureCache.open(moved).close()
    assert len(calls) == 4


def test_the_format_page_names_every_attribute_and_data_set(cache):
    page = (Path(__file__).parent.parent / "data_cache" / "FORMAT.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`]+)`", page))
    words = {word for name in named for word in re.split(r"[/\s]", name)}
    with h5py.File(cache) as file:
        found = set(file.attrs) | {"block_rows"}
        file.visit(lambda name: found.update(name.split("/")))
    assert found - {"train"} <= words
