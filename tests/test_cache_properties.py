"""Properties of caches over many shapes, splits and ways of storing: write, read, update, merge.

What an update must leave is said a second time here, in plain dictionaries.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cache_tools import (
    PROVENANCE,
    RECIPE,
    contents_of,
    digests_of,
    fake_engine,
    manifest_of,
    update_cache,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data_cache.cache import FeatureCache
from data_cache.hdf5 import encode_texts, read_rows
from data_cache.layout import Storage
from data_cache.merge import merge
from data_cache.rows import Manifest, Rows
from data_cache.update import CacheUpdate, UpdateOptions
from data_cache.verify import verify

CLASSES = ("ant", "bee", "cat")
QUICK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])

split_names = st.sampled_from(["train", "val", "test", "späť"])
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
storages = st.builds(
    Storage, st.sampled_from(["float32", "float16"]), st.sampled_from([0, 1, 9]), st.booleans()
)
finite = st.floats(-60000, 60000, width=16)
few_ids = st.sampled_from([f"{k}.jpg" for k in range(8)])
few_contents = st.sampled_from([f"content {k}" for k in range(6)])
few_classes = st.sampled_from(CLASSES)
sources = st.dictionaries(
    st.sampled_from(["train", "test"]),
    st.dictionaries(few_ids, st.tuples(few_contents, few_classes), min_size=1),
    min_size=1,
)


@st.composite
def tables(draw):
    """Draw rows of every split: unique ids, labels, perhaps groups, and features (n, d)."""
    n_features, grouped = draw(st.integers(1, 5)), draw(st.booleans())
    table = {}
    for split in draw(st.lists(split_names, min_size=1, unique=True)):
        ids = draw(st.lists(names, max_size=20, unique=True))
        shape = (len(ids), n_features)
        features = draw(arrays.arrays(np.float32, shape, elements=finite))
        labels = draw(arrays.arrays(np.int64, len(ids), elements=st.integers(0, 2)))
        groups = draw(st.lists(names, min_size=len(ids), max_size=len(ids))) if grouped else None
        column = None if groups is None else encode_texts(tuple(groups))
        rows = Rows(encode_texts(tuple(ids)), labels, digests_of(features), column)
        table[split] = (rows, features)
    return table


@QUICK
@given(tables(), storages, st.integers(1, 7), st.randoms(use_true_random=False))
def test_what_is_written_is_read(table, storage, shard_rows, random):
    manifest = Manifest(CLASSES, {split: rows for split, (rows, _) in table.items()})
    assume(len(manifest))
    options = UpdateOptions(**asdict(storage), shard_rows=shard_rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.h5"
        with CacheUpdate.begin(path, RECIPE, PROVENANCE, options=options) as update:
            for rows, features in table.values():
                update.append(rows.content, features)
            update.bind(manifest)
        assert verify(path).faults == ()
        with FeatureCache.open(path) as cache:
            assert cache.split_names == tuple(table)
            assert cache.storage == storage
            for split, (rows, features) in table.items():
                found = cache.rows(split)
                for column in ("ids", "labels", "content", "groups"):
                    expected = getattr(rows, column)
                    np.testing.assert_array_equal(getattr(found, column), expected)
                np.testing.assert_array_equal(cache.features(split), features)
                shuffled = np.array(random.sample(range(len(rows)), len(rows)), np.int64)
                np.testing.assert_array_equal(cache.take(split, shuffled), features[shuffled])
                for block, part in cache.blocks(split, 3):
                    np.testing.assert_array_equal(block, features[part])


def read(path):
    """Return {split: {id: (features, class)}} of a cache."""
    with FeatureCache.open(path) as cache:
        return {
            split: {
                name.decode(): (tuple(features), cache.classes[label])
                for name, label, features in zip(
                    cache.rows(split).ids,
                    cache.rows(split).labels,
                    cache.features(split),
                    strict=True,
                )
            }
            for split in cache.split_names
        }


def with_features(source):
    """Return what :func:`read` gives for these rows."""
    return {
        split: {
            name: (tuple(fake_engine(contents_of([content]))[0]), label)
            for name, (content, label) in rows.items()
        }
        for split, rows in source.items()
        if rows
    }


def after_update(old, new, *, prune, append):
    """Say what a cache of ``old`` rows must hold after an update with ``new`` ones."""
    stood_for = taken_over(old, new)
    result = {}
    for split in dict.fromkeys([*old, *new]):
        kept = {
            name: row
            for name, row in old.get(split, {}).items()
            if name not in new.get(split, {})
            and (append or (not prune and (split, name) not in stood_for))
        }
        result[split] = kept | new.get(split, {})
    return result


def taken_over(old, new):
    """Return the (split, id) of rows whose content a row that is new has now, one for one."""
    news = [
        (name, content)
        for split, rows in new.items()
        for name, (content, _) in rows.items()
        if old.get(split, {}).get(name, ("",))[0] != content
    ]
    free = Counter(content for _, content in news)
    names_of_news = {name for name, _ in news}
    absent = [
        (split, name, content)
        for split, rows in old.items()
        for name, (content, _) in rows.items()
        if name not in new.get(split, {})
    ]
    found = set()
    for split, name, content in sorted(absent, key=lambda row: row[1] not in names_of_news):
        if free[content]:
            free[content] -= 1
            found.add((split, name))
    return found


def conflicts(old, new):
    """Tell whether an id stands for different contents, or labels, in the same split."""
    return any(
        old[split][name] != new[split][name]
        for split in old.keys() & new.keys()
        for name in old[split].keys() & new[split].keys()
    )


@QUICK
@given(sources, sources, st.booleans(), st.booleans(), st.booleans())
def test_an_update_leaves_what_it_must_and_extracts_only_what_is_missing(
    old, new, prune, append, sharded
):
    append &= not conflicts(old, new)
    storage = Storage(sharded=sharded)
    options = {"prune": prune, "append": append, "storage": storage, "shard_rows": 3}
    known = {content for rows in old.values() for content, _ in rows.values()}
    wanted = {content for rows in new.values() for content, _ in rows.values()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.h5"
        update_cache(path, manifest_of(old, CLASSES), storage=storage, shard_rows=2)
        plan = update_cache(path, manifest_of(new, CLASSES[::-1]), **options)
        assert plan.n_missing == len(wanted - known)
        expected = after_update(old, new, prune=prune, append=append)
        assert read(path) == with_features(expected)
        assert update_cache(path, manifest_of(new, CLASSES[::-1]), **options).is_up_to_date
        assert verify(path).faults == ()


@QUICK
@given(sources, st.lists(st.integers(0, 2), min_size=16, max_size=16), st.booleans())
def test_parts_that_are_merged_equal_the_whole(source, owners, sharded):
    parts = [{}, {}, {}]
    for split, rows in source.items():
        for number, (name, row) in enumerate(rows.items()):
            parts[owners[number]].setdefault(split, {})[name] = row
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, part in enumerate(parts):
            if part:
                paths.append(Path(folder) / f"{number}.h5")
                update_cache(paths[-1], manifest_of(part, CLASSES))
        merged = Path(folder) / "merged.h5"
        merge(paths, merged, sharded=sharded)
        assert read(merged) == with_features(source)
        assert verify(merged).faults == ()


@given(st.lists(st.integers(0, 199)), st.integers(1, 50))
def test_rows_are_read_in_any_order_and_repeated(rows, n_chunk_rows):
    class Chunked:
        """As much of a data set as is asked for here; notes the chunks that are read."""

        chunks, shape, dtype = (n_chunk_rows, 2), (200, 2), np.dtype(np.int64)
        values = np.arange(400).reshape(200, 2)
        file = SimpleNamespace(filename="c.h5")
        name = "features"

        def __init__(self):
            self.touched = set()

        def __len__(self):
            return 200

        def __getitem__(self, part):
            self.touched |= {row // n_chunk_rows for row in range(part.start, part.stop)}
            return self.values[part]

    dataset = Chunked()
    wanted = np.array(rows, np.int64)
    np.testing.assert_array_equal(read_rows(dataset, wanted), Chunked.values[wanted])
    assert dataset.touched == {row // n_chunk_rows for row in rows}
