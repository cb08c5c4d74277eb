"""Files that are whole or not there: temporary names, digests, outputs that are never clobbered."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_cache.errors import OutputError, OutputExistsError, OutputFullError

TEMPORARY_MARK = ".tmp-"
"""In the name of every file that is not finished; such a file is never read."""

FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})
"""What the system says where a disk, a quota of it, or a file is full."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success it becomes ``path``, durably.

    The file is fsynced and renamed over ``path``, then its folder is fsynced. Whatever ends the
    body early, Ctrl-C included, removes the temporary file and leaves ``path`` as it was. Folders
    on the way to ``path`` are made.

    Raises
    ------
    OutputError
        Nothing can be created there, or a folder has the name; the body has not run then.
    OutputFullError
        The disk, or a quota of it, became full.
    """
    temporary = temporary_name(path)
    refuse_folder(path)
    with naming_output(path):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()  # what writes it may take a file that is there for one to go on with
    with naming_full_disk(path):
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on success it becomes ``path``.

    Raises
    ------
    OutputExistsError
        ``path`` exists and ``overwrite`` is false; nothing has been written then.
    OutputError
        Nothing can be created there.
    OutputFullError
        The disk, or a quota of it, became full.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary = temporary_name(path)
    with naming_output(path):
        temporary.mkdir(parents=True)
    with naming_full_disk(path):
        try:
            yield temporary
            _swap_in(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`OutputExistsError` if ``path`` exists and ``overwrite`` is false."""
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} exists already: choose another --output, or replace it with --overwrite"
        )


def check_creatable(path: Path) -> None:
    """Raise :class:`OutputError` where nothing can be created at ``path``; folders are made.

    For work that takes long and writes its result at the end.
    """
    temporary = temporary_name(path)
    with naming_output(path):
        temporary.mkdir(parents=True)
        temporary.rmdir()


def refuse_folder(path: Path) -> None:
    """Raise :class:`OutputError` if ``path``, where a file is to be written, is something else."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the file to write a name of its own")
    if path.exists() and not path.is_file():  # renaming would replace it, /dev/null too
        raise OutputError(f"{path} is a device or a pipe: give the name of a file")


@contextmanager
def naming_output(path: Path) -> Iterator[None]:
    """Turn the system's refusal to create something for ``path`` into :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): choose another place for it"
        ) from error


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn what the system says of a full disk into :class:`OutputFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        folder = path.absolute().parent
        free = shutil.disk_usage(folder).free
        raise OutputFullError(
            f"no room left to write {path}: {free / 1e6:,.1f} MB are free in {folder}, which is "
            "not enough; free some there, or choose another place, and run the same command again"
        ) from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_all(stream: IO[bytes], data: memoryview) -> None:
    """Write every byte to an unbuffered file: a disk that fills up may take a part of them."""
    while len(data):
        data = data[stream.write(data) :]


def temporary_name(path: Path) -> Path:
    """Return an unused name in the folder of ``path`` that marks an unfinished file."""
    return path.with_name(f".{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex[:12]}")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; a folder that cannot be flushed (Windows) is left."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap_in(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; a folder already there steps aside, then goes."""
    if not path.exists():
        temporary.rename(path)
        return
    aside = temporary_name(path)
    path.rename(aside)
    temporary.rename(path)
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink()
