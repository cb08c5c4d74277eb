"""Join a source's rows with the rows that a cache has already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_cache.digests import KeyIndex, as_keys
from data_cache.errors import CacheError
from data_cache.manifests import all_keys, concatenate, relabel
from data_cache.rows import Manifest, Rows

Masks = Mapping[str, NDArray[np.bool_]]
"""For each split of the cache, a bool for each of its rows, (n,)."""


@dataclass(frozen=True)
class Joined:
    """The manifest to bind, and how source and cache differ.

    Attributes
    ----------
    manifest : the source's rows, and those of the cache that stay
    n_new : rows of the source whose id and content the cache has not
    n_moved : rows whose id the cache has not, but their content: renamed, moved, copied
    n_changed : rows whose id the cache has with another content
    n_relabeled : rows whose id and content the cache has with another label
    n_gone : rows of the cache that are no longer in the source
    """

    manifest: Manifest
    n_new: int
    n_moved: int = 0
    n_changed: int = 0
    n_relabeled: int = 0
    n_gone: int = 0


def join(old: Manifest | None, new: Manifest, *, prune: bool, append: bool) -> Joined:
    """Join the rows of a source, ``new``, with those of the cache, ``old``.

    A row of the cache is gone when its id is not in the same split of the source, unless a row that
    is new in the source has its content: a file that was only renamed, or moved to another split,
    is not gone. Of copies, each new row stands for one. Rows that are gone stay after the source's
    rows, unless ``prune``. With ``append`` every row of the cache stays, before the new ones.

    Raises
    ------
    CacheError
        With ``append``, an id stands for another content or another class in the cache.
    """
    if old is None:
        return Joined(new, n_new=len(new))
    matches = {split: _match(rows, new, split, old.classes) for split, rows in old.splits.items()}
    if append:
        _refuse_other(old, {s: match.changed for s, match in matches.items()}, "content")
        _refuse_other(old, {s: match.relabeled for s, match in matches.items()}, "label")
    gone = _gone(old, new, matches, append=append)
    kept = {split: match.absent for split, match in matches.items()} if append else gone
    stay = {} if prune and not append else {s: r.take(kept[s]) for s, r in old.splits.items()}
    n_known = sum(int((~match.absent).sum()) for match in matches.values())
    n_moved = _n_moved(old, new)
    return Joined(
        _union(old, new, stay, append=append),
        n_new=len(new) - n_known - n_moved,
        n_moved=n_moved,
        n_changed=sum(int(match.changed.sum()) for match in matches.values()),
        n_relabeled=sum(int(match.relabeled.sum()) for match in matches.values()),
        n_gone=sum(int(mask.sum()) for mask in gone.values()),
    )


@dataclass(frozen=True)
class _Match:
    """For each row of a split of the cache, (n,) bool: how the source has its id.

    ``absent`` not at all, ``changed`` with another content, ``relabeled`` with another label.
    """

    absent: NDArray[np.bool_]
    changed: NDArray[np.bool_]
    relabeled: NDArray[np.bool_]


def _match(rows: Rows, new: Manifest, split: str, names: tuple[str, ...]) -> _Match:
    """Hold a split of the cache, whose labels count into ``names``, against the source."""
    changed, relabeled = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    if split not in new.splits:
        return _Match(np.ones(len(rows), bool), changed, relabeled)
    at = KeyIndex(new.splits[split].ids).find(rows.ids)
    here = at >= 0
    found, known = new.splits[split].take(at[here]), rows.take(here)
    changed[here] = as_keys(found.content) != as_keys(known.content)
    numbers = np.array([names.index(name) if name in names else -1 for name in new.classes])
    relabeled[here] = ~changed[here] & (numbers[found.labels] != known.labels)
    return _Match(~here, changed, relabeled)


def _gone(
    old: Manifest, new: Manifest, matches: Mapping[str, _Match], *, append: bool
) -> dict[str, NDArray[np.bool_]]:
    """Say which rows of the cache are no longer in the source; with ``append`` none is."""
    if append:
        return {split: np.zeros(len(rows), bool) for split, rows in old.splits.items()}
    absent = np.concatenate([np.zeros(0, bool), *(matches[split].absent for split in old.splits)])
    absent[np.flatnonzero(absent)[_taken_over(_part(old, absent), _news(old, new))]] = False
    ends = np.cumsum([len(rows) for rows in old.splits.values()])[:-1]
    return dict(zip(old.splits, np.split(absent, ends), strict=True))


@dataclass(frozen=True)
class _Named:
    """Rows of any splits: their ids, (n,) bytes, and their contents as keys, (n,) bytes."""

    ids: NDArray[np.bytes_]
    keys: NDArray[np.bytes_]


def _part(manifest: Manifest, mask: NDArray[np.bool_]) -> _Named:
    """Return some of the rows of a manifest, whose splits lie one after the other."""
    ids = [rows.ids for rows in manifest.splits.values()]
    return _Named(np.concatenate([np.empty(0, "S1"), *ids])[mask], all_keys(manifest)[mask])


def _news(old: Manifest, new: Manifest) -> _Named:
    """Return the rows of the source that the cache has not: not the id, or not this content."""
    masks = [np.zeros(0, bool)]
    for split, rows in new.splits.items():
        known = old.splits[split] if split in old.splits else rows.take(np.zeros(0, np.int64))
        at = KeyIndex(known.ids).find(rows.ids)
        same = at >= 0
        same[same] = as_keys(known.content[at[same]]) == as_keys(rows.content[same])
        masks.append(~same)
    return _part(new, np.concatenate(masks))


def _taken_over(absent: _Named, news: _Named) -> NDArray[np.bool_]:
    """Return which of the absent rows a new row stands for, (n,) bool; one new row for each.

    Of absent copies, those whose id is among the new ones, in another split, come first.
    """
    keys, counts = np.unique(news.keys, return_counts=True)
    at = KeyIndex(keys).find(absent.keys)
    n_standing = np.where(at >= 0, np.append(counts, 0)[at], 0)
    order = np.lexsort((~np.isin(absent.ids, news.ids), absent.keys))
    ordered = absent.keys[order]
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return rank < n_standing


def _n_moved(old: Manifest, new: Manifest) -> int:
    """Count rows of the source whose id the cache has not in that split, but their content."""
    contents, n_moved = KeyIndex(all_keys(old)), 0
    for split, rows in new.splits.items():
        known = contents.find(as_keys(rows.content)) >= 0
        if split in old.splits:
            known &= KeyIndex(old.splits[split].ids).find(rows.ids) < 0
        n_moved += int(known.sum())
    return n_moved


def _refuse_other(old: Manifest, differs: Masks, what: str) -> None:
    """Refuse to append rows whose ids stand for another content, or label, in the cache."""
    names = [name for split, mask in differs.items() for name in old.splits[split].ids[mask]]
    if names:
        raise CacheError(
            f"{len(names):,} of the images to append have an id that the cache has with another "
            f"{what} (first: {names[0].decode()}): extract this source into a cache of its own, "
            "then join the two with `feature-cache merge --prefix`"
        )


def _union(old: Manifest, new: Manifest, stay: Mapping[str, Rows], *, append: bool) -> Manifest:
    """Return the manifest of the new rows and of the old ones that stay, labels by name."""
    stay = {split: rows for split, rows in stay.items() if len(rows)}
    classes = _classes(old, new, stay)
    before = {split: relabel(rows, old.classes, classes) for split, rows in stay.items()}
    after = {split: relabel(rows, new.classes, classes) for split, rows in new.splits.items()}
    first, second = (before, after) if append else (after, before)
    names = dict.fromkeys([*(s for s in old.splits if s in stay or s in new.splits), *new.splits])
    return Manifest(
        classes,
        {split: concatenate([p[split] for p in (first, second) if split in p]) for split in names},
    )


def _classes(old: Manifest, new: Manifest, stay: Mapping[str, Rows]) -> tuple[str, ...]:
    """Return the old classes that still have a meaning, in their order, then the new ones.

    So the label of a class never changes by an update that only adds.
    """
    used = {old.classes[label] for rows in stay.values() for label in np.unique(rows.labels)}
    kept = [name for name in old.classes if name in used or name in new.classes]
    return (*kept, *(name for name in new.classes if name not in kept))
