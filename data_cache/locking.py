"""One writer at a time, and what it says when it cannot write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from data_cache.errors import (
    CacheError,
    CacheFullError,
    CacheLockedError,
    HeadstartError,
    OutputError,
)
from data_cache.files import NO_ROOM, temporary_name
from data_cache.layout import lock_file


@contextmanager
def locked(path: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the cache at ``path`` for writing; the system lets go of it with the process.

    Raises
    ------
    CacheLockedError
        Another process holds it, and still did after ``wait_seconds``.
    CacheError
        Nothing can be written there.
    """
    lock = filelock.FileLock(lock_file(path))
    try:
        _probe(path)
        lock.acquire(timeout=wait_seconds)
    except filelock.Timeout as error:
        raise CacheLockedError(
            f"{path} is being written by another process: wait for it to finish"
        ) from error
    except OSError as error:
        raise CacheError(
            f"{path} cannot be written ({error.strerror}): choose another --output"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _probe(path: Path) -> None:
    """Create a file beside ``path`` and remove it: filelock takes some refusals for a lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = temporary_name(path)
    probe.touch()
    probe.unlink()


@contextmanager
def writing(path: Path, n_bytes: int) -> Iterator[None]:
    """Say plainly why about ``n_bytes`` of the cache at ``path`` cannot be written.

    Raises
    ------
    CacheFullError
        The body ran out of space, or of quota; the message says what to free.
    CacheError
        The system refused otherwise: no permission, a read-only or broken disk.
    """
    try:
        yield
    except OutputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise _refusal(path, n_bytes, error.__cause__) from error
    except HeadstartError:
        raise
    except OSError as error:
        raise _refusal(path, n_bytes, error) from error


def _refusal(path: Path, n_bytes: int, error: OSError) -> CacheError:
    """Return the error that says why the system did not write the cache."""
    if error.errno not in NO_ROOM:
        return CacheError(
            f"{path} could not be written: {error.strerror or error}; what is finished is kept"
        )
    folder = path.absolute().parent
    free = shutil.disk_usage(folder).free
    return CacheFullError(
        f"no room left to write {path}: about {n_bytes / 1e6:,.1f} MB are needed and "
        f"{free / 1e6:,.1f} MB free in {folder}; free as much there and run the same command "
        "again, which goes on from what is finished"
    )
