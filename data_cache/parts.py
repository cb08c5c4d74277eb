"""The folder of shards beside a cache: what is finished and not bound yet, or sharded for good."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.checking import Checking, check_whole
from data_cache.digests import Content, KeyIndex, as_keys
from data_cache.errors import CacheError, RecipeMismatchError
from data_cache.files import TEMPORARY_MARK
from data_cache.layout import DIGEST_BYTES, SHARD_PATTERN, Storage, parts_folder
from data_cache.recipe import Recipe
from data_cache.shards import Shard, StoredRows, read_shard, write_shard

_N_LOOKS = 40
_LOOK_SECONDS = 0.25
_NOTHING = np.empty((0, DIGEST_BYTES), np.uint8)


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
        self._known: set[Path] = set()

    def find(self, dtype: str | None, check: Checking = "once") -> None:
        """Take in every finished shard; those of features not stored as ``dtype`` are foreign.

        Where others write at the same time, ``check`` is ``never``: see :meth:`check`.

        Raises
        ------
        CacheCorruptError, CacheFormatError
            A shard is not what was written.
        """
        paths = sorted(self.folder.glob(SHARD_PATTERN))
        check_whole(paths, check)
        for shard in pack(_read_all(paths)):
            is_ours = shard.recipe == self._recipe and dtype in {None, shard.storage.dtype}
            (self.shards if is_ours else self.foreign).append(shard)

    def check(self, keys: NDArray[np.bytes_]) -> None:
        """Check the shards that hold any of ``keys``, and forget the others.

        Raises
        ------
        CacheCorruptError
            A shard is not what was written.
        """
        index = KeyIndex(keys)
        self.shards = [
            shard for shard in self.shards if (index.find(as_keys(shard.stored.content)) >= 0).any()
        ]
        check_whole([shard.stored.path for shard in self.shards], "once")

    def refuse_foreign(self) -> None:
        """Raise :class:`RecipeMismatchError` if a shard was made by another recipe."""
        for shard in self.foreign:
            raise recipe_mismatch(shard.stored.path, shard.recipe, self._recipe)

    def write(self, content: Content, features: NDArray[np.float32], storage: Storage) -> None:
        """Write one more shard of features (n, d)."""
        self._add(write_shard(self.folder, self._recipe, content, features, storage))

    def share(self, stores: Iterable[StoredRows]) -> None:
        """Take over the shards' rows from another who holds the same, so that there is one copy."""
        self.shards = [
            replace(shard, stored=stored) for shard, stored in zip(self.shards, stores, strict=True)
        ]

    def _add(self, shard: Shard) -> None:
        """Take a shard in, once."""
        if len(self._known) != len(self.shards):
            self._known = {one.stored.path for one in self.shards}
        if shard.stored.path not in self._known:
            self._known.add(shard.stored.path)
            self.shards.append(shard)

    def adopt(self, name: str, digest: str) -> None:
        """Take in a shard that another process wrote and checked, by the digest of its seal.

        On a network's file system it may take a while to be seen.

        Raises
        ------
        CacheError
            It does not come, or is another.
        """
        path = self.folder / name
        for _ in range(_N_LOOKS):
            if path.exists():
                break
            time.sleep(_LOOK_SECONDS)
        if not path.exists() or (shard := read_shard(path, "never")).digest != digest:
            raise CacheError(
                f"{path}, which a worker wrote, is {'another' if path.exists() else 'not'} here: "
                "the cache must lie on a file system that all workers share"
            )
        self._add(shard)

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
        shards = [*self.shards, *(self.foreign if everything else ())]
        doubtful = [shard for shard in shards if shard.stored.path not in keep]
        index = KeyIndex(bound if doubtful and not everything else bound[:0])
        for shard in doubtful:
            if everything or (index.find(as_keys(shard.stored.content)) >= 0).all():
                shard.stored.path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def clear_unfinished(self) -> None:
        """Remove what a killed writer left under temporary names."""
        for path in self.folder.glob(f".*{TEMPORARY_MARK}*"):
            path.unlink(missing_ok=True)


def _read_all(paths: Iterable[Path]) -> Iterator[Shard]:
    """Yield the shards that are there."""
    for path in paths:
        with suppress(FileNotFoundError):  # bound and dropped by another since it was listed
            yield read_shard(path, "never")


def pack(shards: Iterable[Shard]) -> list[Shard]:
    """Return shards whose contents lie in one array.

    The many small arrays that they come in would leave holes in memory, which nothing fills, once
    others share the contents.
    """
    packed, contents, lengths = [], bytearray(), [0]
    for shard in shards:
        contents += shard.stored.content.data
        lengths.append(len(shard.stored.content))
        packed.append(replace(shard, stored=replace(shard.stored, content=_NOTHING)))
    content, edges = np.frombuffer(contents, np.uint8).reshape(-1, DIGEST_BYTES), np.cumsum(lengths)
    return [
        replace(shard, stored=replace(shard.stored, content=content[start:stop]))
        for shard, (start, stop) in zip(packed, pairwise(edges.tolist()), strict=True)
    ]


def recipe_mismatch(path: Path, found: Recipe, wanted: Recipe) -> RecipeMismatchError:
    """Return the refusal of a file made by another recipe, which says what differs."""
    differences = ", ".join(f"other {one}" for one in found.differences(wanted))
    return RecipeMismatchError(
        f"{path}: {differences}: refused; use another --output, or replace it with --overwrite"
    )
