"""Rows to leave out of learning: copies of test rows, and rows that the user names."""

from __future__ import annotations

from pathlib import Path

from classify.selection.division import LabeledSplits
from data_cache.cache import FeatureCache
from data_cache.console import say, warn
from data_cache.leaks import (
    LeakReport,
    exact_duplicates,
    find_leaks,
    read_exclusions,
    warn_of_unknown,
)

LeftOut = frozenset[tuple[str, str]]
"""Rows by split and id."""


def rows_to_leave_out(
    cache: FeatureCache, test_split: str | None, *, drop_leaks: bool, exclude: str | None
) -> LeftOut:
    """Return the rows of other splits that nothing may be learned from; the test stays whole.

    ``drop_leaks`` finds copies across splits, near ones included (:mod:`data_cache.leaks`);
    without it, images that are in the test and elsewhere too only cause a warning. ``exclude`` is
    a CSV with the columns ``split`` and ``id``; rows in it that are not there are warned of.

    Raises
    ------
    DataError
        The CSV cannot be read, or lacks a column.
    """
    named = _named(cache, Path(exclude)) if exclude else frozenset()
    if test_split is None:
        return named
    if not drop_leaks:
        warn_of_copies(cache, test_split, named)
        return named
    leaking = find_leaks(cache, test_split=test_split).leaking
    say(f"{len(leaking):,} rows left out that have a copy, exact or near, in a later split")
    return named | leaking


def _named(cache: FeatureCache, path: Path) -> LeftOut:
    """Return the rows that a CSV lists; warn of those that the cache does not have."""
    named = read_exclusions(path)
    ids = ((split, cache.rows(split).ids.tolist()) for split in cache.split_names)
    warn_of_unknown(path, named, ((split, one.decode()) for split, names in ids for one in names))
    return named


def warn_of_copies(cache: LabeledSplits, test_split: str, named: LeftOut = frozenset()) -> None:
    """Warn of rows that are in the test too; their contents tell, so this costs little."""
    splits = {split: cache.rows(split) for split in cache.split_names}
    report = LeakReport(exact_duplicates(splits, cache.classes), (), test_split)
    if report.leaking - named:
        warn(
            f"{report.n_leaked():,} rows of {test_split} are in other splits too, so its accuracy "
            "will look better than it is: see `feature-cache leaks`, or use --drop-leaks"
        )
