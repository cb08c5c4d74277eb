"""From all images of a source to its manifest: divided, drawn from, exclusions left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import SourceError
from data_cache.leaks import read_exclusions, warn_of_unknown
from data_cache.manifests import in_split_order
from data_cache.part import Part, PartListing
from data_cache.rows import BadImage, Manifest, Rows
from extract.sources.base import DEFAULT_TEST_FRACTION, Listed, Raw, SourceOptions
from extract.splitting import TEST, TRAIN, VALIDATION, Fractions, divide, draw_stratified

_OWN = frozenset({"part", "rehash"})
"""Options in which the parts of one source may differ."""

# What folders and columns call the splits, in lower case.
SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
}


@dataclass(frozen=True)
class Listing:
    """Every image of a source, in the order in which it is listed.

    Attributes
    ----------
    classes : what the labels of ``rows`` count into
    rows : all n rows
    splits : (n,) the split that the source names for each row, or None where it names none
    whole : where only a part of the source was read: how this lies in the whole; None for all of it
    """

    classes: tuple[str, ...]
    rows: Rows
    splits: NDArray[np.str_] | None = None
    whole: Whole | None = None


@dataclass(frozen=True)
class Whole:
    """How images that were read lie in the whole source.

    Attributes
    ----------
    positions : (n,) int64, which of the whole source's images they are
    digest : SHA-256 (64 hex digits) of the names of all images of the source
    """

    positions: NDArray[np.int64]
    digest: str


class ListedSource:
    """A source whose images are listed once and then read one by one, by position."""

    def __init__(
        self,
        name: str,
        listing: Listing,
        options: SourceOptions,
        *,
        unreadable: Sequence[BadImage] = (),
        notes: Sequence[str] = (),
    ) -> None:
        if options.part is None:
            _check_listing(name, listing)
        if options.group_duplicates:
            from extract.sources.look_alikes import joined_groups

            rows = listing.rows
            listing = replace(listing, rows=replace(rows, groups=joined_groups(rows, self.read)))
        self.name = name
        self.unreadable = tuple(unreadable)
        self._positions = arrange(listing, options)
        self.part = None if options.part is None else self._cut(options.part, listing, options)
        self.manifest = Manifest(
            listing.classes,
            {split: listing.rows.take(at) for split, at in self._positions.items()},
        )
        self.notes = (*notes, *(() if self.part else _notes(listing, options, self.manifest)))

    def fetch(self, split: str, row: int) -> Raw:
        """Return the image of a row; see :meth:`extract.sources.base.Source.fetch`."""
        return self.read(self.position(split, row))

    def listed(self, split: str, row: int) -> Listed:
        """Return the id and the digest of a row; see :meth:`extract.sources.base.Source.listed`."""
        rows = self.manifest.splits[split]
        return Listed(rows.ids[row].decode(), rows.content[row].tobytes())

    def position(self, split: str, row: int) -> int:
        """Return the position of a row in the listing."""
        return int(self._positions[split][row])

    def read(self, position: int) -> Raw:
        """Return the image at a position of the listing."""
        raise NotImplementedError

    def _cut(self, part: Part, listing: Listing, options: SourceOptions) -> PartListing:
        """Keep the rows of a part, and return how they lie in the whole."""
        order = {}
        for split, at in self._positions.items():
            kept = np.flatnonzero(part.has(listing.rows.ids[at]))
            order[split] = kept if listing.whole is None else listing.whole.positions[at[kept]]
            self._positions[split] = at[kept]
        return PartListing(part, order, _listing_digest(listing, options))


def arrange(listing: Listing, options: SourceOptions) -> dict[str, NDArray[np.int64]]:
    """Return, for each split, the positions of its rows in the listing, in order.

    Images are divided first, then the limits are drawn, then exclusions are left out: what is
    excluded is not made up for by other images. Exclusions that are not there are warned of.

    Raises
    ------
    SourceError
        A fraction is asked for that the source's own splits leave no room for.
    """
    keys = _keys(listing.rows)
    splits = _divided(listing, keys, options)
    limits = {TRAIN: options.train_limit, TEST: options.test_limit}
    excluded = _excluded(listing.rows, splits, options)
    arranged = {}
    for split in in_split_order(splits.tolist()):
        at = np.flatnonzero(splits == split)
        limit = limits.get(split)
        if limit is not None:
            drawn_keys = [keys[i] for i in at]
            at = at[draw_stratified(listing.rows.labels[at], drawn_keys, limit, options.seed)]
        ids = listing.rows.ids[at].tolist()
        kept = [(split, one.decode()) not in excluded for one in ids]
        arranged[split] = at[np.array(kept, bool)]
    return arranged


def _excluded(
    rows: Rows, splits: NDArray[np.str_], options: SourceOptions
) -> frozenset[tuple[str, str]]:
    """Return the rows to leave out; warn of those, of this part, that are not among ``rows``."""
    if options.exclude is None:
        return frozenset()
    excluded = read_exclusions(options.exclude)
    listed = list(excluded)
    if options.part is not None:
        here = options.part.has(np.array([str(name).encode() for _, name in listed], object))
        listed = [row for row, is_here in zip(listed, here, strict=True) if is_here]
    known = zip(splits.tolist(), (one.decode() for one in rows.ids.tolist()), strict=True)
    warn_of_unknown(options.exclude, frozenset(listed), known)
    return excluded


def _listing_digest(listing: Listing, options: SourceOptions) -> str:
    """Return the SHA-256 (64 hex digits) of what all parts of a source must agree on."""
    names = names_digest(listing.rows.ids.tolist()) if not listing.whole else listing.whole.digest
    chosen = {name: str(value) for name, value in vars(options).items() if name not in _OWN}
    return hashlib.sha256(json.dumps([names, listing.classes, chosen]).encode()).hexdigest()


def names_digest(names: Iterable[bytes]) -> str:
    """Return the SHA-256 (64 hex digits) of the names of images, in order."""
    return hashlib.sha256(b"\0".join(names)).hexdigest()


def _check_listing(name: str, listing: Listing) -> None:
    """Raise :class:`SourceError` where there is nothing to learn from."""
    n_rows = len(listing.rows)
    if not n_rows:
        raise SourceError(f"{name}: no images found")
    if not listing.classes[1:]:
        raise SourceError(
            f"{name}: one class only ({listing.classes[0]!r}), where two or more are expected"
        )
    if listing.splits is not None and TRAIN not in listing.splits:
        found = ", ".join(sorted(set(listing.splits.tolist())))
        raise SourceError(f"{name}: no split is called train, only {found}")


def _keys(rows: Rows) -> list[bytes]:
    """Return what each image is for divisions and draws: its group, else its content."""
    if rows.groups is None:
        return [digest.tobytes() for digest in rows.content]
    keys: list[bytes] = rows.groups.tolist()
    return keys


def _divided(listing: Listing, keys: list[bytes], options: SourceOptions) -> NDArray[np.str_]:
    """Return the split of each row: the source's own, with what the user wants cut from train."""
    if listing.splits is None:
        test = DEFAULT_TEST_FRACTION if options.test_fraction is None else options.test_fraction
        fractions = Fractions(options.validation_fraction or 0.0, test)
        return divide(keys, fractions, options.seed)
    fractions = Fractions(options.validation_fraction or 0.0, options.test_fraction or 0.0)
    for split, part, option in (
        (VALIDATION, fractions.validation, "--validation-fraction"),
        (TEST, fractions.test, "--test-fraction"),
    ):
        if part and split in listing.splits:
            raise SourceError(f"the source has a split {split} of its own: leave out {option}")
    splits = listing.splits.astype("<U5")
    training = splits == TRAIN
    cut = divide([keys[i] for i in np.flatnonzero(training)], fractions, options.seed)
    splits[training] = cut
    return splits


def _notes(listing: Listing, options: SourceOptions, manifest: Manifest) -> list[str]:
    """Say what the user should know about the division."""
    notes = []
    if listing.splits is None:
        counts = ", ".join(f"{len(rows)} {split}" for split, rows in manifest.splits.items())
        notes.append(
            f"the source names no splits: divided by content, seed {options.seed}: {counts} "
            "(--test-fraction, --validation-fraction)"
        )
    trained = set(manifest.splits[TRAIN].labels.tolist()) if TRAIN in manifest.splits else set()
    untrained = [name for i, name in enumerate(listing.classes) if i not in trained]
    if untrained:
        notes.append(f"no training images of {', '.join(map(repr, untrained))}")
    divided = _divided_groups(manifest)
    if divided:
        notes.append(f"{divided} groups are in more than one split, as the source has them")
    return notes


def _divided_groups(manifest: Manifest) -> int:
    """Return how many groups have rows in more than one split."""
    seen: dict[bytes, int] = {}
    for rows in manifest.splits.values():
        for group in set(rows.groups.tolist()) if rows.groups is not None else ():
            seen[group] = seen.get(group, 0) + 1
    return sum(count > 1 for count in seen.values())
