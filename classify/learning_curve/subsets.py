"""Fewer and fewer labeled images: nested, stratified subsets of rows, from two of a class up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from classify.selection.division import Part, draw_validation
from data_cache.errors import DataError

FIRST_OF_EACH_CLASS = 2
"""The smallest subset has so many rows of every class: one to fit to, one to choose on."""

_GROWTH = 2
_NEARLY_ALL = 0.75
_JUST_ABOVE_HALF = 0.6


def nested_order(labels: NDArray[np.int64], seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Return an order of rows (n,), whose every beginning is a stratified subset of them.

    First come :data:`FIRST_OF_EACH_CLASS` rows of every class, or as many as it has; from then on
    each class has its share of any beginning, to a row. Within a class the order is random.
    """
    rng = np.random.default_rng(seed)
    place, size = np.empty(len(labels)), np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows] = rng.permutation(len(rows))
        size[rows] = len(rows)
    ties = rng.random(len(labels))
    later = place >= FIRST_OF_EACH_CLASS
    return np.lexsort((ties, np.where(later, (place + 0.5) / size, place), later))


def subset_sizes(labels: NDArray[np.int64], n_most: int) -> tuple[int, ...]:
    """Return numbers of rows: from two of each class, each twice the last, up to ``n_most``."""
    counts = np.unique(labels, return_counts=True)[1]
    n, sizes = int(np.minimum(counts, FIRST_OF_EACH_CLASS).sum()), []
    while n < _NEARLY_ALL * n_most:
        sizes.append(n)
        n *= _GROWTH
    return (*sizes, n_most)


def divide_subset(rows: Part, fraction: float, seed: int) -> tuple[Part, Part]:
    """Return the rows to fit to and those to choose on; every class of two rows has both.

    ``fraction`` of the rows choose, more where a class has few. Groups are kept whole where that
    leaves any rows to choose on.

    Raises
    ------
    DataError
        No class has two rows.
    """
    counts = np.unique(rows.labels, return_counts=True)[1]
    several = counts[counts > 1]
    if not len(several):
        raise DataError(f"no class has two of the {len(rows)} rows: one fits, the other chooses")
    share = max(fraction, min(_JUST_ABOVE_HALF, _JUST_ABOVE_HALF / float(several.min())))
    chosen = draw_validation(rows.labels, rows.groups, fraction=share, seed=seed)
    if not chosen.any():
        chosen = draw_validation(rows.labels, None, fraction=share, seed=seed)
    return rows.take(~chosen), rows.take(chosen)
