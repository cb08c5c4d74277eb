"""Seals: the digest of a whole file, kept in the file's own first 512 bytes.

fletcher32 covers the numbers of an HDF5 file and nothing else: not its metadata, not what a
virtual data set points at. So the user block, 512 bytes that HDF5 leaves to its users, holds the
SHA-256 of every byte after it, and the length of the file. The digest and the file can never part
company: one rename puts both in place, and a file that is copied or moved brings its seal along.
Plain HDF5 readers step over the block.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from data_cache.errors import CacheCorruptError, CacheVersionError
from data_cache.files import write_all
from data_cache.layout import FORMAT, SEAL_BYTES, VERSION

_READ_BYTES = 1 << 20
_VERSION = re.compile(FORMAT.encode() + rb" (\d{1,9})\n")
_SEAL = re.compile(_VERSION.pattern + rb"sha256 ([0-9a-f]{64})\nsize (\d{1,18})\n")

MENDING = "see `feature-cache verify`, then `feature-cache repair`"
"""How every message about damage ends."""


@dataclass(frozen=True)
class Seal:
    """What a seal says: the SHA-256 (64 hex digits) of what follows it, the file's length."""

    digest: str
    n_bytes: int

    def block(self) -> bytes:
        """Return the 512 bytes at the start of the file."""
        text = f"{FORMAT} {VERSION}\nsha256 {self.digest}\nsize {self.n_bytes}\n"
        return text.encode().ljust(SEAL_BYTES, b"\0")


def seal(path: Path) -> Seal:
    """Write the seal of a finished file into its user block, and return it."""
    found = Seal(_body_digest(path), path.stat().st_size)
    with path.open("r+b", buffering=0) as stream:
        write_all(stream, memoryview(found.block()))
    return found


def read_seal(path: Path) -> Seal:
    """Return what the seal of a file says, after holding the file's length against it.

    Raises
    ------
    CacheVersionError
        The file is of a format version that is not known.
    CacheCorruptError
        It has no whole seal, or was cut short.
    """
    with path.open("rb") as stream:
        block = stream.read(SEAL_BYTES)
    version = _VERSION.match(block)
    if version and int(version[1]) != VERSION:
        raise unknown_version(path, int(version[1]))
    found = _SEAL.match(block)
    if found is None:
        raise CacheCorruptError(f"{path} has no whole seal in its first 512 bytes: {MENDING}")
    said = Seal(found[2].decode(), int(found[3]))
    size = path.stat().st_size
    if size != said.n_bytes:
        change = "was cut short" if size < said.n_bytes else "has grown"
        raise CacheCorruptError(
            f"{path} {change}: it has {size:,} bytes of {said.n_bytes:,}: {MENDING}"
        )
    return said


def check_seal(path: Path) -> Seal:
    """Return the seal of a file that is what was sealed, after reading all of it.

    Raises
    ------
    CacheVersionError
        The file is of a format version that is not known.
    CacheCorruptError
        A bit differs anywhere in the file, or it was cut short or written to since.
    """
    said = read_seal(path)
    digest = _body_digest(path)
    with path.open("rb") as stream:
        block = stream.read(SEAL_BYTES)
    if digest != said.digest or block != said.block():
        raise CacheCorruptError(
            f"{path} is not what was written: its SHA-256 is {digest[:12]}…, its seal says "
            f"{said.digest[:12]}…: {MENDING}"
        )
    return said


def is_sealed(path: Path) -> bool:
    """Return whether a file starts like a file of a feature cache, of any version."""
    with path.open("rb") as stream:
        return stream.read(len(FORMAT)) == FORMAT.encode()


def unknown_version(path: Path | str, version: object) -> CacheVersionError:
    """Return the error that refuses a format version."""
    return CacheVersionError(
        f"{path} is of format version {version}, and this program reads version {VERSION}: "
        "update headstart, or extract the features again"
    )


def _body_digest(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of every byte after the first 512, read in blocks."""
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(SEAL_BYTES)
        while block := stream.read(_READ_BYTES):
            sha256.update(block)
    return sha256.hexdigest()
