"""What the job of one part leaves for the one who binds: which rows it had, and which were bad.

The features of a part are in shards like any others. A record is everything else that the bound
file needs: a whole file, sealed, that the job writes when it is done. A part that runs again writes
the same record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.bound import BadRow, Contents, columns_of, write_root
from data_cache.digests import KeyIndex
from data_cache.errors import CacheError
from data_cache.files import whole_file
from data_cache.hdf5 import (
    create_hdf5,
    decode_texts,
    naming_damage,
    open_hdf5,
    read_slice,
    write_column,
)
from data_cache.identity import check_format, read_attribute, read_provenance, read_recipe
from data_cache.layout import RECORD_PATTERN, Storage
from data_cache.manifests import all_keys, concatenate, in_split_order, same_manifest, without
from data_cache.part import Part, PartListing
from data_cache.rows import BadImage, Manifest, Rows
from data_cache.seal import check_seal, seal
from data_cache.storage import read_storage, write_storage

_CHUNK_ROWS = 1 << 12
_N_NAMED = 8


@dataclass(frozen=True)
class PartRecord:
    """A part that is done.

    Attributes
    ----------
    listing : which part it is, and how it lies in the whole source
    contents : its rows, what of them is left out, the recipe and the provenance
    storage : how its features are kept, and how the bound file is to keep them
    """

    listing: PartListing
    contents: Contents
    storage: Storage

    def says(self, other: PartRecord) -> bool:
        """Return whether another record says the same; when it was made does not count."""
        mine, theirs = self.contents, other.contents
        return (
            (self.listing.part, self.listing.digest) == (other.listing.part, other.listing.digest)
            and (mine.recipe, self.storage) == (theirs.recipe, other.storage)
            and set(mine.bad_rows) == set(theirs.bad_rows)
            and same_manifest(mine.manifest, theirs.manifest)
        )


def record_path(folder: Path, part: Part) -> Path:
    """Return the file in the folder of shards that holds the record of a part."""
    return folder / RECORD_PATTERN.replace("*", f"{part.number}-of-{part.n_parts}")


def write_record(folder: Path, record: PartRecord) -> None:
    """Write the record of a part, whole and sealed; one that says the same already stays."""
    path = record_path(folder, record.listing.part)
    if path.exists() and read_record(path).says(record):
        return
    with whole_file(path) as temporary:
        with create_hdf5(temporary) as file:
            write_root(file, record.contents, "part")
            write_storage(file, record.storage)
            part = record.listing.part
            file.attrs.update({"part": part.number, "n_parts": part.n_parts})
            file.attrs["listing_digest"] = record.listing.digest
            for split, rows in record.contents.manifest.splits.items():
                columns = columns_of(rows) | {"order": record.listing.order[split]}
                for name, values in columns.items():
                    write_column(file.require_group(split), name, values, _CHUNK_ROWS)
        seal(temporary)


def read_record(path: Path) -> PartRecord:
    """Return the record of a part, checked.

    Raises
    ------
    CacheCorruptError, CacheFormatError
        It is not what was written, or no record of this format version.
    """
    check_seal(path)
    with open_hdf5(path) as file, naming_damage(str(path)):
        check_format(file, "part")
        part = Part(*(int(read_attribute(file, name)) for name in ("part", "n_parts")))
        splits = tuple(read_attribute(file, "splits"))
        manifest = Manifest(
            decode_texts(read_slice(file["classes"], slice(None))),
            {split: _read_rows(file[split]) for split in splits},
        )
        order = {split: read_slice(file[split]["order"], slice(None)) for split in splits}
        bad_rows = _read_bad_rows(file["bad_images"])
        contents = Contents(manifest, bad_rows, read_recipe(file), read_provenance(file))
        digest = str(read_attribute(file, "listing_digest"))
        return PartRecord(PartListing(part, order, digest), contents, read_storage(file))


def read_records(folder: Path) -> list[PartRecord]:
    """Return every record in a folder of shards, in the order of the parts; raises as above."""
    records = [read_record(path) for path in folder.glob(RECORD_PATTERN)]
    return sorted(records, key=lambda record: record.listing.part.number)


def join_records(path: Path, records: Sequence[PartRecord]) -> Contents:
    """Return what the parts of the cache at ``path`` amount to: every row in the source's order.

    Raises
    ------
    CacheError
        There are none; some have not finished; or they are not parts of one source, listed in one
        way.
    """
    _check_complete(path, records)
    splits = in_split_order({split for one in records for split in one.contents.manifest.splits})
    first = records[0].contents
    return Contents(
        Manifest(first.manifest.classes, {split: _join(records, split) for split in splits}),
        tuple(row for record in records for row in record.contents.bad_rows),
        first.recipe,
        first.provenance,
    )


def drop_records(folder: Path, bound: NDArray[np.bytes_], *, everything: bool = False) -> None:
    """Remove the records whose every row is among ``bound`` keys, or left out; or all."""
    records = list(folder.glob(RECORD_PATTERN))
    index = KeyIndex(bound if records else bound[:0])
    for path in records:
        contents = None if everything else read_record(path).contents
        if contents is None or _is_bound(contents, index):
            path.unlink(missing_ok=True)


def _is_bound(contents: Contents, index: KeyIndex) -> bool:
    """Return whether every row of a part is among the keys of an index, or was left out."""
    good = without(contents.manifest, [row.image for row in contents.bad_rows])
    return bool((index.find(all_keys(good)) >= 0).all())


def _check_complete(path: Path, records: Sequence[PartRecord]) -> None:
    """Raise :class:`CacheError` unless these are all parts of one listing, each once."""
    if not records:
        raise CacheError(
            f"{path} has no finished parts to bind: make them with `extract-features --part 1/N`"
        )
    first = records[0].listing
    for record in records:
        other = record.listing
        if (other.part.n_parts, other.digest) != (first.part.n_parts, first.digest):
            raise CacheError(
                f"{path}: the parts {first.part} and {other.part} were not cut from the same list "
                "of images: run all parts again with the same options, which redoes nothing that "
                "is finished"
            )
    numbers = {record.listing.part.number for record in records}
    lacking = [f"{k}/{first.part.n_parts}" for k in range(1, first.part.n_parts + 1)]
    lacking = [name for k, name in enumerate(lacking, 1) if k not in numbers]
    if lacking:
        more = f" and {len(lacking) - _N_NAMED:,} more" if len(lacking) > _N_NAMED else ""
        raise CacheError(
            f"{path}: {len(lacking):,} of {first.part.n_parts:,} parts have not finished: run "
            f"--part {', '.join(lacking[:_N_NAMED])}{more} again"
        )


def _join(records: Sequence[PartRecord], split: str) -> Rows:
    """Return the rows of a split of all parts, in the order of the source."""
    having = [record for record in records if split in record.contents.manifest.splits]
    rows = concatenate([record.contents.manifest.splits[split] for record in having])
    order = np.concatenate([record.listing.order[split] for record in having])
    return rows.take(np.argsort(order, kind="stable"))


def _read_rows(group: h5py.Group) -> Rows:
    """Return the rows of a split of a part."""
    columns = {
        name: read_slice(group[name], slice(None))
        for name in ("ids", "labels", "content", "groups")
        if name in group
    }
    return Rows(columns["ids"], columns["labels"], columns["content"], columns.get("groups"))


def _read_bad_rows(group: h5py.Group) -> tuple[BadRow, ...]:
    """Return the images of a part that were left out; those without a content may pass later."""
    texts = [
        decode_texts(read_slice(group[name], slice(None))) for name in ("split", "id", "reason")
    ]
    content = read_slice(group["content"], slice(None))
    return tuple(
        BadRow(BadImage(split, name, reason, is_passing=not digest.any()), digest.tobytes())
        for split, name, reason, digest in zip(*texts, content, strict=True)
    )
