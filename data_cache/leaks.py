"""Rows that give the answer away: the same image, or nearly the same, in more than one split.

*Exact* duplicates have the same content. *Near* duplicates are recognized by their features: seen
from the mean of the training features, two rows point in nearly the same direction. What "nearly"
is depends on how densely a set lies, so it is measured anew for each row of the held-out split.
With s the cosine to a training row and s10 that to the tenth nearest, the pair is reported where

    s >= min(0.99, max(0.85, 1 - (1 - s10) / 3)),

that is, where it is close (0.85) and three times closer than what surrounds it, or all but
identical (0.99). Measured with MobileNetV2, of 100 photos this finds as a copy: saved again as JPEG
of quality 75 all, of quality 30 82; darker or brighter 96; cropped by 3% 93; mirrored 73; halved
58; made gray 18; cropped by 10% 12. Of strangers it reports none among 1,597 photos, whose nearest
have 0.80, and 0.3% of the test rows of Fashion-MNIST, where 0.85 alone would report a tenth: its
trousers lie so densely that strangers reach 0.98. More than nine copies of one image hide one
another below 0.99. ``threshold`` replaces the rule by one number.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_cache.cache import FeatureCache
from data_cache.console import warn
from data_cache.digests import as_keys
from data_cache.errors import CacheError, DataError
from data_cache.files import whole_file
from data_cache.neighbors import nearest, unit_vectors
from data_cache.rows import Rows

TEST_SPLIT = "test"
CLOSE = 0.85
IDENTICAL = 0.99
_ISOLATION = 3.0
_N_NEAREST = 10
_QUERY_ROWS = 8192
_REFERENCE_ROWS = 2048

_COLUMNS = (
    "kind",
    "split",
    "id",
    "label",
    "other_split",
    "other_id",
    "other_label",
    "similarity",
    "conflict",
)


@dataclass(frozen=True)
class Place:
    """A row of a cache, for people: its split, its id and the name of its class."""

    split: str
    id: str
    label: str


@dataclass(frozen=True)
class Copies:
    """Rows, two or more, that have the same content."""

    content: str
    places: tuple[Place, ...]

    @property
    def crosses_splits(self) -> bool:
        """Whether the rows are in more than one split."""
        return len({place.split for place in self.places}) > 1

    @property
    def conflicts(self) -> bool:
        """Whether the rows have different labels: at least one of them is wrong."""
        return len({place.label for place in self.places}) > 1


@dataclass(frozen=True)
class NearPair:
    """Two rows of different splits and contents that are nearly the same; cosine in [-1, 1]."""

    place: Place
    other: Place
    similarity: float

    @property
    def conflicts(self) -> bool:
        """Whether the two have different labels."""
        return self.place.label != self.other.label


@dataclass(frozen=True)
class LeakReport:
    """What :func:`find_leaks` found.

    Attributes
    ----------
    copies : exact duplicates, within and across splits
    near : near-duplicates across splits, the closest first
    test_split : the split that is kept whole
    """

    copies: tuple[Copies, ...]
    near: tuple[NearPair, ...]
    test_split: str = TEST_SPLIT

    @property
    def leaking(self) -> frozenset[tuple[str, str]]:
        """The rows, as (split, id), to leave out so that no copy is on two sides.

        The test split is kept whole, and then validation: it is the training row that goes.
        """
        dropped: set[tuple[str, str]] = set()
        pairs = sorted(self._crossing_pairs(), key=lambda pair: -_rank(pair[0], self.test_split))
        for kept, other in pairs:
            if (kept.split, kept.id) not in dropped:
                dropped.add((other.split, other.id))
        return frozenset(dropped)

    def n_leaked(self) -> int:
        """Return how many rows of the test split have a copy, exact or near, elsewhere."""
        return len({kept for kept, _ in self._crossing_pairs() if kept.split == self.test_split})

    def summary(self) -> list[str]:
        """Return what was found, a line each."""
        lines = self.copies_in_words() or ["no image is in it more than once"]
        are = "pair across splits is" if len(self.near) == 1 else "pairs across splits are"
        lines.append(
            f"{len(self.near):,} {are} nearly the same"
            + _conflicting(sum(pair.conflicts for pair in self.near))
        )
        if leaked := self.n_leaked():
            have = (
                f"row of {self.test_split} has"
                if leaked == 1
                else f"rows of {self.test_split} have"
            )
            lines.append(f"{leaked:,} {have} a copy in another split")
        return lines

    def write(self, *, leaks: Path | None = None, exclusions: Path | None = None) -> None:
        """Write the pairs, and the rows to leave out, to those files that are given."""
        if leaks:
            write_leaks(self, leaks)
        if exclusions:
            write_exclusions(self, exclusions)

    def copies_in_words(self) -> list[str]:
        """Return what was found of exact duplicates, a line each; nothing where there are none."""
        within = [one for one in self.copies if not one.crosses_splits]
        across = [one for one in self.copies if one.crosses_splits]
        found = ((across, "in more than one split"), (within, "more than once in a split"))
        return [
            f"{len(copies):,} {'image is' if len(copies) == 1 else 'images are'} {where}"
            + _conflicting(sum(c.conflicts for c in copies))
            for copies, where in found
            if copies
        ]

    def _crossing_pairs(self) -> Iterator[tuple[Place, Place]]:
        """Yield pairs of rows in different splits, the one to keep first."""
        for one in self.copies:
            for place in one.places:
                for other in one.places:
                    if _rank(place, self.test_split) > _rank(other, self.test_split):
                        yield place, other
        for pair in self.near:
            first, second = pair.place, pair.other
            swapped = _rank(first, self.test_split) < _rank(second, self.test_split)
            yield (second, first) if swapped else (first, second)


def exact_duplicates(splits: Mapping[str, Rows], classes: Sequence[str]) -> tuple[Copies, ...]:
    """Return the contents that more than one row has; cheap, for any manifest.

    Parameters
    ----------
    splits : the rows of each split
    classes : what their labels count into
    """
    if not splits:
        return ()
    content = np.concatenate([rows.content for rows in splits.values()])
    keys = as_keys(content)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, keys[order[1:]] != keys[order[:-1]]])[: len(order)]
    lengths = np.diff(np.append(starts, len(order)))
    places = _Places(splits, classes)
    return tuple(
        Copies(
            content[order[start]].tobytes().hex(),
            tuple(places[row] for row in order[start : start + length].tolist()),
        )
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        if length > 1
    )


def find_leaks(
    cache: FeatureCache, *, test_split: str = TEST_SPLIT, threshold: float | None = None
) -> LeakReport:
    """Find exact duplicates anywhere in a cache, and near-duplicates across its splits.

    Memory stays flat: features are read block by block.

    Parameters
    ----------
    cache : an open cache
    test_split : the split that is kept whole
    threshold : the cosine from which two rows are near-duplicates; None is the rule above

    Raises
    ------
    CacheError
        There is no such split; only ``test`` need not be there.
    """
    if test_split not in {*cache.split_names, TEST_SPLIT}:
        raise CacheError(
            f"{cache.path} has no split {test_split!r} to keep whole: it has "
            f"{', '.join(cache.split_names)}"
        )
    splits = {split: cache.rows(split) for split in cache.split_names}
    places = {split: _Places({split: rows}, cache.classes) for split, rows in splits.items()}
    near: list[NearPair] = []
    ordered = sorted(splits, key=lambda split: _rank_of(split, test_split))
    for i, reference in enumerate(ordered):
        for query in ordered[i + 1 :]:
            for row, other, similarity in _near_rows(cache, query, reference, threshold):
                if (splits[query].content[row] != splits[reference].content[other]).any():
                    pair = (places[query][row], places[reference][other])
                    near.append(NearPair(*pair, similarity))
    near.sort(key=lambda pair: -pair.similarity)
    return LeakReport(exact_duplicates(splits, cache.classes), tuple(near), test_split)


def leaks_in(
    path: Path, *, test_split: str = TEST_SPLIT, threshold: float | None = None
) -> LeakReport:
    """Open the cache at ``path`` and find its leaks; see :func:`find_leaks`.

    Raises
    ------
    CacheError
        There is no cache, or it is not what was written, or it has no such split.
    """
    with FeatureCache.open(path) as cache:
        return find_leaks(cache, test_split=test_split, threshold=threshold)


def write_leaks(report: LeakReport, path: Path) -> None:
    """Write a report as CSV: a line for each pair of rows, their similarity, their labels."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        for one in report.copies:
            first, *others = one.places
            for other in others:
                writer.writerow(_line("exact", first, other, 1.0))
        for pair in report.near:
            writer.writerow(_line("near", pair.place, pair.other, pair.similarity))


