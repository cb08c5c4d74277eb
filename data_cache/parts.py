"""The folder of shards beside a cache: what is finished and not bound yet, or sharded for good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.checking import check_whole
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
    shards : those that can be used, by name
    foreign : those of another recipe or precision, which something else may still need
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.folder = parts_folder(path)
        self.shards: list[Shard] = []
        self.foreign: list[Shard] = []
        self._recipe = recipe

    def find(self, dtype: str | None) -> None:
        """Take in every finished shard; those of features not stored as ``dtype`` are foreign.

        Raises
        ------
        CacheCorruptError, CacheFormatError
            A shard is not what was written.
        """
        paths = sorted(self.folder.glob(SHARD_PATTERN))
        check_whole(paths, "once")
        for path in paths:
            shard = read_shard(path, "never")
            is_ours = shard.recipe == self._recipe and dtype in {None, shard.storage.dtype}
            (self.shards if is_ours else self.foreign).append(shard)

    def refuse_foreign(self) -> None:
        """Raise :class:`RecipeMismatchError` if a shard was made by another recipe."""
        for shard in self.foreign:
            raise recipe_mismatch(shard.stored.path, shard.recipe, self._recipe)

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

    def drop(
        self, bound: NDArray[np.bytes_], *, keep: frozenset[Path], everything: bool = False
    ) -> None:
        """Remove the shards whose every row is among ``bound`` keys; with ``everything``, all.

        Those in ``keep`` stay in any case, and otherwise foreign ones, and those with rows that
        nothing else holds.
        """
        index = KeyIndex(bound)
        for shard in [*self.shards, *(self.foreign if everything else ())]:
            held = everything or bool((index.find(as_keys(shard.stored.content)) >= 0).all())
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
