"""Manifests: checked, compared, put together, and taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_cache.digests import KeyIndex, as_keys
from data_cache.errors import CacheError
from data_cache.layout import RESERVED
from data_cache.rows import BadImage, Manifest, Rows

_SPLIT_ORDER = ("train", "val", "test")


def in_split_order(names: Iterable[str]) -> list[str]:
    """Return the names of splits in the order of every cache: train, val, test, any others."""
    present = set(names)
    return [*(s for s in _SPLIT_ORDER if s in present), *sorted(present - set(_SPLIT_ORDER))]


def check_manifest(manifest: Manifest) -> None:
    """Raise :class:`CacheError` for a manifest that contradicts itself or cannot be written."""
    if len(set(manifest.classes)) != len(manifest.classes):
        raise CacheError("two classes have the same name")
    for split, rows in manifest.splits.items():
        if not split or split in RESERVED or "/" in split or split.startswith("."):
            raise CacheError(f"a split cannot be named {split!r}: choose a plain word")
        _check_rows(split, rows, len(manifest.classes))


def _check_rows(split: str, rows: Rows, n_classes: int) -> None:
    """Raise :class:`CacheError` for rows that contradict themselves."""
    n_ids, n_labels, n_contents = len(rows.ids), len(rows.labels), len(rows.content)
    if not n_ids == n_labels == n_contents:
        raise CacheError(
            f"{split}: {n_ids} ids, {n_labels} labels and {n_contents} contents do not match"
        )
    if rows.labels.ndim != 1:
        raise CacheError(f"{split}: labels of shape {rows.labels.shape}; one a row is supported")
    first = KeyIndex(rows.ids).first
    if len(first) < n_ids:
        again = np.ones(n_ids, bool)
        again[first] = False
        twice = rows.ids[again.argmax()].decode(errors="replace")
        raise CacheError(f"{split}: two rows have the id {twice}; every row needs its own")
    if n_labels and not 0 <= rows.labels.min() <= rows.labels.max() < n_classes:
        raise CacheError(
            f"{split}: labels reach from {rows.labels.min()} to {rows.labels.max()}, but there "
            f"are {n_classes} classes"
        )


def without(manifest: Manifest, images: Sequence[BadImage]) -> Manifest:
    """Return the manifest without the rows of these images."""
    splits = {}
    for split, rows in manifest.splits.items():
        bad = np.array([image.id.encode() for image in images if image.split == split], "S")
        splits[split] = rows.take(~np.isin(rows.ids, bad)) if len(bad) else rows
    return Manifest(manifest.classes, splits)


def same_manifest(one: Manifest, other: Manifest) -> bool:
    """Return whether two manifests say the same: classes, splits, every row, in order."""
    return (
        one.classes == other.classes
        and list(one.splits) == list(other.splits)
        and all(same_rows(rows, other.splits[split]) for split, rows in one.splits.items())
    )


def same_rows(one: Rows, other: Rows) -> bool:
    """Return whether two sets of rows are equal, in order."""
    if (one.groups is None) != (other.groups is None) or len(one) != len(other):
        return False
    pairs = [(one.ids, other.ids), (one.labels, other.labels), (one.content, other.content)]
    if one.groups is not None and other.groups is not None:
        pairs.append((one.groups, other.groups))
    return all(np.array_equal(left, right) for left, right in pairs)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Return rows one after the other; where only some have groups, the rest are one row each."""
    groups = None
    if any(part.groups is not None for part in parts):
        groups = np.concatenate(
            [part.ids if part.groups is None else part.groups for part in parts]
        )
    return Rows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.content for part in parts]),
        groups,
    )


def relabel(rows: Rows, names: tuple[str, ...], classes: tuple[str, ...]) -> Rows:
    """Return rows whose labels count into ``classes`` in place of ``names``."""
    if not names or names == classes[: len(names)]:
        return rows
    numbers = np.array([classes.index(name) if name in classes else -1 for name in names])
    return Rows(rows.ids, numbers[rows.labels], rows.content, rows.groups)


def all_keys(
    manifest: Manifest, chosen: Mapping[str, NDArray[np.int64]] | None = None
) -> NDArray[np.bytes_]:
    """Return the contents of every split, one after the other; where ``chosen``, of those rows."""
    splits = manifest.splits
    contents = [rows.content for rows in splits.values()]
    if chosen is not None:
        contents = [splits[split].content[rows] for split, rows in chosen.items()]
    if len(contents) == 1:
        return as_keys(contents[0])
    return as_keys(np.concatenate([np.empty((0, 32), np.uint8), *contents]))
