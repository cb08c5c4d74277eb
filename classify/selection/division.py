"""Which rows a model learns from, and on which it is chosen: training and validation parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from classify.streams import join_features
from data_cache.console import warn
from data_cache.errors import CacheError, DataError, ParameterError
from data_cache.leaks import kept_rows
from data_cache.rows import Rows

TRAINING_SPLIT, VALIDATION_SPLIT = "train", "val"
_NEARLY_ALL = 1 - 1e-9

RareClass = Literal["keep", "drop", "error"]
"""What becomes of a class too rare to have a validation row: its rows stay in training, they are
dropped, or the command refuses."""


class LabeledSplits(Protocol):
    """What rows are divided: those of a feature cache, or whatever else has labels and splits."""

    @property
    def path(self) -> Path:
        """What the user is told that the rows are of."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that labels count into."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits there are."""

    def rows(self, split: str) -> Rows:
        """Return what is known of the rows of a split."""

    def features(self, split: str) -> Any:
        """Return what is learned from, a row each: features, (n, d), or images, (n, h, w, c).

        Features may be streamed, see :mod:`classify.streams`.
        """


@dataclass(frozen=True)
class Part:
    """Rows with one task.

    Attributes
    ----------
    ids : (n,) UTF-8 bytes
    features : (n, d) float32, in memory or streamed; or images, (n, h, w, c) uint8, for a network
        that takes those
    labels : (n,) int64
    groups : (n,) UTF-8 bytes, or None; rows of one group are never divided
    """

    ids: NDArray[np.bytes_]
    features: Any
    labels: NDArray[np.int64]
    groups: NDArray[np.bytes_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> Part:
        """Return the rows that a mask (n,) or positions (m,) choose."""
        groups = None if self.groups is None else self.groups[chosen]
        return Part(self.ids[chosen], self.features[chosen], self.labels[chosen], groups)

    def join(self, other: Part) -> Part:
        """Return these rows followed by the other's.

        Where one of the two has groups, each row of the other is a group of its own, by its id.
        """
        groups = None
        if self.groups is not None or other.groups is not None:
            groups = np.concatenate(
                [one.ids if one.groups is None else one.groups for one in (self, other)]
            )
        return Part(
            np.concatenate([self.ids, other.ids]),
            join_features(self.features, other.features),
            np.concatenate([self.labels, other.labels]),
            groups,
        )


@dataclass(frozen=True)
class Division:
    """Training and validation rows, and those that were dropped.

    ``drawn`` says whether validation was drawn from the training split, or is a split of its own.
    """

    training: Part
    validation: Part
    dropped: Part
    drawn: bool


def divide(
    cache: LabeledSplits,
    *,
    fraction: float,
    seed: int,
    rare_class: RareClass = "keep",
    test_split: str | None = None,
    left_out: frozenset[tuple[str, str]] = frozenset(),
    is_learned: Callable[[NDArray[np.bytes_]], NDArray[np.bool_]] | None = None,
) -> Division:
    """Return the parts: the split ``val`` validates where there is one, else rows are drawn.

    Drawn rows are ``fraction`` of the training rows, see :func:`draw_validation`. A split that is
    the test never validates. Rows of ``left_out``, by split and id, are in no part. ``is_learned``
    says of ids (n,) which are of rows that a model learned from before: those are never drawn, see
    :func:`draw_unlearned`.

    Raises
    ------
    CacheError
        The cache has no split ``train``.
    DataError
        Nothing to learn or to choose from: a part without rows, one class only, a class too rare
        where ``rare_class`` is ``"error"``.
    """
    if TRAINING_SPLIT not in cache.split_names:
        raise CacheError(
            f"{cache.path} has no split {TRAINING_SPLIT!r} to learn from, only: "
            f"{', '.join(cache.split_names)}: extract it from a source that has one"
        )
    part = read_kept(cache, TRAINING_SPLIT, left_out)
    if VALIDATION_SPLIT in cache.split_names and test_split != VALIDATION_SPLIT:
        validation = read_kept(cache, VALIDATION_SPLIT, left_out)
        division = Division(part, validation, part.take(np.zeros(len(part), bool)), drawn=False)
    else:
        if is_learned is None:
            chosen = draw_validation(part.labels, part.groups, fraction=fraction, seed=seed)
        else:
            chosen = draw_unlearned(part, is_learned(part.ids), fraction=fraction, seed=seed)
        division = _divide_drawn(part, chosen, cache.classes, rare_class)
    _check_division(division, cache.classes, fraction)
    return division


def read_kept(cache: LabeledSplits, split: str, left_out: frozenset[tuple[str, str]]) -> Part:
    """Return the rows of a split that ``left_out``, by split and id, does not name."""
    part = read_part(cache, split)
    return part.take(kept_rows(split, cache.rows(split), left_out)) if left_out else part


def read_part(cache: LabeledSplits, split: str) -> Part:
    """Return a whole split."""
    rows = cache.rows(split)
    return Part(rows.ids, cache.features(split), rows.labels, rows.groups)


def draw_validation(
    labels: NDArray[np.int64],
    groups: NDArray[np.bytes_] | None,
    *,
    fraction: float,
    seed: int,
) -> NDArray[np.bool_]:
    """Choose validation rows: a mask (n,), stratified, with every group whole.

    The share of a class of n rows is ``fraction`` * n. Where that is half a row or less the class
    is rare and gives none. The others give their shares rounded down, at least one row, and those
    with the largest remainders one more, until ``fraction`` of all rows are chosen; every class
    keeps a row for training. Of groups, (n,) names, each is taken in a random order if that brings
    the classes' parts nearer to ``fraction``, in squares.

    Raises
    ------
    ParameterError
        ``fraction`` is not within (0, 1).
    """
    if not 0 < fraction < 1:
        raise ParameterError(f"validation_split is {fraction!r}: expected a share within (0, 1)")
    rng = np.random.default_rng(seed)
    if groups is not None:
        return _draw_groups(labels, groups, fraction, rng)
    classes, sizes = np.unique(labels, return_counts=True)
    chosen = np.zeros(len(labels), bool)
    for label, n_chosen in zip(classes, _shares(sizes, fraction), strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:n_chosen]] = True
    return chosen


def draw_unlearned(
    part: Part, learned: NDArray[np.bool_], *, fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Choose validation rows among those that no model learned from: a mask (n,).

    ``learned`` (n,) are the others, and with one of them goes its whole group. As many rows are
    chosen as :func:`draw_validation` would choose of all, or nearly all where there are fewer: each
    class keeps a row.

    Raises
    ------
    DataError
        There are no such rows.
    """
    barred = learned
    if part.groups is not None:
        barred = np.isin(part.groups, part.groups[learned])
    fresh = np.flatnonzero(~barred)
    if not len(fresh):
        raise DataError(
            f"all {len(part):,} training rows were learned from by the head to start from, so none "
            "can validate: add rows, or start from a run with --refit train"
        )
    share = min(fraction * len(part) / len(fresh), _NEARLY_ALL)
    groups = None if part.groups is None else part.groups[fresh]
    chosen = np.zeros(len(part), bool)
    chosen[fresh[draw_validation(part.labels[fresh], groups, fraction=share, seed=seed)]] = True
    return chosen