def write_exclusions(report: LeakReport, path: Path) -> None:
    """Write the rows to leave out as a CSV that ``--exclude`` takes."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("split", "id"))
        writer.writerows(sorted(report.leaking))


def read_exclusions(path: Path) -> frozenset[tuple[str, str]]:
    """Read the rows to leave out: a CSV with the columns ``split`` and ``id``, others ignored.

    Raises
    ------
    DataError
        The file cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = {"split", "id"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"{path} has the columns {', '.join(reader.fieldnames or ())}: "
                    f"'split' and 'id' are expected"
                )
            return frozenset((row["split"], row["id"]) for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the exclusions in {path} cannot be read: {error}") from error


def warn_of_unknown(
    path: Path, listed: frozenset[tuple[str, str]], known: Iterable[tuple[str, str]]
) -> None:
    """Warn of rows, listed in the file at ``path``, that are not among the ``known`` ones."""
    unknown = sorted(listed.difference(known), key=str)
    if unknown:
        split, name = unknown[0]
        warn(
            f"{len(unknown):,} of {len(listed):,} listed rows were not found: first one {name!r} "
            f"of split {split!r} ({path}): ids and splits are expected as the cache has them"
        )


def kept_rows(split: str, rows: Rows, left_out: frozenset[tuple[str, str]]) -> NDArray[np.bool_]:
    """Return which rows of a split are not among those left out: an (n,) mask."""
    return np.array([(split, one.decode()) not in left_out for one in rows.ids.tolist()], bool)


class _Places:
    """The rows of splits, one split after the other, as places."""

    def __init__(self, splits: Mapping[str, Rows], classes: Sequence[str]) -> None:
        self._splits = list(splits.items())
        self._starts = np.cumsum([0, *(len(rows) for rows in splits.values())])
        self._classes = classes

    def __getitem__(self, position: int) -> Place:
        at = int(np.searchsorted(self._starts, position, side="right")) - 1
        split, rows = self._splits[at]
        row = position - int(self._starts[at])
        return Place(split, rows.ids[row].decode(), self._classes[rows.labels[row]])


def _near_rows(
    cache: FeatureCache, query: str, reference: str, threshold: float | None
) -> Iterator[tuple[int, int, float]]:
    """Yield (row of ``query``, row of ``reference``, cosine) of near-duplicates."""
    origin = _mean(cache, reference)
    for values, rows in cache.blocks(query, _QUERY_ROWS):
        references = (
            unit_vectors(block, origin) for block, _ in cache.blocks(reference, _REFERENCE_ROWS)
        )
        found, at = nearest(unit_vectors(values, origin), references, _N_NEAREST)
        bound = _bounds(found[:, -1]) if threshold is None else np.full(len(found), threshold)
        for row, k in np.argwhere(found >= bound[:, None]).tolist():
            if at[row, k] >= 0:
                yield rows.start + row, int(at[row, k]), float(found[row, k])


def _bounds(tenth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the least cosine of a near-duplicate, for rows whose tenth nearest is at ``tenth``."""
    return np.minimum(IDENTICAL, np.maximum(CLOSE, 1 - (1 - tenth) / _ISOLATION))


def _mean(cache: FeatureCache, split: str) -> NDArray[np.float32]:
    """Return the mean of the features of a split, (d,) float32."""
    total = np.zeros(cache.n_features)
    for block, _ in cache.blocks(split):
        total += block.sum(axis=0, dtype=np.float64)
    return (total / max(1, cache.n_rows(split))).astype(np.float32)


def _rank(place: Place, test_split: str) -> int:
    return _rank_of(place.split, test_split)


def _rank_of(split: str, test_split: str) -> int:
    """Return how firmly a split is kept whole: training gives way to any other, all to the test."""
    if split == test_split:
        return 2
    return 0 if split == "train" else 1


def _conflicting(count: int) -> str:
    """Say how many have labels that conflict, where any has."""
    return f", {count} of them with different labels" if count else ""


def _line(kind: str, place: Place, other: Place, similarity: float) -> tuple[object, ...]:
    conflict = "yes" if place.label != other.label else "no"
    one, two = (place.split, place.id, place.label), (other.split, other.id, other.label)
    return (kind, *one, *two, f"{similarity:.4f}", conflict)
