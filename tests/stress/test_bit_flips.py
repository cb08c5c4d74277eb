"""Single-bit flips at random offsets: each is detected, or changes nothing that is read."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from cache_tools import PROVENANCE, RECIPE, contents_of, fake_engine, make_rows

from data_cache.cache import FeatureCache
from data_cache.errors import CacheVersionError, HeadstartError
from data_cache.layout import Storage, parts_folder
from data_cache.repair import repair
from data_cache.rows import Manifest
from data_cache.update import CacheUpdate, UpdateOptions
from data_cache.verify import verify

FULL = [pytest.mark.stress, pytest.mark.timeout(900)]
N_ROWS = {"train": 1500, "test": 700}


@pytest.fixture(params=[Storage(), Storage(sharded=True)], ids=["file", "sharded"])
def cache(request, tmp_path, monkeypatch):
    """A cache of some blocks; nothing about it is remembered from one flip to the next."""
    monkeypatch.setenv("HEADSTART_MEMORY", str(tmp_path / "memory"))
    splits = {
        split: make_rows(split, contents_of([f"{split}{k}" for k in range(n)]), np.arange(n) % 3)
        for split, n in N_ROWS.items()
    }
    manifest = Manifest(("ant", "bee", "cat"), splits)
    options = UpdateOptions(**asdict(request.param), shard_rows=500)
    path = tmp_path / "c.h5"
    with CacheUpdate.begin(path, RECIPE, PROVENANCE, options=options) as update:
        for rows in splits.values():
            update.append(rows.content, fake_engine(rows.content))
        update.bind(manifest)
    return path


@pytest.mark.parametrize("n_flips", [40, pytest.param(1000, marks=FULL)])
def test_every_flip_is_detected_or_changes_nothing(cache, n_flips):
    rng = np.random.default_rng(n_flips)
    files = [cache, *sorted(parts_folder(cache).glob("*.h5"))]
    metadata = [metadata_of(file) for file in files]
    expected = everything_in(cache)
    found: Counter[str] = Counter()
    for turn in range(n_flips):
        number = int(rng.integers(len(files)))
        in_metadata = turn % 2 == 0
        anywhere = files[number].stat().st_size
        offset = rng.choice(metadata[number]) if in_metadata else rng.integers(anywhere)
        where = "metadata" if in_metadata else "anywhere"
        with flipped(files[number], int(offset), int(rng.integers(8))):
            faults = faults_of(cache)
            found[f"{where}, detected"] += bool(faults)
            found[f"{where}, rows named"] += any(getattr(one, "rows", None) for one in faults)
            found[f"{where}, read wrongly by a reader that checks no seal"] += not same(
                cache, expected
            )
            if not faults:
                assert everything_in(cache) == expected
            with pytest.raises(HeadstartError):
                FeatureCache.open(cache, check="always")
    sys.stdout.write(f"\n{n_flips} flips: {dict(sorted(found.items()))}\n")
    assert everything_in(cache) == expected


@pytest.mark.parametrize("n_flips", [15, pytest.param(300, marks=FULL)])
def test_what_a_repair_keeps_is_what_was_written(cache, n_flips):
    rng = np.random.default_rng(n_flips)
    whole = {file: file.read_bytes() for file in [cache, *parts_folder(cache).glob("*.h5")]}
    with FeatureCache.open(cache) as opened:
        written = opened.manifest()
    n_kept = []
    for _ in range(n_flips):
        file = list(whole)[rng.integers(len(whole))]
        with flipped(file, int(rng.integers(len(whole[file]))), int(rng.integers(8))):
            try:
                n_kept.append(repair(cache).n_kept)
            except CacheVersionError:
                continue
            if cache.exists():
                assert verify(cache).faults == ()
                assert_part_of(cache, written)
        for aside in cache.parent.glob("*.damaged"):
            aside.unlink()
        for file, content in whole.items():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
    sys.stdout.write(f"\n{n_flips} repairs kept {np.mean(n_kept) / sum(N_ROWS.values()):.3f}\n")
    assert np.mean(n_kept) > sum(N_ROWS.values()) / 2


class flipped:  # noqa: N801  (reads as a statement)
    """Flip one bit of a file while the body runs."""

    def __init__(self, path: Path, offset: int, bit: int) -> None:
        self._path, self._offset, self._bit = path, offset, bit

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *_error: object) -> None:
        if self._path.exists():
            self._flip()

    def _flip(self) -> None:
        with self._path.open("r+b") as stream:
            stream.seek(self._offset)
            byte = stream.read(1)
            stream.seek(self._offset)
            stream.write(bytes([byte[0] ^ (1 << self._bit)] if byte else []))


def metadata_of(path: Path) -> np.ndarray:
    """Return the offset of every byte of a file that is in no chunk of data."""
    outside = np.ones(path.stat().st_size, bool)

    def mark(_name: str, one: object) -> None:
        if isinstance(one, h5py.Dataset) and one.chunks:
            for number in range(one.id.get_num_chunks()):
                chunk = one.id.get_chunk_info(number)
                outside[chunk.byte_offset : chunk.byte_offset + chunk.size] = False

    with h5py.File(path) as file:
        file.visititems(mark)
    return np.flatnonzero(outside)


def faults_of(path: Path) -> tuple[object, ...]:
    """Return what ``verify`` finds; a version that was flipped makes it refuse the file."""
    try:
        return verify(path).faults
    except HeadstartError as error:
        return (error,)


def everything_in(path: Path) -> list[object]:
    """Return all that a reader gives, seals aside."""
    with FeatureCache.open(path, check="never") as cache:
        read: list[object] = [cache.recipe, cache.provenance, cache.classes, cache.bad_rows()]
        for split in cache.split_names:
            rows = cache.rows(split)
            read += [split, rows.ids.tobytes(), rows.labels.tobytes(), rows.content.tobytes()]
            read += [rows.groups is None, cache.features(split).tobytes()]
    return read


def same(path: Path, expected: list[object]) -> bool:
    """Return whether a reader that checks no seal is refused, or reads what was written."""
    try:
        return everything_in(path) == expected
    except (HeadstartError, OSError, ValueError, KeyError, RuntimeError, TypeError):
        return True


def assert_part_of(path: Path, written: Manifest) -> None:
    """See that every row of a cache is one that was written."""
    with FeatureCache.open(path, check="always") as cache:
        assert cache.classes == written.classes
        for split in cache.split_names:
            rows, all_rows = cache.rows(split), written.splits[split]
            at = np.flatnonzero(np.isin(all_rows.ids, rows.ids))
            np.testing.assert_array_equal(rows.ids, all_rows.ids[at])
            np.testing.assert_array_equal(rows.labels, all_rows.labels[at])
            np.testing.assert_array_equal(rows.content, all_rows.content[at])
            np.testing.assert_array_equal(cache.features(split), fake_engine(rows.content))
