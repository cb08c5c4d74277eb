"""Read everything of a cache and name what is not as it was written.

A seal says only that a file was damaged. Where, is found with the block digests: the SHA-256 of
everything that a block of rows says, which no damage to the metadata around it can pass by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_cache.cache import FeatureCache
from data_cache.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheNotFoundError,
    CacheVersionError,
    HeadstartError,
)
from data_cache.hdf5 import naming_damage, open_hdf5
from data_cache.identity import check_format
from data_cache.layout import RECORD_PATTERN, SHARD_PATTERN, parts_folder
from data_cache.proof import runs
from data_cache.seal import check_seal, is_sealed
from data_cache.shards import read_shard
from data_cache.virtual import check_shard


@dataclass(frozen=True)
class Fault:
    """Something in a cache that is not as it was written.

    ``rows`` are the first and the last row at fault of ``split``, where they can be told.
    """

    path: Path
    problem: str
    split: str | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.rows is None:
            return self.problem
        return f"{self.path}: {self.split}, rows {self.rows[0]} to {self.rows[1]}: {self.problem}"


@dataclass(frozen=True)
class Verification:
    """What reading everything found: the faults, and how much was read.

    ``n_unbound_parts`` are finished parts that `feature-cache merge` has yet to bind.
    """

    faults: tuple[Fault, ...]
    n_rows: int
    n_shards: int
    n_bytes: int
    n_unbound_parts: int = 0


def verify(path: Path, advance: Callable[[int], None] = lambda _n: None) -> Verification:
    """Read every byte of a cache, of its shards, and of shards and parts that are not bound yet.

    ``advance`` is called with the number of bytes of each file that has been read.

    Raises
    ------
    CacheNotFoundError
        There is neither a cache nor a shard of one.
    CacheFormatError
        The file is no cache, or of another version: there is nothing to hold it against.
    """
    files = _files(path)
    shards = set(parts_folder(path).glob(SHARD_PATTERN))
    if path.exists():
        refuse_foreign(path)
    faults: list[Fault] = []
    for file in files:
        faults += _file_faults(file, is_shard=file in shards)
        advance(file.stat().st_size)
    n_rows = 0
    if path.exists():
        found, n_rows = _bound_faults(path, {fault.path for fault in faults})
        faults += found
    n_parts = len(list(parts_folder(path).glob(RECORD_PATTERN)))
    return Verification(tuple(faults), n_rows, len(shards), size_of(path), n_parts)


def refuse_foreign(path: Path) -> None:
    """Raise :class:`CacheFormatError` for a file that is no cache of this version, even damaged."""
    try:
        with open_hdf5(path) as file, naming_damage(str(path)):
            check_format(file, "cache")
    except CacheVersionError:
        raise
    except CacheFormatError:
        if not _is_torn(path):
            raise
    except CacheCorruptError:
        return


def _is_torn(path: Path) -> bool:
    """Return whether a file starts as a cache of this version does, and is not what was written."""
    try:
        if path.is_file() and is_sealed(path):
            check_seal(path)
    except CacheCorruptError:
        return True
    except CacheFormatError:
        return False
    return False


def size_of(path: Path) -> int:
    """Return how many bytes :func:`verify` reads; raises as it does."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    """Return every file of a cache: its shards, the records of its parts, then the bound one."""
    folder = parts_folder(path)
    files = [*sorted(folder.glob(SHARD_PATTERN)), *sorted(folder.glob(RECORD_PATTERN))]
    files += [path] if path.exists() else []
    if not files:
        raise CacheNotFoundError(f"{path} does not exist: make it with `extract-features`")
    return files


def bad_shards(cache: FeatureCache, suspects: set[Path]) -> set[Path]:
    """Return the shards of an index that are missing, other than bound, or among ``suspects``."""
    bad = {shard for shard in cache.shards if shard in suspects}
    for shard, digest in cache.shard_table:
        try:
            check_shard(shard, digest)
        except HeadstartError:
            bad.add(shard)
    return bad


def _file_faults(path: Path, *, is_shard: bool) -> list[Fault]:
    """Return what is wrong with a file as a whole."""
    try:
        if is_shard:
            read_shard(path)
        else:
            check_seal(path)
    except HeadstartError as error:
        return [Fault(path, str(error))]
    return []


def _bound_faults(path: Path, faulty: set[Path]) -> tuple[list[Fault], int]:
    """Return which rows of the bound file are at fault, and how many rows it has in all."""
    faults: list[Fault] = []
    n_rows = 0
    try:
        with FeatureCache.open(path, check="never") as cache:
            bad = bad_shards(cache, faulty)
            faults += [Fault(shard, f"{shard} is missing") for shard in sorted(bad - faulty)]
            for split in cache.split_names:
                n_rows += cache.n_rows(split)
                faults += _split_faults(cache, split, bad)
    except HeadstartError as error:
        if path not in faulty:
            faults.append(Fault(path, str(error)))
    return faults, n_rows


def _split_faults(cache: FeatureCache, split: str, bad: set[Path]) -> Iterator[Fault]:
    """Yield each run of rows of a split that is not as it was written, or in a bad shard."""
    for first, last in runs(~cache.sound_rows(split)):
        yield Fault(cache.path, "not what was written", split, (first, last))
    for shard in sorted(bad):
        for first, last in runs(cache.rows_in(split, shard)):
            yield Fault(shard, "the features of this shard are lost", split, (first, last))
