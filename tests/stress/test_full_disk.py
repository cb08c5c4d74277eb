"""A disk that is full at any write: the cache stays valid, and the message says what to free."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest
from cache_tools import PROVENANCE, RECIPE, contents_of, fake_engine, make_rows
from click.testing import CliRunner

from data_cache import files, hdf5, seal, shards
from data_cache.cache import FeatureCache
from data_cache.cli import feature_cache
from data_cache.errors import CacheFullError
from data_cache.layout import Storage
from data_cache.rows import Manifest
from data_cache.update import CacheUpdate, UpdateOptions
from data_cache.verify import verify

FULL = [pytest.mark.stress, pytest.mark.timeout(900)]
STORAGES = [Storage(), Storage(sharded=True), Storage(compression=1)]
NAMES = ["file", "sharded", "compressed"]


def manifest_of(n_rows):
    content = contents_of([str(k) for k in range(n_rows)])
    rows = {"train": make_rows("train", content, np.arange(n_rows) % 3)}
    return Manifest(("ant", "bee", "cat"), rows)


def extract(path, n_rows, storage):
    manifest = manifest_of(n_rows)
    options = UpdateOptions(**asdict(storage), shard_rows=100)
    with CacheUpdate.begin(path, RECIPE, PROVENANCE, options=options) as update:
        plan = update.plan(manifest)
        content = manifest.splits["train"].content[plan.missing["train"]]
        for start in range(0, len(content), 40):
            update.append(content[start : start + 40], fake_engine(content[start : start + 40]))
        update.bind(manifest)
    return plan


def assert_holds(path, n_rows):
    content = manifest_of(n_rows).splits["train"].content
    with FeatureCache.open(path, check="always") as cache:
        np.testing.assert_array_equal(cache.rows("train").content, content)
        np.testing.assert_array_equal(cache.features("train"), fake_engine(content))
    assert verify(path).faults == ()


class Disk:
    """Counts what is asked of the disk, and fails the ``failing``-th request and all after it."""

    def __init__(self, monkeypatch, failing=sys.maxsize):
        self.n_requests, self.failing = 0, failing
        sync, write_all = files.sync, files.write_all
        monkeypatch.setattr(files, "sync", self._counted(sync))
        for module in (files, hdf5, seal, shards):
            monkeypatch.setattr(module, "write_all", self._counted(write_all), raising=False)

    def _counted(self, function):
        def counted(*args):
            self.n_requests += 1
            if self.n_requests >= self.failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args)

        return counted


@pytest.mark.parametrize("storage", STORAGES, ids=NAMES)
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=FULL)])
def test_a_disk_full_at_any_write_leaves_the_cache_valid(tmp_path, monkeypatch, step, storage):
    extract(tmp_path / "start.h5", 150, storage)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        extract(copied(tmp_path, 0), 600, storage)
    n_requests = disk.n_requests
    for failing in range(1, n_requests + 1, step):
        path = copied(tmp_path, failing)
        with monkeypatch.context() as patch:
            Disk(patch, failing)
            with pytest.raises(CacheFullError, match=r"MB are needed and .* free as much there"):
                extract(path, 600, storage)
        if failing < n_requests - 2:
            assert_holds(path, 150)
        extract(path, 600, storage)
        assert_holds(path, 600)
        assert not [one for one in path.parent.iterdir() if files.TEMPORARY_MARK in one.name]
        shutil.rmtree(path.parent)
    sys.stdout.write(f"\nfailed at each of {len(range(1, n_requests + 1, step))} writes\n")


def copied(folder, number):
    """Return the path of a copy of the cache that every attempt starts from."""
    target = folder / str(number)
    target.mkdir()
    for one in folder.glob("start.h5*"):
        copy = shutil.copytree if one.is_dir() else shutil.copy
        copy(one, target / one.name)
    return target / "start.h5"


@pytest.mark.parametrize("storage", STORAGES, ids=NAMES)
def test_a_small_disk_that_fills_up(tmp_path, storage):
    with small_disk(tmp_path / "disk", kilobytes=560) as folder:
        path = folder / "c.h5"
        extract(path, 600, storage)
        with pytest.raises(CacheFullError):
            extract(path, 9000, storage)
        assert_holds(path, 600)
        shutil.move(path, tmp_path / "c.h5")
        shutil.move(f"{path}.parts", tmp_path / "c.h5.parts")
    plan = extract(tmp_path / "c.h5", 9000, storage)
    assert 0 < plan.n_missing < 9000 - 600, "shards that were finished are used"
    assert_holds(tmp_path / "c.h5", 9000)


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet"])
def test_an_export_onto_a_disk_that_fills_up_is_one_line(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    extract(tmp_path / "c.h5", 9000, Storage())
    with small_disk(tmp_path / "disk", kilobytes=64) as folder:
        (folder / f"x.{ending}").write_text("before")
        words = ["export", tmp_path / "c.h5", "--output", folder / f"x.{ending}", "--overwrite"]
        result = CliRunner().invoke(feature_cache, list(map(str, words)))
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert f"Error: no room left to write {folder / f'x.{ending}'}: " in result.stderr
        assert {one.name: one.read_text() for one in folder.iterdir()} == {f"x.{ending}": "before"}


@contextmanager
def small_disk(folder, kilobytes):
    """Mount a file system in memory of so many kB; where that is not allowed, skip the test."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.call(mount, stderr=subprocess.DEVNULL):
        pytest.skip("a file system of its own needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
