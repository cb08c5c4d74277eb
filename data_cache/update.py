"""Write a cache: the one writer, which a kill at any instant leaves whole.

An update takes the lock, says what is missing (:meth:`CacheUpdate.plan`), takes finished feature
rows (:meth:`CacheUpdate.append`), which become durable shard by shard, and binds everything into
one file at the end (:meth:`CacheUpdate.bind`). Until then the cache that was there stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from data_cache.bound import BadRow, Contents, write_bound
from data_cache.digests import Content, KeyIndex, as_keys
from data_cache.errors import CacheError, CacheFullError, ParameterError
from data_cache.existing import Existing, read_existing, refuse_other_file
from data_cache.files import TEMPORARY_MARK
from data_cache.join import Joined, join
from data_cache.layout import DIGEST_BYTES, Storage
from data_cache.locking import locked, writing
from data_cache.manifests import all_keys, check_manifest, same_manifest, without
from data_cache.part import Part, PartListing
from data_cache.part_records import (
    PartRecord,
    drop_records,
    read_record,
    read_records,
    record_path,
    write_record,
)
from data_cache.parts import Parts
from data_cache.pending import PendingRows
from data_cache.plan import Plan, find_known_bad, missing_rows
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import BadImage, Manifest
from data_cache.shards import Shard, StoredRows
from data_cache.stock import Stock
from data_cache.storage import as_stored


@dataclass(frozen=True)
class UpdateOptions:
    """How an update treats what is there, and how it writes.

    Attributes
    ----------
    prune : remove rows that are no longer in the source
    append : the source is added; the rows of the cache are no part of it and stay
    retry_bad : decode again what an earlier run could not decode
    dtype, compression, sharded : how features are kept, see :class:`data_cache.layout.Storage`;
        None keeps the way of what is there
    shard_rows, shard_seconds : a shard is finished at so many rows, or after so long
    wait_seconds : how long to wait for another writer before refusing
    part : only this part of the source is at hand. Such an update takes no lock, for any number of
        parts may be written at once, and binds nothing; see :meth:`CacheUpdate.record`
    plan_only : nothing is to be written at all, so no lock is taken

    Raises
    ------
    ParameterError
        A part is to ``prune`` or to ``append``, which concern the whole.
    """

    prune: bool = False
    append: bool = False
    retry_bad: bool = False
    dtype: str | None = None
    compression: int | None = None
    sharded: bool | None = None
    shard_rows: int = 4096
    shard_seconds: float = 15.0
    wait_seconds: float = 0.0
    part: Part | None = None
    plan_only: bool = False

    def __post_init__(self) -> None:
        if self.part is not None and (self.prune or self.append):
            raise ParameterError(
                f"part {self.part}: --prune and --append concern the whole source: give them to "
                "the last extract-features, without --part, which binds the parts"
            )

    @property
    def is_shared(self) -> bool:
        """Whether others may write the cache at the same time."""
        return self.part is not None or self.plan_only

    def storage(self, found: Storage) -> Storage:
        """Return how to keep features: as asked for, else as they are kept already."""
        return Storage(
            found.dtype if self.dtype is None else self.dtype,
            found.compression if self.compression is None else self.compression,
            found.sharded if self.sharded is None else self.sharded,
        )


class CacheUpdate:
    """An update of the cache at ``path``, which it holds locked; a context manager.

    Make it with :meth:`begin`. Leaving the context, even by an exception, makes durable what was
    appended, but binds nothing.
    """

    def __init__(
        self, path: Path, recipe: Recipe, provenance: Provenance, options: UpdateOptions
    ) -> None:
        self.path = path
        self.recipe = recipe
        self.provenance = provenance
        self.options = options
        self.parts = Parts(path, recipe)
        self._storage = options.storage(Storage())
        self._overwrite = False
        self._resources = ExitStack()
        self._existing: Existing | None = None
        self._records: list[PartRecord] = []
        self._lent: list[StoredRows] = []
        self._lent_bad: dict[BadImage, bytes] = {}
        self._planned: Manifest | None = None
        self._pending = PendingRows()
        self._in_shards: Stock | None = None

    @classmethod
    def begin(
        cls,
        path: Path | str,
        recipe: Recipe,
        provenance: Provenance,
        *,
        overwrite: bool = False,
        options: UpdateOptions | None = None,
    ) -> CacheUpdate:
        """Lock the cache and find what is there: the bound file, and shards that are finished.

        With ``overwrite`` an existing cache is replaced when the new one is bound, and not
        before; only the shards that an interrupted run of the same recipe left are used.

        Raises
        ------
        CacheLockedError
            Another process is writing the cache.
        RecipeMismatchError
            The cache, or a shard of it, was made by another recipe.
        CacheCorruptError, CacheFormatError
            What is there is not what was written, or no cache.
            With ``overwrite`` too: the file that would be replaced is no cache at all.
        OutputError
            A folder has the name.
        CacheError
            What is there is stored with another precision than ``options`` ask for; or both
            ``overwrite`` and ``options.append`` were asked for.
        """
        options = options or UpdateOptions()
        if overwrite and options.append:
            raise CacheError(
                f"--append keeps what {path} holds, and --overwrite replaces it: choose one of them"
            )
        refuse_other_file(Path(path), overwrite=overwrite)
        update = cls(Path(path), recipe, provenance, options)
        try:
            update._take_over(overwrite=overwrite)
        except BaseException:
            update.close()
            raise
        return update

    def __enter__(self) -> CacheUpdate:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not isinstance(error, CacheFullError):
                self.checkpoint()
        finally:
            self.close()

    def close(self) -> None:
        """Release the lock; what was appended since the last shard is lost."""
        self._resources.close()

    @property
    def storage(self) -> Storage:
        """How features are kept: as asked for, else as they are kept already."""
        return self._storage

    @property
    def previous_provenance(self) -> Provenance | None:
        """Where the rows that are there already came from; None where there are none."""
        if self._existing:
            return self._existing.provenance
        return next((record.contents.provenance for record in self._records), None)

    def plan(self, manifest: Manifest, unreadable: Sequence[BadImage] = ()) -> Plan:
        """Return what is missing for this manifest, and why.

        ``unreadable`` are images that are not in the manifest since they could not even be read.

        Raises
        ------
        CacheError
            The manifest contradicts itself, or cannot be appended to what is there.
        """
        check_manifest(manifest)
        if self.options.is_shared:
            self.parts.check(all_keys(manifest))
        self._planned = manifest
        bad = () if self.options.retry_bad else find_known_bad(manifest, self._old_bad_rows())
        left_out = [*unreadable, *(row.image for row in bad)]
        joined = self._join(manifest, left_out)
        missing = missing_rows(manifest, self._stock(), bad)
        all_bad = self._bad_rows(manifest, left_out)
        nothing_missing = not any(map(len, missing.values()))
        return Plan(
            missing=missing,
            n_rows=len(manifest),
            n_new=joined.n_new,
            n_moved=joined.n_moved,
            n_changed=joined.n_changed,
            n_relabeled=joined.n_relabeled,
            n_finished=self._n_finished(manifest),
            n_gone=0 if self.options.part else joined.n_gone,
            known_bad=tuple(row.image for row in bad),
            prune=self.options.prune,
            is_up_to_date=nothing_missing and self._says(joined, all_bad),
        )

    def with_copies(self, bad_images: Sequence[BadImage]) -> tuple[BadImage, ...]:
        """Return images of the plan that proved bad, and every other row with the content of one.

        Only the first row of a content is read, so what holds of it holds of its copies.
        """
        planned = self._planned
        if planned is None:
            return tuple(bad_images)
        rows = [BadRow(image, _content_of(planned, image)) for image in bad_images]
        return tuple(row.image for row in find_known_bad(planned, rows))

    def append(self, content: Content, features: NDArray[np.float32]) -> None:
        """Take finished rows: ``content`` (m, 32) uint8, ``features`` (m, d) float32.

        A shard is written, and durable, whenever enough rows or seconds have gathered.

        Raises
        ------
        DataError
            A feature is NaN, infinite, or too large for the storage.
        CacheFullError
            There is no room left; the cache and every finished shard stay valid.
        """
        if features.shape[:1] != content.shape[:1] or features.ndim != content.ndim:
            raise CacheError(f"contents {content.shape} came with features {features.shape}")
        as_stored(features, self._storage)
        self._pending.add(content, features)
        while self._pending.n_rows >= self.options.shard_rows:
            self._write_shard()
        if self._pending.age() > self.options.shard_seconds:
            self.checkpoint()

    def adopt(self, name: str, digest: str) -> None:
        """Take in a whole shard that another process wrote into the folder of shards.

        Raises
        ------
        CacheError
            It is not there, or its seal has another ``digest``.
        """
        self.parts.adopt(name, digest)

    def checkpoint(self) -> None:
        """Make every row that was appended so far durable, in shards of bounded size."""
        while self._pending.n_rows:
            self._write_shard()

    def lend(self, stores: Iterable[StoredRows], bad_rows: Iterable[BadRow] = ()) -> None:
        """Let rows be bound that lie in other files of the same recipe, and be left out, if bad."""
        self._lent.extend(stores)
        self._lent_bad.update((row.image, row.content) for row in bad_rows)

    def bind(self, manifest: Manifest, bad_images: Sequence[BadImage] = ()) -> None:
        """Write the one self-contained file for this manifest, then drop the shards in it.

        Rows of ``bad_images`` are left out. A cache that says all this already stays untouched.
        With sharded storage the file is an index, and the shards that it names stay.

        Raises
        ------
        CacheError
            Features of a row are missing, or there are no rows at all.
        CacheFullError
            There is no room for the new file beside the old one, which stays as it was.
        """
        self.checkpoint()
        check_manifest(manifest)
        joined = self._join(manifest, bad_images).manifest
        if not len(joined):
            raise CacheError(f"{self.path} would hold no row: the source has no image to keep")
        bad_rows = self._bad_rows(manifest, bad_images)
        if not self._holds(joined, bad_rows):
            contents = Contents(joined, bad_rows, self.recipe, self._new_provenance())
            stock = self._stock()
            with writing(self.path, self._n_bytes(joined, stock.n_features)):
                self._write(contents, stock)
        self._drop_shards(joined)

    def record(
        self, listing: PartListing, manifest: Manifest, bad_images: Sequence[BadImage] = ()
    ) -> None:
        """Leave what is to be known of a part for the one who binds all parts.

        A part without news for the bound cache leaves one too: without it, no one could tell such
        a part from one that died. The same record, where it is there, stays as it is.

        Raises
        ------
        CacheFullError
            There is no room for it.
        """
        self.checkpoint()
        bad_rows = self._bad_rows(manifest, bad_images)
        contents = Contents(manifest, bad_rows, self.recipe, self._new_provenance())
        n_bytes = sum(rows.ids.nbytes + rows.content.nbytes for rows in manifest.splits.values())
        with writing(self.path, n_bytes):
            write_record(self.parts.folder, PartRecord(listing, contents, self._storage))

    def _write_shard(self) -> None:
        """Write the rows that have waited longest, as many as a shard takes."""
        content, features = self._pending.first(self.options.shard_rows)
        with writing(self.path, content.nbytes + features.nbytes):
            self.parts.write(content, features, self._storage)
        self._pending.drop(self.options.shard_rows)

    def _take_over(self, *, overwrite: bool) -> None:
        """Take the lock, clear what a killed run left, and find what is finished."""
        if not self.options.is_shared:
            self._resources.enter_context(locked(self.path, self.options.wait_seconds))
            self._clear_unfinished()
        if self.path.exists() and not overwrite:
            self._existing = read_existing(self.path, self.recipe)
        dtype = self.options.storage(Storage()).dtype if overwrite else None
        self.parts.find(dtype, "never" if self.options.is_shared else "once")
        if self._existing is None and not overwrite:
            self.parts.refuse_foreign()
        self._storage = self._agreed_storage()
        self._records = [one for one in self._found_records() if one.contents.recipe == self.recipe]
        self._overwrite = overwrite

    def _clear_unfinished(self) -> None:
        """Remove what killed runs left under temporary names."""
        for stray in self.path.parent.iterdir():
            if stray.name.startswith(f".{self.path.name}{TEMPORARY_MARK}"):
                stray.unlink(missing_ok=True)
        self.parts.clear_unfinished()

    def _found_records(self) -> list[PartRecord]:
        """Return the records of parts: of all, or of the one that this is an update of."""
        if self.options.part is None:
            return read_records(self.parts.folder)
        path = record_path(self.parts.folder, self.options.part)
        return [read_record(path)] if path.exists() else []

    def _agreed_storage(self) -> Storage:
        """Return how to store features: as asked, which must keep the precision that is there."""
        dtype = self.parts.dtype()
        found = self._existing.storage if self._existing else Storage(dtype or Storage.dtype)
        asked = self.options.storage(found)
        if (self._existing or dtype) and asked.dtype != found.dtype:
            raise CacheError(
                f"{self.path} stores {found.dtype}, and {asked.dtype} was asked for: use another "
                "--output, or replace it with --overwrite"
            )
        return asked

    def _join(self, manifest: Manifest, left_out: Sequence[BadImage]) -> Joined:
        """Join a manifest, but for the images left out, with the rows of the bound cache."""
        old = self._existing.manifest if self._existing else None
        if old is not None and not self.options.append:
            old = without(old, _in_splits(left_out, old))
        good = without(manifest, left_out)
        return join(old, good, prune=self.options.prune, append=self.options.append)

    def _bound_stores(self) -> tuple[StoredRows, ...]:
        """Return the features that the bound cache holds."""
        return self._existing.stores if self._existing else ()

    def _stock(self) -> Stock:
        """Return every finished row: of the shards, of the bound cache, and those lent."""
        others = [*self._bound_stores(), *self._lent]
        if not others:
            return self._stock_of_shards()
        return Stock([*(shard.stored for shard in self.parts.shards), *others])

    def _stock_of_shards(self) -> Stock:
        """Return every row of the shards; made anew only where shards were added."""
        stores = [shard.stored for shard in self.parts.shards]
        if self._in_shards is None or len(self._in_shards.places) != len(stores):
            self._in_shards = Stock(stores)
            self.parts.share(self._in_shards.stores())
        return self._in_shards

    def _n_finished(self, manifest: Manifest) -> int:
        """Count the rows of a manifest whose features are in shards and not in the cache."""
        shards = self._stock_of_shards()
        bound = KeyIndex(all_keys(self._existing.manifest if self._existing else Manifest((), {})))
        contents = [rows.content for rows in manifest.splits.values()]
        return sum(
            int((shards.has(one) & (bound.find(as_keys(one)) < 0)).sum()) for one in contents
        )

    def _old_bad_rows(self) -> tuple[BadRow, ...]:
        """Return the images that an earlier run could not decode."""
        recorded = (row for record in self._records for row in record.contents.bad_rows)
        return (*(self._existing.bad_rows if self._existing else ()), *recorded)

    def _bad_rows(self, manifest: Manifest, images: Sequence[BadImage]) -> tuple[BadRow, ...]:
        """Return the images that are left out, with their contents where those are known."""
        named = self._planned or manifest
        found = tuple(
            BadRow(image, self._lent_bad.get(image) or _content_to_remember(named, image))
            for image in images
        )
        if not self.options.append:
            return found
        old = self._existing.bad_rows if self._existing else ()
        return (*(row for row in old if row.image not in images), *found)

    def _says(self, joined: Joined, bad_rows: Sequence[BadRow]) -> bool:
        """Return whether all of a manifest is told already; of a part, that the whole has it."""
        if self.options.part is None:
            return self._holds(joined.manifest, bad_rows)
        news = (joined.n_new, joined.n_moved, joined.n_changed, joined.n_relabeled)
        old = self._existing
        return old is not None and not any(news) and set(bad_rows) <= set(old.bad_rows)

    def _holds(self, manifest: Manifest, bad_rows: Sequence[BadRow]) -> bool:
        """Return whether the bound cache says just this, stored as it should be."""
        old = self._existing
        return (
            old is not None
            and old.storage == self._storage
            and set(old.bad_rows) == set(bad_rows)
            and same_manifest(old.manifest, manifest)
        )

    def _new_provenance(self) -> Provenance:
        """Return the provenance to record: with ``append``, every source by name."""
        if not (self._existing and self.options.append):
            return self.provenance
        sources = dict.fromkeys([self._existing.provenance.source, self.provenance.source])
        return replace(self.provenance, source="; ".join(sources))

    def _write(self, contents: Contents, stock: Stock) -> None:
        """Write the bound file; for sharded storage every row is brought into a shard first."""
        if self._storage.sharded:
            self._shard_rest(contents.manifest, stock)
            used = self._shards_in_use(contents.manifest)
            stock = self._stock_of_shards()
            if len(used) < len(stock.places):
                stock = Stock([shard.stored for shard in used])
        write_bound(self.path, contents, stock, self._storage)

    def _n_bytes(self, manifest: Manifest, n_features: int) -> int:
        """Return about how many bytes the bound file of a manifest takes, uncompressed."""
        row = np.dtype(self._storage.dtype).itemsize * n_features
        return sum(
            len(rows) * (0 if self._storage.sharded else row)
            + rows.content.nbytes
            + rows.ids.nbytes
            + rows.labels.nbytes
            for rows in manifest.splits.values()
        )

    def _shard_rest(self, manifest: Manifest, stock: Stock) -> None:
        """Copy into shards the rows of a manifest that lie elsewhere in the stock."""
        in_shards = self._stock_of_shards()
        for split, rows in missing_rows(manifest, in_shards, ()).items():
            for start in range(0, len(rows), self.options.shard_rows):
                batch = rows[start : start + self.options.shard_rows]
                content = manifest.splits[split].content[batch]
                self.parts.write(content, stock.read(content), self._storage)

    def _shards_in_use(self, manifest: Manifest) -> list[Shard]:
        """Return the shards that hold the rows of a manifest."""
        stock = self._stock_of_shards()
        n_used = np.zeros(len(stock.places), np.int64)
        for rows in manifest.splits.values():
            for _, which, _ in stock.locate(rows.content):
                n_used += np.bincount(which, minlength=len(n_used))
        return [self.parts.shards[shard] for shard in np.flatnonzero(n_used)]

    def _drop_shards(self, manifest: Manifest) -> None:
        """Remove the shards that are not needed any more, and the folder if none is left."""
        used = self._shards_in_use(manifest) if self._storage.sharded else []
        keep = frozenset(shard.stored.path for shard in used)
        everything = self.options.prune or self._overwrite
        drop_records(self.parts.folder, all_keys(manifest), everything=everything)
        self.parts.drop(all_keys(manifest), keep=keep, everything=everything)


def _in_splits(images: Sequence[BadImage], manifest: Manifest) -> list[BadImage]:
    """Return images with a split each; one that was unreadable before it had one may be in any."""
    return [
        replace(image, split=split)
        for image in images
        for split in ([image.split] if image.split else manifest.splits)
    ]


def _content_to_remember(manifest: Manifest, image: BadImage) -> bytes:
    """Return the digest by which the next run knows a bad image; zeros if it is to try again."""
    return bytes(DIGEST_BYTES) if image.is_passing else _content_of(manifest, image)


def _content_of(manifest: Manifest, image: BadImage) -> bytes:
    """Return the digest of an image in a manifest; zeros for one that could not be read."""
    if image.split not in manifest.splits:
        return bytes(DIGEST_BYTES)
    rows = manifest.splits[image.split]
    at = np.flatnonzero(rows.ids == image.id.encode())
    return rows.content[at[0]].tobytes() if len(at) else bytes(DIGEST_BYTES)
