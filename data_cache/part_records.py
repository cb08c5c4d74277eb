"""What the job of one part leaves for the one who binds: which rows it had, and which were bad.

The features of a part are in shards like any others. A record is everything else that the bound
file needs: a whole file, sealed, that the job writes when it is done. A part that runs again writes
the same record.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
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


def complete_set(path: Path, records: Sequence[PartRecord]) -> list[PartRecord]:
    """Return the records that are all parts of one source, listed in one way; others are strays.

    Raises
    ------
    CacheError
        There are none; no such set is whole; or several are.
    """
    if not records:
        raise CacheError(
            f"{path} has no finished parts to bind: make them with `extract-features --part 1/N`"
        )
    sets: dict[tuple[int, str], list[PartRecord]] = {}
    for record in records:
        sets.setdefault(record.listing.cut, []).append(record)
    whole = [one for (n_parts, _), one in sets.items() if len(one) == n_parts]
    if len(whole) > 1:
        raise CacheError(
            f"{path}: {' and '.join(names_of(one) for one in whole)} are each all parts of a "
            "source: run `extract-features` without --part and with the options wanted, which "
            "redoes nothing that is finished"
        )
    if not whole:
        raise _incomplete(path, max(sets.values(), key=_nearness), records)
    return whole[0]


def names_of(records: Sequence[PartRecord]) -> str:
    """Name the parts of some records: ``parts 1/3, 2/3``."""
    names = [str(record.listing.part) for record in records]
    return f"part{'s' if names[1:] else ''} {_some(names)}"


def join_records(records: Sequence[PartRecord]) -> Contents:
    """Return what all parts of a source amount to: every row in the source's order."""
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


def drop_strays(folder: Path, strays: Sequence[PartRecord]) -> None:
    """Remove the records of parts that are no parts of what is bound, and a folder left empty."""
    for record in strays:
        record_path(folder, record.listing.part).unlink(missing_ok=True)
    if strays:
        with suppress(OSError):  # it is not empty, or another job was faster
            folder.rmdir()


def _is_bound(contents: Contents, index: KeyIndex) -> bool:
    """Return whether every row of a part is among the keys of an index, or was left out."""
    good = without(contents.manifest, [row.image for row in contents.bad_rows])
    return bool((index.find(all_keys(good)) >= 0).all())


def _nearness(records: Sequence[PartRecord]) -> tuple[float, str]:
    """Order sets by the share of their parts that is there, then by when the latest was made."""
    created = max(record.contents.provenance.created for record in records)
    return len(records) / records[0].listing.part.n_parts, created


def _incomplete(
    path: Path, nearest: Sequence[PartRecord], records: Sequence[PartRecord]
) -> CacheError:
    """Say which parts the set that is nearest to whole lacks, and how the other records differ."""
    first = nearest[0].listing
    there = {record.listing.part.number for record in nearest}
    n_parts = first.part.n_parts
    lacking = [f"{k}/{n_parts}" for k in range(1, n_parts + 1) if k not in there]
    others = [record for record in records if record.listing.cut != first.cut]
    foreign = [record for record in others if record.listing.digest != first.digest]
    recut = [record for record in others if record.listing.digest == first.digest]
    found = f"{len(lacking):,} of {n_parts:,} parts have not finished"
    if foreign:
        found += (
            f", and {names_of(foreign)} and {first.part} were not cut from the same list of images "
            "with the same options, such as --seed"
        )
    if recut:
        found += f", and {names_of(recut)} cut it into another number of parts"
    alike = f" with the options of {names_of(nearest)}" if foreign else ""
    return CacheError(f"{path}: {found}: run --part {_some(lacking)} again{alike}")


def _some(names: Sequence[str]) -> str:
    """List names, the first few of many."""
    more = f" and {len(names) - _N_NAMED:,} more" if len(names) > _N_NAMED else ""
    return ", ".join(names[:_N_NAMED]) + more


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
