"""What an update has to do and why: the source's rows held against what the cache has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_cache.bound import BadRow
from data_cache.digests import KeyIndex, as_keys
from data_cache.manifests import all_keys
from data_cache.rows import BadImage, Manifest
from data_cache.stock import Stock


@dataclass(frozen=True)
class Plan:
    """What an update has to do.

    Attributes
    ----------
    missing : for each split, positions in the manifest's rows, (m,) int64, of every content
        whose features are not there yet, at its first appearance
    n_rows : rows in the manifest
    n_new : of those, rows whose id and content the cache has not
    n_moved : rows whose content the cache has under another id
    n_changed : rows whose id the cache has with another content
    n_relabeled : rows whose id and content the cache has with another label
    n_finished : rows whose features an interrupted run left in shards
    n_gone : rows in the cache that are no longer in the source
    known_bad : images that an earlier run could not decode, and that have not changed
    prune : whether the rows that are gone are removed
    is_up_to_date : nothing at all is to be done, binding included
    """

    missing: Mapping[str, NDArray[np.int64]]
    n_rows: int
    n_new: int = 0
    n_moved: int = 0
    n_changed: int = 0
    n_relabeled: int = 0
    n_finished: int = 0
    n_gone: int = 0
    known_bad: tuple[BadImage, ...] = ()
    prune: bool = False
    is_up_to_date: bool = False

    @property
    def n_missing(self) -> int:
        """How many images have to go through the backbone."""
        return sum(map(len, self.missing.values()))

    @property
    def n_reused(self) -> int:
        """How many rows need no pass of their own: finished before, or copies of others."""
        return self.n_rows - self.n_missing - len(self.known_bad)

    def positions(self) -> Iterator[tuple[str, int]]:
        """Yield the split and the row of every image that has to go through the backbone."""
        for split, rows in self.missing.items():
            for row in rows.tolist():
                yield split, row

    def summary(self) -> str:
        """Say in words what is going to be done: ``17 new images, 2 changed: 19 to extract``."""
        return self._words(f"{self.n_missing:,} to extract")

    def outcome(self, n_failed: int = 0) -> str:
        """Say in words what was done: ``17 new images, 2 changed: 19 extracted``."""
        return self._words(f"{self.n_missing - n_failed:,} extracted")

    def _words(self, work: str) -> str:
        """Say what is new, what that costs, and what is gone or was left out."""
        parts = ["up to date" if self.is_up_to_date else f"{self._news()}: {self._work(work)}"]
        if self.n_gone:
            are = "is" if self.n_gone == 1 else "are"
            fate = "removed" if self.prune else "kept, `--prune` removes them"
            parts.append(f"{self.n_gone:,} {are} no longer in the source: {fate}")
        if self.known_bad:
            parts.append(f"{_count(len(self.known_bad), 'unreadable image')} left out as before")
        return "; ".join(parts)

    def _news(self) -> str:
        """Say how the source differs from the cache."""
        found = [
            _count(self.n_new, "new image") if self.n_new else "",
            f"{self.n_changed:,} changed" if self.n_changed else "",
            f"{self.n_moved:,} renamed, moved or copied" if self.n_moved else "",
            f"{_count(self.n_relabeled, 'other label')}" if self.n_relabeled else "",
        ]
        return ", ".join(filter(None, found)) or "no new images"

    def _work(self, work: str) -> str:
        """Say how many images go through the backbone, and why not more."""
        finished = [f"{self.n_finished:,} finished before"] if self.n_finished else []
        return ", ".join([*finished, work])


def missing_rows(
    manifest: Manifest, stock: Stock, bad_rows: Sequence[BadRow]
) -> dict[str, NDArray[np.int64]]:
    """Return, for each split, where a content without features appears for the first time."""
    bad = np.array([row.content for row in bad_rows], "S32")
    without = {}
    for split, rows in manifest.splits.items():
        here = ~stock.has(rows.content)
        if len(bad):
            here &= ~np.isin(as_keys(rows.content), bad)
        without[split] = np.flatnonzero(here).astype(np.int64)
    keys = all_keys(manifest, without)
    is_first = np.zeros(len(keys), bool)
    is_first[KeyIndex(keys).first] = True
    ends = np.cumsum([len(rows) for rows in without.values()])[:-1]
    parts = np.split(is_first, ends)
    return {split: rows[part] for (split, rows), part in zip(without.items(), parts, strict=True)}


def find_known_bad(manifest: Manifest, bad_rows: Sequence[BadRow]) -> tuple[BadRow, ...]:
    """Return the rows whose content an earlier run could not decode, with its reason."""
    images = {row.content: row.image for row in bad_rows if any(row.content)}
    if not images:
        return ()
    found = []
    for split, rows in manifest.splits.items():
        for at in np.flatnonzero(np.isin(as_keys(rows.content), np.array([*images], "S32"))):
            content = rows.content[at].tobytes()
            image = replace(images[content], split=split, id=rows.ids[at].decode())
            found.append(BadRow(image, content))
    return tuple(found)


def _count(n: int, noun: str) -> str:
    """Return ``1 image`` or ``3 images``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
