"""The rows of a run found again in a source: the same images train, validate and test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classify.results.runs import Run
from classify.selection.division import TRAINING_SPLIT, VALIDATION_SPLIT
from data_cache.errors import DataError
from data_cache.rows import Manifest, Rows
from extract.pipeline import Position


@dataclass(frozen=True)
class SourceRows:
    """Rows of one split of a source: what is known of them, and where they are, (n,) int64."""

    split: str
    rows: Rows
    at: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def positions(self) -> list[Position]:
        """The split and the row of each image."""
        return [(self.split, row) for row in self.at.tolist()]


@dataclass(frozen=True)
class RunRows:
    """The rows of each part of a run; ``test`` is None where the run left its test alone."""

    training: SourceRows
    validation: SourceRows
    test: SourceRows | None
    n_others: int

    @classmethod
    def find(cls, run: Run, manifest: Manifest, source: str) -> RunRows:
        """Find the rows that a run's ``split.csv`` names.

        ``n_others`` counts the source's rows, in the splits looked at, that no part names: rows
        that the run left out, or that were added since. They take no part.

        Raises
        ------
        DataError
            The classes are others, or rows of the run are not in the source.
        """
        _check_classes(run, manifest, source)
        drawn = run.metrics.get("validation_drawn", True)
        splits = {
            "train": TRAINING_SPLIT,
            "validation": TRAINING_SPLIT if drawn else VALIDATION_SPLIT,
            "test": run.metrics.get("test_split"),
        }
        found = {
            part: _find_part(run, part, split, manifest, source)
            for part, split in splits.items()
            if split is not None
        }
        n_listed = sum(len(manifest.splits[one]) for one in {part.split for part in found.values()})
        n_known = sum(map(len, found.values())) + len(run.part_ids("dropped"))
        return cls(found["train"], found["validation"], found.get("test"), n_listed - n_known)


def _check_classes(run: Run, manifest: Manifest, source: str) -> None:
    """Refuse a source with other classes; name the first that differ."""
    if manifest.classes == run.classes:
        return
    raise DataError(
        f"{source} has the classes {_some(manifest.classes, run.classes)}, but the head of "
        f"{run.path} tells apart {_some(run.classes, manifest.classes)}: expected the same, in the "
        "same order"
    )


def _find_part(run: Run, part: str, split: str, manifest: Manifest, source: str) -> SourceRows:
    """Find the rows of one part in a split."""
    if split not in manifest.splits:
        raise DataError(
            f"{source} has no split {split!r}, where the {part} rows of {run.path} are: it has "
            f"{', '.join(manifest.splits)}"
        )
    rows = manifest.splits[split]
    place = {name: row for row, name in enumerate(rows.ids.tolist())}
    wanted = [name.encode() for name in run.part_ids(part)]
    missing = [name for name in wanted if name not in place]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing):,} of the {len(wanted):,} {part} rows of {run.path} "
            f"(first: {missing[0].decode()}): give the source that its features are of, with the "
            "options that it was extracted with"
        )
    at = np.array([place[name] for name in wanted], np.int64)
    return SourceRows(split, rows.take(at), at)


def _some(names: Iterable[str], others: Iterable[str]) -> str:
    """Return a list of names, those that the other has not first, a few of many."""
    most = 5
    known = set(others)
    ordered = sorted(names, key=lambda name: name in known)
    shown = ", ".join(map(repr, ordered[:most]))
    return shown if len(ordered) <= most else f"{shown} and {len(ordered) - most} more"
