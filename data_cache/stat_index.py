"""A memory of digests by stat: spares reading a file again that nothing has touched.

It is a hint and never part of any identity: whoever must be certain reads the bytes. A file is
known only while its path, size, times and inode are what they were, and only if it had been left
alone for a while before it was read, since a second write within the clock's tick would not show.
Any trouble with the index itself makes it forget, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from pathlib import Path

_SETTLED_SECONDS = 2.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, "
    "ctime_ns INTEGER, inode TEXT, digest BLOB) WITHOUT ROWID"
)


def memory_folder() -> Path:
    """Return the user's folder for hints: ``HEADSTART_MEMORY``, else the platform's cache one."""
    if chosen := os.environ.get("HEADSTART_MEMORY"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "headstart"


class StatIndex:
    """Digests (32 bytes each) of files, by path and stat. Open it with :meth:`load`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def load(cls, path: Path) -> StatIndex:
        """Open the index at ``path``; one that is missing or unreadable starts empty."""
        try:
            return cls(_connect(path))
        except (sqlite3.Error, OSError):
            with contextlib.suppress(OSError):
                path.unlink()
        try:
            return cls(_connect(path))
        except (sqlite3.Error, OSError):
            return cls(_connect(None))

    def lookup(self, path: Path, stat: os.stat_result) -> bytes | None:
        """Return the digest (32 bytes) remembered for a file in this state, or None."""
        try:
            row = self._connection.execute(
                "SELECT digest FROM digests WHERE path = ? AND size = ? AND mtime_ns = ? "
                "AND ctime_ns = ? AND inode = ?",
                (_key(path), *_state(stat)),
            ).fetchone()
        except sqlite3.Error:
            return None
        return bytes(row[0]) if row else None

    def remember(self, path: Path, stat: os.stat_result, digest: bytes) -> None:
        """Remember the digest of a file whose ``stat`` was taken before it was read."""
        if time.time() - max(stat.st_mtime, stat.st_ctime) < _SETTLED_SECONDS:
            return
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute(
                "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)",
                (_key(path), *_state(stat), digest),
            )

    def save(self) -> None:
        """Keep what was remembered."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.commit()

    def close(self) -> None:
        """Let go of the file; what was remembered since :meth:`save` is lost."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


def _connect(path: Path | None) -> sqlite3.Connection:
    """Open the data base at ``path`` (in memory for None) and see that it answers."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path or ":memory:", timeout=5.0)
    try:
        connection.execute(_SCHEMA)
        connection.execute("SELECT digest FROM digests LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _key(path: Path) -> str:
    """Return the absolute path as text; names that are not UTF-8 keep their bytes apart."""
    return os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")


def _state(stat: os.stat_result) -> tuple[int, int, int, str]:
    """Return what changes when a file does; inodes may exceed SQLite's integers."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, str(stat.st_ino)
