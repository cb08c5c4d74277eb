"""Shards: bounded, immutable files of finished feature rows, keyed by content.

A shard knows nothing of splits, labels or order; those live in the manifest that binds it. It is
built in memory, written under a temporary name, fsynced and renamed, so it is whole or not there.
Its name is made from the contents it holds: the same rows give the same name on any machine, and
two writers never need to agree on a number.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.checking import Checking, check_whole
from data_cache.digests import Content, block_digests, shard_context
from data_cache.errors import OutputError
from data_cache.files import whole_file, write_all
from data_cache.hdf5 import naming_damage, open_hdf5, read_slice, write_column
from data_cache.identity import check_format, read_recipe, write_identity
from data_cache.layout import SEAL_BYTES, SHARD_PATTERN, Storage, chunk_rows
from data_cache.recipe import Recipe
from data_cache.seal import Seal, read_seal
from data_cache.statistics import StatisticsAccumulator, write_statistics
from data_cache.storage import create_features, read_storage, write_block_digests, write_storage


@dataclass(frozen=True)
class StoredRows:
    """Finished feature rows in one file: a shard, or a split of a bound cache.

    Attributes
    ----------
    path : the file
    dataset : name of its (N, d) data set of features
    content : (n, 32) uint8, the digests of what made the rows
    rows : (n,) integers, where they are in the data set; None where they are all of it, in order
    n_features : d
    """

    path: Path
    dataset: str
    content: Content
    rows: NDArray[np.integer] | None
    n_features: int


@dataclass(frozen=True)
class Shard:
    """A shard that is whole: its rows, its recipe, its storage, the digest of its seal."""

    stored: StoredRows
    recipe: Recipe
    storage: Storage
    digest: str


def write_shard(
    folder: Path,
    recipe: Recipe,
    content: Content,
    features: NDArray[np.float32],
    storage: Storage,
) -> Shard:
    """Write a whole shard of features (n, d) and return it; one already there is kept.

    Others may write the same cache at the same time. One who binds it clears what is unfinished,
    and perhaps the folder: then the shard is written once more.
    """
    path = folder / shard_name(recipe, content)
    if path.exists():
        return read_shard(path)
    digest, image = _shard_bytes(recipe, content, features, storage)
    _write_again_if_cleared(path, image)
    stored = StoredRows(path, "features", content, None, features.shape[1])
    return Shard(stored, recipe, storage, digest)


def _write_again_if_cleared(path: Path, image: memoryview, n_attempts: int = 5) -> None:
    """Write a whole file; try again if another process removed it while it was unfinished."""
    try:
        with whole_file(path) as temporary, temporary.open("wb", buffering=0) as stream:
            write_all(stream, image)
    except (FileNotFoundError, OutputError) as error:
        was_cleared = isinstance(error.__cause__ or error, FileNotFoundError)
        if not was_cleared or n_attempts == 1:
            raise
        _write_again_if_cleared(path, image, n_attempts - 1)


def shard_name(recipe: Recipe, content: Content) -> str:
    """Return the file name for these rows of this recipe."""
    digest = hashlib.sha256(bytes.fromhex(recipe.digest()) + content.tobytes()).hexdigest()
    return SHARD_PATTERN.replace("*", digest[:24])


def read_shard(path: Path, check: Checking = "always") -> Shard:
    """Return a shard whose seal holds; all of it is read as often as ``check`` says.

    Raises
    ------
    CacheCorruptError, CacheFormatError
        The shard is not what was written, or not a shard of this format version.
    """
    seal = read_seal(path)
    check_whole([path], check)
    with open_hdf5(path) as file, naming_damage(str(path)):
        check_format(file, "shard")
        content = read_slice(file["content"], slice(None))
        stored = StoredRows(path, "features", content, None, file["features"].shape[1])
        return Shard(stored, read_recipe(file), read_storage(file), seal.digest)


def _shard_bytes(
    recipe: Recipe, content: Content, features: NDArray[np.float32], storage: Storage
) -> tuple[str, memoryview]:
    """Return the digest of a shard's seal, and every byte of its file."""
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=SEAL_BYTES) as file:
        write_identity(file, "shard", recipe)
        write_storage(file, storage)
        _write_rows(file, content, features.astype(storage.dtype), storage)
    view = image.getbuffer()
    digest = hashlib.sha256(view[SEAL_BYTES:]).hexdigest()
    view[:SEAL_BYTES] = Seal(digest, len(view)).block()
    return digest, view


def _write_rows(
    file: h5py.File, content: Content, features: NDArray[np.floating], storage: Storage
) -> None:
    """Write the columns of a shard, the statistics, and the digest of each block of rows."""
    n_block_rows = chunk_rows(features.shape[1])
    context = shard_context(file.attrs["recipe_digest"])
    gathered = StatisticsAccumulator(features.shape[1])
    gathered.add(features)
    write_column(file, "content", content, n_block_rows)
    create_features(file, features.shape, storage)[...] = features
    write_statistics(file, gathered.result())
    digests = block_digests(context, (content, features), n_block_rows)
    write_block_digests(file, list(digests), n_block_rows)