def _shares(sizes: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return how many rows each class of ``sizes`` (k,) rows gives; see :func:`draw_validation`."""
    exact = fraction * sizes
    at_least = np.rint(exact).clip(max=1)
    given = np.clip(np.floor(exact), at_least, sizes - 1).astype(np.int64)
    most = np.where(at_least, np.minimum(exact, sizes - 1), 0)
    for code in np.argsort(given - exact, kind="stable"):
        if given.sum() < round(exact.sum()) and given[code] < most[code]:
            given[code] += 1
    return given


def _divide_drawn(
    part: Part, chosen: NDArray[np.bool_], classes: Sequence[str], rare_class: RareClass
) -> Division:
    """Return the parts that a mask of validation rows makes; deal with classes it missed."""
    missed = np.setdiff1d(part.labels, part.labels[chosen])
    rare = np.isin(part.labels, missed)
    if missed.size:
        found = (
            f"too few rows to give any to validation: {_names(classes, missed)} "
            f"({int(rare.sum())} rows)"
        )
        if rare_class == "error":
            raise DataError(f"{found}: add rows, or allow it with --rare-class keep or drop")
        warn(f"{found}; {'they stay in training' if rare_class == 'keep' else 'left out'}")
    dropped = rare if rare_class == "drop" else np.zeros(len(part), bool)
    return Division(
        part.take(~chosen & ~dropped), part.take(chosen), part.take(dropped), drawn=True
    )


def _check_division(division: Division, classes: Sequence[str], fraction: float) -> None:
    """Refuse parts from which nothing can be learnt or chosen; warn of classes never learnt."""
    seen, validated = np.unique(division.training.labels), np.unique(division.validation.labels)
    if len(seen) < 2:  # noqa: PLR2004
        raise DataError(
            f"the {len(division.training)} training rows have {len(seen)} class"
            f"{_in_brackets(_names(classes, seen))}: expected two or more"
        )
    if not np.isin(validated, seen).any():
        raise DataError(
            f"no validation rows: {len(division.training)} training rows cannot give "
            f"{fraction:g} of each class: try a larger --validation-split, or a cache with a "
            f"split {VALIDATION_SPLIT!r}"
        )
    if len(never := np.setdiff1d(np.arange(len(classes)), seen)):
        warn(f"no training rows, so never predicted: {_names(classes, never)}")


def _draw_groups(
    labels: NDArray[np.int64],
    groups: NDArray[np.bytes_],
    fraction: float,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Choose whole groups for validation: a mask (n,); see :func:`draw_validation`."""
    present, codes = np.unique(labels, return_inverse=True)
    names, members = np.unique(groups, return_inverse=True)
    class_sizes = np.bincount(codes)
    n_chosen = np.zeros(len(present), np.int64)
    is_chosen = np.zeros(len(names), bool)
    rows_of = np.split(np.argsort(members, kind="stable"), np.bincount(members).cumsum()[:-1])
    for group in rng.permutation(len(names)):
        touched, counts = np.unique(codes[rows_of[group]], return_counts=True)
        sizes, before = class_sizes[touched], n_chosen[touched]
        gain = (before / sizes - fraction) ** 2 - ((before + counts) / sizes - fraction) ** 2
        if gain.sum() > 0 and (before + counts < sizes).all():
            n_chosen[touched] += counts
            is_chosen[group] = True
    return is_chosen[members]


def _names(classes: Sequence[str], labels: NDArray[np.integer]) -> str:
    """Return the names of some classes, the first few of many."""
    most = 5
    shown = ", ".join(repr(classes[label]) for label in labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


def _in_brackets(text: str) -> str:
    """Return `` (text)``, or nothing."""
    return f" ({text})" if text else ""
