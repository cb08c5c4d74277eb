"""The memory of digests by stat: a hint that is never wrong, and never in the way."""

from __future__ import annotations

import os
import sqlite3
import time

import pytest

from data_cache import stat_index
from data_cache.stat_index import StatIndex, memory_folder

DIGEST = bytes(range(32))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"image")
    age(path)
    return path


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Take files as settled at once; one test says otherwise."""
    monkeypatch.setattr(stat_index, "_SETTLED_SECONDS", -1.0)


def age(path, seconds=3600):
    past = time.time() - seconds
    os.utime(path, (past, past))


def remember(index, path):
    index.remember(path, path.stat(), DIGEST)


def test_what_is_remembered_is_found_and_what_is_not_is_not(tmp_path, file):
    index = StatIndex.load(tmp_path / "index")
    assert index.lookup(file, file.stat()) is None
    remember(index, file)
    assert index.lookup(file, file.stat()) == DIGEST


def test_only_what_was_saved_is_there_the_next_time(tmp_path, file):
    index = StatIndex.load(tmp_path / "index")
    remember(index, file)
    index.close()
    index = StatIndex.load(tmp_path / "index")
    assert index.lookup(file, file.stat()) is None
    remember(index, file)
    index.save()
    index.close()
    assert StatIndex.load(tmp_path / "index").lookup(file, file.stat()) == DIGEST


def rewrite(path):
    path.write_bytes(b"other")
    age(path)


def touch(path):
    age(path, 1800)


def replace_it(path):
    stat = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"other")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


def rewrite_and_set_the_time_back(path):
    stat = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, touch, replace_it, rewrite_and_set_the_time_back])
def test_a_file_that_may_have_changed_is_not_found(tmp_path, file, change):
    index = StatIndex.load(tmp_path / "index")
    remember(index, file)
    time.sleep(0.01)
    change(file)
    assert index.lookup(file, file.stat()) is None


def test_another_path_is_not_found(tmp_path, file):
    index = StatIndex.load(tmp_path / "index")
    remember(index, file)
    os.link(file, tmp_path / "b.jpg")
    assert index.lookup(tmp_path / "b.jpg", file.stat()) is None


def test_a_file_written_this_moment_is_not_remembered(tmp_path, file, monkeypatch):
    monkeypatch.setattr(stat_index, "_SETTLED_SECONDS", 2.0)
    index = StatIndex.load(tmp_path / "index")
    file.write_bytes(b"fresh")
    remember(index, file)
    assert index.lookup(file, file.stat()) is None


def test_a_torn_index_starts_again_empty(tmp_path, file):
    (tmp_path / "index").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    index = StatIndex.load(tmp_path / "index")
    remember(index, file)
    index.save()
    assert index.lookup(file, file.stat()) == DIGEST


def test_an_index_that_cannot_be_kept_is_no_hindrance(tmp_path, file):
    (tmp_path / "folder").write_text("a file in the place of a folder")
    index = StatIndex.load(tmp_path / "folder" / "index")
    remember(index, file)
    index.save()
    assert index.lookup(file, file.stat()) == DIGEST


def test_an_index_that_another_process_holds_is_no_hindrance(tmp_path, file, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
    index = StatIndex.load(tmp_path / "index")
    other = connect(tmp_path / "index", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    remember(index, file)
    index.save()
    assert index.lookup(file, file.stat()) is None
    other.close()


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_utf8_are_kept_apart(tmp_path, file):
    index = StatIndex.load(tmp_path / "index")
    paths = [tmp_path / os.fsdecode(name) for name in (b"\xff.jpg", b"\xfe.jpg")]
    for number, path in enumerate(paths):
        index.remember(path, file.stat(), bytes([number]) * 32)
    assert index.lookup(paths[0], file.stat()) == bytes(32)


def test_the_folder_of_hints_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_MEMORY", str(tmp_path))
    assert memory_folder() == tmp_path
    monkeypatch.delenv("HEADSTART_MEMORY")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    assert memory_folder() == tmp_path / "cache" / "headstart"
