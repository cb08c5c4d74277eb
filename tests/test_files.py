"""Files are whole or not there, whatever ends the writing early."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from data_cache import files
from data_cache.errors import OutputError, OutputExistsError, OutputFullError
from data_cache.files import file_digest, whole_file, whole_folder, write_all


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_appears_under_its_name_only_at_the_end(tmp_path):
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
        assert files.TEMPORARY_MARK in temporary.name
    assert names_in(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_file_that_is_not_finished_leaves_the_old_one_and_no_trace(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def stop():
        with whole_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        stop()
    assert names_in(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_becomes_full_is_told_and_leaves_no_trace(tmp_path, whole, number):
    with pytest.raises(OutputFullError, match=r"no room left to write .*a: .* MB are free"):
        fail_in(whole(tmp_path / "a"), OSError(number, "full"))
    assert names_in(tmp_path) == []
    with pytest.raises(OSError, match="Input/output error"):
        fail_in(whole(tmp_path / "a"), OSError(errno.EIO, "Input/output error"))


def fail_in(context, error):
    with context:
        raise error


def test_other_errors_of_the_system_keep_their_kind(tmp_path):
    with pytest.raises(PermissionError), whole_file(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="device or a pipe"), whole_file(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    sync = files.sync
    monkeypatch.setattr(files, "sync", lambda path: events.append(path.name) or sync(path))
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert events == [temporary.name, tmp_path.name]


def test_a_whole_folder_replaces_another_only_when_asked_to(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    with pytest.raises(OutputExistsError, match="--overwrite"), whole_folder(tmp_path / "run"):
        pass
    with whole_folder(tmp_path / "run", overwrite=True) as temporary:
        (temporary / "new").touch()
        assert names_in(tmp_path / "run") == ["old"]
    assert names_in(tmp_path / "run") == ["new"]
    assert names_in(tmp_path) == ["run"]


def test_a_folder_that_is_not_finished_leaves_the_old_one_and_no_trace(tmp_path):
    (tmp_path / "run").mkdir()

    def stop():
        with whole_folder(tmp_path / "run", overwrite=True) as temporary:
            (temporary / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert names_in(tmp_path) == ["run"]
    assert names_in(tmp_path / "run") == []


def test_a_folder_replaces_a_file_when_asked_to(tmp_path):
    (tmp_path / "run").write_text("a file")
    with whole_folder(tmp_path / "run", overwrite=True) as temporary:
        (temporary / "new").touch()
    assert names_in(tmp_path / "run") == ["new"]


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_write_that_takes_a_part_is_gone_on_with():
    class Slow:
        def __init__(self):
            self.written = b""

        def write(self, data):
            self.written += bytes(data[:3])
            return min(3, len(data))

    stream = Slow()
    write_all(stream, memoryview(b"0123456789"))
    assert stream.written == b"0123456789"
