"""What a bound cache holds before an update, features aside, and where those are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from data_cache.bound import BadRow
from data_cache.cache import FeatureCache
from data_cache.errors import CacheCorruptError, CacheError, CacheFormatError, OutputError
from data_cache.files import refuse_existing, refuse_folder
from data_cache.hdf5 import naming_damage, open_hdf5
from data_cache.layout import FORMAT, Storage, parts_folder
from data_cache.parts import recipe_mismatch
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import Manifest
from data_cache.seal import is_sealed
from data_cache.shards import StoredRows

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How a URL starts once it was taken for a path, which has no two slashes side by side."""


@dataclass(frozen=True)
class Existing:
    """A bound cache: its rows, what was left out, where its features are and how they are kept.

    ``stores`` is empty for a sharded cache, whose features are in the shards beside it.
    """

    manifest: Manifest
    bad_rows: tuple[BadRow, ...]
    stores: tuple[StoredRows, ...]
    provenance: Provenance
    storage: Storage


def read_existing(path: Path, recipe: Recipe) -> Existing:
    """Return what the cache at ``path`` holds, whole and checked.

    Raises
    ------
    RecipeMismatchError
        It was made by another recipe.
    CacheFormatError, CacheCorruptError
        It is no cache, or not what was written.
    CacheError
        It is an index that was given another name than its folder of shards.
    """
    with FeatureCache.open(path, check="never") as cache:
        if cache.recipe != recipe:
            raise recipe_mismatch(path, cache.recipe, recipe)
    with FeatureCache.open(path) as cache:
        _check_folder(cache)
        return Existing(
            manifest=cache.manifest(),
            bad_rows=cache.bad_rows(),
            stores=() if cache.storage.sharded else tuple(cache.stores()),
            provenance=cache.provenance,
            storage=cache.storage,
        )


def refuse_other_file(path: Path, *, overwrite: bool) -> None:
    """See that ``path`` is a name for a cache, and that overwriting it loses nothing but a cache.

    A cache may be replaced whatever its state: damaged, or of another recipe or version.

    Raises
    ------
    OutputError
        It is a folder, or a URL.
    CacheFormatError
        It is to be overwritten, and is no cache.
    """
    refuse_folder(path)
    if _URL.match(str(path)):
        raise OutputError(
            f"{path} is a URL: a cache is written in place, by renaming whole files, which needs a "
            "file system; write it to a path, then copy it"
        )
    if overwrite and path.exists() and not _is_cache(path):
        raise CacheFormatError(
            f"{path} is not a feature cache: choose another --output, or remove it yourself"
        )


def refuse_output(path: Path, *, overwrite: bool) -> None:
    """See that a cache of its own can be written at ``path``, before any work is done for it.

    Raises
    ------
    OutputError, CacheFormatError
        It is a folder, a URL, or a file that is no cache, which no option replaces.
    OutputExistsError
        It is a cache, and ``overwrite`` is false.
    """
    refuse_other_file(path, overwrite=True)
    refuse_existing(path, overwrite=overwrite)


def _is_cache(path: Path) -> bool:
    """Return whether a file is a cache, be it damaged; a shard of one is not."""
    if not path.is_file():
        return False
    try:
        with open_hdf5(path) as file, naming_damage(str(path)):
            is_shard = file.attrs.get("kind") == "shard"
            return not is_shard and (is_sealed(path) or file.attrs.get("format") == FORMAT)
    except (CacheCorruptError, CacheFormatError):
        return is_sealed(path)


def _check_folder(cache: FeatureCache) -> None:
    """Raise :class:`CacheError` unless the shards of a cache are where an update expects them."""
    expected = parts_folder(cache.path)
    for shard in cache.shards:
        if shard.parent != expected:
            raise CacheError(
                f"{cache.path} is an index of the shards in {shard.parent}; an update expects them "
                f"in {expected}: give the index its old name back, and run again"
            )
