"""Read a feature cache: every byte that is handed out has been checked.

fletcher32 is checked by HDF5 at every read. The seal, the digest of the whole file, is checked the
first time that a file is opened and remembered by stat, so only a file that changed is read twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.bound import BadRow
from data_cache.checking import Checking, check_whole
from data_cache.digests import split_context
from data_cache.errors import CacheCorruptError, CacheError, CacheFormatError
from data_cache.hdf5 import decode_texts, naming_damage, open_hdf5, read_rows, read_slice
from data_cache.identity import check_format, read_attribute, read_provenance, read_recipe
from data_cache.layout import SHARD_PATTERN, UNLABELED, Storage, parts_folder
from data_cache.proof import sound_rows
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import BadImage, Manifest, Rows
from data_cache.seal import MENDING, is_sealed, read_seal
from data_cache.shards import StoredRows
from data_cache.statistics import FeatureStatistics, read_statistics
from data_cache.stock import gather, groups_of
from data_cache.storage import read_storage
from data_cache.virtual import check_shard, read_shard_table

_BLOCK_ROWS = 8192
_COLUMNS = ("ids", "labels", "content")


class FeatureCache:
    """A cache that is open for reading; a context manager.

    Attributes
    ----------
    path : the file
    classes : names of the classes that the labels count into
    split_names : names of the splits, in their order
    recipe : what made the features
    storage : how the features are kept; reading gives float32 in any case
    shards : the files that hold the features of a sharded cache; none for any other
    shard_table : each of them with the digest (32 bytes) of its seal
    n_features : d, the width of the features
    """

    def __init__(self, path: Path, file: h5py.File, resources: ExitStack) -> None:
        self.path = path
        self._file = file
        self._resources = resources
        self._finite: set[str] = set()
        with naming_damage(str(path)):
            self.recipe: Recipe = read_recipe(file)
            self.storage: Storage = read_storage(file)
            self.classes: tuple[str, ...] = decode_texts(self._column(file, "classes"))
            self.split_names: tuple[str, ...] = tuple(read_attribute(file, "splits"))
            self.shard_table = read_shard_table(file, path) if self.storage.sharded else []
            self.shards: tuple[Path, ...] = tuple(shard for shard, _ in self.shard_table)
            self.n_features: int = self._check_shapes()

    @classmethod
    def open(cls, path: Path | str, *, check: Checking = "once") -> FeatureCache:
        """Open a cache.

        Raises
        ------
        CacheNotFoundError
            Nothing is at the path.
        CacheFormatError
            The file is no feature cache, or of a format version that is not known.
        CacheCorruptError
            It is not what was written, or a shard of it is missing or another.
        """
        path = Path(path)
        with ExitStack() as stack:
            if path.is_file() and is_sealed(path):
                read_seal(path)
            file = stack.enter_context(open_hdf5(path))
            check_format(file, "cache")
            check_whole([path], check)
            cache = cls(path, file, stack.pop_all())
        try:
            cache._check_shards(check)
        except BaseException:
            cache.close()
            raise
        return cache

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._resources.close()

    @cached_property
    def provenance(self) -> Provenance:
        """Where the features came from: for people to read."""
        with naming_damage(str(self.path)):
            return read_provenance(self._file)

    def n_rows(self, split: str) -> int:
        """Return how many rows a split has."""
        return len(self._member(self._group(split), "labels"))

    def rows(self, split: str, part: slice = slice(None)) -> Rows:
        """Return the ids, labels, contents and groups of a split, or of a part of its rows.

        Raises
        ------
        CacheError
            There is no such split.
        CacheFormatError
            Rows without a label, or with several: the format has room for them, this reader not.
        CacheCorruptError
            A checksum is wrong, or a label counts into no class.
        """
        group = self._group(split)
        ids, content = (self._column(group, name, part) for name in ("ids", "content"))
        return Rows(ids, self.labels(split, part), content, self.groups(split, part))

    def labels(self, split: str, part: slice = slice(None)) -> NDArray[np.int64]:
        """Return the labels of a split, (n,) int64, or of a part of it; raises as :meth:`rows`."""
        labels = self._column(self._group(split), "labels", part)
        self._check_labels(split, labels)
        return labels

    def groups(self, split: str, part: slice = slice(None)) -> NDArray[np.bytes_] | None:
        """Return the groups of a split, (n,) bytes, or of a part of it; None where it has none."""
        group = self._group(split)
        return self._column(group, "groups", part) if "groups" in group else None

    def features(self, split: str) -> NDArray[np.float32]:
        """Return all features of a split, (n, d) float32; see :meth:`blocks` to stream them."""
        features = np.empty((self.n_rows(split), self.n_features), np.float32)
        for block, rows in self.blocks(split):
            features[rows] = block
        return features

    def blocks(
        self, split: str, n_rows: int = _BLOCK_ROWS
    ) -> Iterator[tuple[NDArray[np.float32], slice]]:
        """Yield the features of a split in order: (m, d) float32 with m <= ``n_rows``, and where.

        Raises
        ------
        CacheCorruptError
            A checksum is wrong, a shard is gone, or a feature is NaN or infinite.
        """
        length = self.n_rows(split)
        for start in range(0, length, n_rows):
            rows = slice(start, min(start + n_rows, length))
            yield self._read(split, rows), rows

    def take(self, split: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features at ``rows`` ((m,) positions, any order) of a split, (m, d) float32.

        Raises as :meth:`blocks` does.
        """
        group = self._group(split)
        self._check_finite(split)
        if self.storage.sharded:
            which, places = (read_rows(group[name], rows) for name in ("shard", "shard_row"))
            features = self._gather(which, places)
        else:
            features = read_rows(group["features"], rows).astype(np.float32, copy=False)
        self._check_there(split, features)
        return features

    def manifest(self) -> Manifest:
        """Return the classes and every split's rows."""
        return Manifest(self.classes, {split: self.rows(split) for split in self.split_names})

    def statistics(self, split: str) -> FeatureStatistics:
        """Return the statistics of a split's features, which were stored when it was bound."""
        with naming_damage(f"{self.path}: the statistics of {split}"):
            return read_statistics(self._group(split))

    def bad_rows(self) -> tuple[BadRow, ...]:
        """Return the images that were left out, why, and the digests of what was read."""
        group = self._member(self._file, "bad_images")
        with naming_damage(f"{self.path}: the images that were left out"):
            texts = [decode_texts(self._column(group, name)) for name in ("split", "id", "reason")]
            content = self._column(group, "content")
            return tuple(
                BadRow(BadImage(*words), digest.tobytes())
                for *words, digest in zip(*texts, content, strict=True)
            )

    def stores(self) -> Iterator[StoredRows]:
        """Yield where the features are: each split of this file, or its part in each shard."""
        for split in self.split_names:
            group = self._group(split)
            content = self._column(group, "content")
            if not self.storage.sharded:
                yield StoredRows(self.path, f"{split}/features", content, None, self.n_features)
                continue
            which, rows = self._column(group, "shard"), self._column(group, "shard_row")
            for at in groups_of(which):
                shard = self.shards[which[at[0]]]
                yield StoredRows(shard, "features", content[at], rows[at], self.n_features)

    def unbound_shards(self) -> set[Path]:
        """Return the finished shards beside the cache that it does not name."""
        return set(parts_folder(self.path).glob(SHARD_PATTERN)) - set(self.shards)

    def sound_rows(self, split: str) -> NDArray[np.bool_]:
        """Return which rows of a split are proven by the digest of their block, as (n,) bool.

        Of a sharded cache that says nothing about the features, which have digests of their own.
        """
        context = split_context(self.recipe.digest(), self.classes, split)
        return sound_rows(self._group(split), context)

    def rows_in(self, split: str, shard: Path) -> NDArray[np.bool_]:
        """Return which rows of a split have their features in a shard, as (n,) bool."""
        return self._column(self._group(split), "shard") == self.shards.index(shard)

    def _check_shards(self, check: Checking) -> None:
        """See that every shard is there and the one that was bound."""
        if check != "never":
            for shard, digest in self.shard_table:
                check_shard(shard, digest)
        check_whole(self.shards, check)

    def _read(self, split: str, rows: slice) -> NDArray[np.float32]:
        """Return consecutive features of a split, checked."""
        group = self._group(split)
        self._check_finite(split)
        if self.storage.sharded:
            which, places = (read_slice(group[name], rows) for name in ("shard", "shard_row"))
            features = self._gather(which, places)
        else:
            features = read_slice(group["features"], rows).astype(np.float32, copy=False)
        self._check_there(split, features, rows.start)
        return features

    def _gather(self, which: NDArray[np.integer], rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return features from shards, after seeing that each is still the one that was bound."""
        for number in np.unique(which):
            check_shard(*self.shard_table[number])
        places = [(shard, "features") for shard in self.shards]
        return gather(places, which, rows, self.n_features)

    def _group(self, split: str) -> h5py.Group:
        """Return the group of a split."""
        if split not in self.split_names:
            known = ", ".join(self.split_names) or "none"
            raise CacheError(f"{self.path} has no split {split!r}; it has: {known}")
        return self._member(self._file, split)

    def _member(self, group: h5py.Group, name: str) -> Any:
        """Return a group or a data set, which the format promises."""
        with naming_damage(f"{self.path}: {group.name}"):
            if name not in group:
                raise CacheFormatError(
                    f"{self.path} lacks {name} in {group.name}, which every feature cache has"
                )
            return group[name]

    def _column(self, group: h5py.Group, name: str, part: slice = slice(None)) -> NDArray[Any]:
        """Return a column, or some of its rows."""
        return read_slice(self._member(group, name), part)

    def _check_shapes(self) -> int:
        """Return d after seeing that every split has as many labels, ids and contents as rows."""
        widths = set()
        for split in self.split_names:
            group = self._group(split)
            shapes = [self._member(group, name).shape for name in ("features", *_COLUMNS)]
            if len({shape[:1] for shape in shapes}) > 1:
                raise CacheCorruptError(f"{self.path}: the columns of {split} differ in length")
            widths.add(shapes[0][-1])
        if len(widths) != 1:
            raise CacheFormatError(f"{self.path} has no splits, or features of different widths")
        return int(widths.pop())

    def _check_labels(self, split: str, labels: NDArray[np.int64]) -> None:
        """Refuse labels that this reader cannot use, or that count into no class."""
        if labels.ndim != 1:
            raise CacheFormatError(
                f"{self.path}: {split} has {labels.shape[1]} labels a row; only one is supported"
            )
        if (labels == UNLABELED).any():
            raise CacheFormatError(
                f"{self.path}: {int((labels == UNLABELED).sum())} rows of {split} have no label "
                "(-1); rows without a label are not supported"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise CacheCorruptError(
                f"{self.path}: labels of {split} reach from {labels.min()} to {labels.max()}, but "
                f"there are {len(self.classes)} classes: extract the features again"
            )

    def _check_finite(self, split: str) -> None:
        """Refuse features that were NaN or infinite when bound, as the statistics tell."""
        if split in self._finite:
            return
        found = self.statistics(split)
        if not (np.isfinite(found.min).all() and np.isfinite(found.max).all()):
            raise CacheCorruptError(
                f"{self.path}: features of {split} are NaN or infinite, which no writer may bind: "
                "extract them again"
            )
        self._finite.add(split)

    def _check_there(self, split: str, features: NDArray[np.float32], start: int = 0) -> None:
        """Refuse fill values, NaN: HDF5 gives them, and no error, for chunks that it cannot find.

        A chunk holds whole rows, so the first feature of each tells.
        """
        lost = np.isnan(features[:, :1])
        if lost.any():
            raise CacheCorruptError(
                f"{self.path}: the features of {split}, row {start + int(lost.argmax())}, are not "
                f"there: {MENDING}"
            )
