"""The folder of shards beside a cache: what is finished and not bound yet, or sharded for good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.digests import Content, KeyIndex, as_keys
from data_cache.errors import CacheError, RecipeMismatchError
from data_cache.files import TEMPORARY_MARK
from data_cache.layout import SHARD_PATTERN, Storage, parts_folder
from data_cache.recipe import Recipe
from data_cache.shards import Shard, read_shard, write_shard


class Parts:
    """The shards of the cache at ``path``, all of one recipe.

    Attributes
    ----------
    folder : ``CACHE.parts``
    shards : those that are whole, by name
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.folder = parts_folder(path)
        self.shards: list[Shard] = []
        self._recipe = recipe

    def find(self, *, overwrite: bool) -> None:
        """Take in every finished shard; with ``overwrite`` those of other recipes are removed.

        Raises
        ------
        CacheCorruptError, CacheFormatError
            A shard is not what was written.
        RecipeMismatchError
            A shard was made by another recipe.
        """
        for path in sorted(self.folder.glob(SHARD_PATTERN)):
            shard = read_shard(path, "once")
            if shard.recipe == self._recipe:
                self.shards.append(shard)
            elif overwrite:
                path.unlink()
            else:
                raise recipe_mismatch(path, shard.recipe, self._recipe)

    def write(self, content: Content, features: NDArray[np.float32], storage: Storage) -> None:
        """Write one more shard of features (n, d)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = write_shard(self.folder, self._recipe, content, features, storage)
        if shard.stored.path not in {one.stored.path for one in self.shards}:
            self.shards.append(shard)

    def dtype(self) -> str | None:
        """Return the type in which the shards store features, None where there are none.

        Raises
        ------
        CacheError
            They differ: precision that was lost in some cannot be had back.
        """
        dtypes = {shard.storage.dtype for shard in self.shards}
        if len(dtypes) > 1:
            raise CacheError(
                f"{self.folder} holds shards of {' and '.join(sorted(dtypes))}: remove that "
                "folder, and run again"
            )
        return dtypes.pop() if dtypes else None

    def drop(self, bound: NDArray[np.bytes_], *, keep: frozenset[Path], prune: bool) -> None:
        """Remove the shards whose every row is among ``bound`` keys; with ``prune``, all.

        Those in ``keep`` stay; so do shards with rows that nothing else holds.
        """
        index = KeyIndex(bound)
        for shard in self.shards:
            held = prune or bool((index.find(as_keys(shard.stored.content)) >= 0).all())
            if held and shard.stored.path not in keep:
                shard.stored.path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def clear_unfinished(self) -> None:
        """Remove what a killed writer left under temporary names."""
        for path in self.folder.glob(f".*{TEMPORARY_MARK}*"):
            path.unlink(missing_ok=True)


def recipe_mismatch(path: Path, found: Recipe, wanted: Recipe) -> RecipeMismatchError:
    """Return the refusal of a file made by another recipe, which says what differs."""
    differences = ", ".join(f"other {one}" for one in found.differences(wanted))
    return RecipeMismatchError(
        f"{path}: {differences}: refused; use another --output, or replace it with --overwrite"
    )
