"""Drop what is damaged, and nothing else, so that the next extraction redoes just that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.bound import Contents, write_bound
from data_cache.cache import FeatureCache
from data_cache.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheNotFoundError,
    HeadstartError,
)
from data_cache.layout import RECORD_PATTERN, SHARD_PATTERN, parts_folder
from data_cache.locking import locked, writing
from data_cache.manifests import concatenate
from data_cache.proof import runs
from data_cache.recipe import Provenance
from data_cache.rows import Manifest, Rows
from data_cache.seal import check_seal
from data_cache.shards import StoredRows, read_shard
from data_cache.stock import Stock
from data_cache.verify import bad_shards, refuse_foreign


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes
    ----------
    dropped_shards : shards, and records of parts, that were damaged, and are gone
    n_kept, n_dropped : rows of the bound file that are proven, and that are not there any more
    set_aside : where the bound file is now if nothing of it could be proven
    was_rewritten : whether the bound file was damaged, and written again
    """

    dropped_shards: tuple[Path, ...] = ()
    n_kept: int = 0
    n_dropped: int = 0
    set_aside: Path | None = None
    was_rewritten: bool = False

    @property
    def was_needed(self) -> bool:
        """Whether anything was damaged."""
        return bool(self.dropped_shards or self.set_aside or self.was_rewritten)


def repair(path: Path) -> Repair:
    """Drop the damaged shards of a cache, and the damaged rows of its bound file.

    What is kept is proven by its digest. The next ``extract-features`` makes again what was
    dropped; only rows that were no longer in the source are lost for good.

    Raises
    ------
    CacheNotFoundError
        There is neither a cache nor a shard of one.
    CacheFormatError
        The file is no cache, or of another version: it is left as it is.
    CacheLockedError
        Another process is writing the cache.
    CacheFullError
        There is no room for the mended file beside the damaged one.
    """
    folder = parts_folder(path)
    shards = sorted(folder.glob(SHARD_PATTERN))
    if not path.exists() and not shards:
        raise CacheNotFoundError(f"{path} does not exist: make it with `extract-features`")
    if path.exists():
        refuse_foreign(path)
    with locked(path), writing(path, path.stat().st_size if path.exists() else 0):
        damaged = {shard for shard in shards if not _is_sound_shard(shard)}
        mended = _repair_bound(path, damaged) if path.exists() else Repair()
        damaged |= {record for record in folder.glob(RECORD_PATTERN) if not _is_sealed(record)}
        for shard in damaged:
            shard.unlink()
    return replace(mended, dropped_shards=tuple(sorted(damaged)))


def _is_sound_shard(path: Path) -> bool:
    """Return whether a shard is what was written."""
    try:
        read_shard(path)
    except HeadstartError:
        return False
    return True


def _repair_bound(path: Path, damaged: set[Path]) -> Repair:
    """Write the bound file again with the rows that are proven; leave a sound one as it is."""
    try:
        with FeatureCache.open(path, check="never") as cache:
            bad = bad_shards(cache, damaged)
            n_rows = sum(map(cache.n_rows, cache.split_names))
            if not bad and _is_sealed(path):
                return Repair(n_kept=n_rows)
            sound = {split: _sound_rows(cache, split, bad) for split in cache.split_names}
            n_kept = sum(int(mask.sum()) for mask in sound.values())
            if n_kept:
                _write_sound(cache, sound, bad)
                return Repair(n_kept=n_kept, n_dropped=n_rows - n_kept, was_rewritten=True)
    except (CacheFormatError, CacheCorruptError):
        n_rows = 0
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in count())
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    return Repair(n_dropped=n_rows, set_aside=aside)


def _is_sealed(path: Path) -> bool:
    """Return whether a file is, byte for byte, what was written."""
    try:
        check_seal(path)
    except HeadstartError:
        return False
    return True


def _sound_rows(cache: FeatureCache, split: str, bad: set[Path]) -> NDArray[np.bool_]:
    """Return which rows of a split are proven, and not in a bad shard, as (n,) bool."""
    sound = cache.sound_rows(split)
    for shard in bad:
        sound &= ~cache.rows_in(split, shard)
    return sound


def _write_sound(
    cache: FeatureCache, sound: Mapping[str, NDArray[np.bool_]], bad: set[Path]
) -> None:
    """Write the sound rows of a cache in its place.

    The list of images that were left out has no digest of its own, so they are tried again.
    """
    splits = {split: _rows(cache, split, mask) for split, mask in sound.items() if mask.any()}
    manifest = Manifest(cache.classes, splits)
    if cache.storage.sharded:
        stores = [read_shard(shard).stored for shard in cache.shards if shard not in bad]
    else:
        stores = [
            StoredRows(
                cache.path,
                f"{split}/features",
                rows.content,
                np.flatnonzero(sound[split]),
                cache.n_features,
            )
            for split, rows in splits.items()
        ]
    contents = Contents(manifest, (), cache.recipe, _provenance(cache))
    write_bound(cache.path, contents, Stock(stores), cache.storage)


def _rows(cache: FeatureCache, split: str, sound: NDArray[np.bool_]) -> Rows:
    """Return the sound rows of a split; no other is read."""
    return concatenate([cache.rows(split, slice(a, b + 1)) for a, b in runs(sound)])


def _provenance(cache: FeatureCache) -> Provenance:
    """Return where the features came from, or that this is not known any more."""
    try:
        return cache.provenance
    except HeadstartError:
        unknown = "unknown: lost when the file was damaged"
        return Provenance(unknown, unknown, "", unknown, "")
