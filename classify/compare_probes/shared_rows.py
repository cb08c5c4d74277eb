"""Caches that hold the same rows: seen to do so, brought into one order, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.results.training import CacheFacts
from classify.selection.division import TRAINING_SPLIT, VALIDATION_SPLIT, Division, Part, divide
from classify.selection.leakage import LeftOut, rows_to_leave_out
from classify.selection.sealed_test import SealedTest, find_test_split
from classify.streams import Budget, Features, StreamedFeatures, streaming_budget
from classify.train_head.job import RowOptions, StreamOptions
from data_cache.cache import FeatureCache
from data_cache.console import say, warn
from data_cache.errors import CacheError, ParameterError
from data_cache.rows import Rows


@dataclass(frozen=True)
class Entrant:
    """A cache that takes part.

    Attributes
    ----------
    name : its file's name without the suffix, with folders in front where that is not enough
    facts : what a run keeps of it
    order : for each split that takes part, where its rows are in the first cache's order, (n,)
    n_features : of a row
    budget : what features may take of memory where they are streamed, None where they are not
    """

    name: str
    facts: CacheFacts
    order: Mapping[str, NDArray[np.int64]]
    n_features: int
    budget: Budget | None

    def features(self, cache: FeatureCache, split: str, rows: NDArray[np.int64] | slice) -> Any:
        """Return the features of rows of a split, counted as the first cache does: (m, d).

        They are in memory, or streamed from the cache, which must stay open then.
        """
        places = self.order[split][rows]
        if self.budget is None:
            return cache.take(split, places)
        return StreamedFeatures.of(cache, split, self.budget)[places]


@dataclass(frozen=True)
class ReadRows:
    """What one cache says of the rows: parts with features (n, d), test features or None."""

    training: Part
    validation: Part
    test: Features | None

    @cached_property
    def labeled(self) -> Part:
        """Training rows, followed by validation rows."""
        return self.training.join(self.validation)


@dataclass(frozen=True)
class SharedRows:
    """Rows that several caches hold alike.

    Attributes
    ----------
    entrants : the caches, in the order given
    division : the parts; in place of features, each row's position in its split
    test : its labels are under seal; None where it is left alone
    test_groups : (n,) of its rows, or None
    """

    entrants: tuple[Entrant, ...]
    division: Division
    test: SealedTest | None
    test_groups: NDArray[np.bytes_] | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.entrants[0].facts.classes

    def model_name(self, entrant: Entrant, probe: str) -> str:
        """Return what a probe on a cache is called: by the cache too where there are several."""
        return f"{entrant.name}:{probe}" if len(self.entrants) > 1 else probe

    def read(self, entrant: Entrant, streams: ExitStack) -> ReadRows:
        """Read the features that a cache has of the rows, or stream them until ``streams`` ends."""
        division = self.division
        chosen_from = TRAINING_SPLIT if division.drawn else VALIDATION_SPLIT
        split = self.test and self.test.split
        with ExitStack() as opened:
            cache = opened.enter_context(FeatureCache.open(entrant.facts.path))
            training = entrant.features(cache, TRAINING_SPLIT, division.training.features)
            validation = entrant.features(cache, chosen_from, division.validation.features)
            test = entrant.features(cache, split, slice(None)) if split else None
            if entrant.budget is not None:
                streams.push(opened.pop_all())
        return ReadRows(
            replace(division.training, features=training),
            replace(division.validation, features=validation),
            test,
        )


@dataclass(frozen=True)
class _Positions:
    """Splits whose features are the positions of their rows: divided before any are read."""

    path: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Rows]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits there are."""
        return tuple(self.splits)

    def rows(self, split: str) -> Rows:
        """Return what is known of the rows of a split."""
        return self.splits[split]

    def features(self, split: str) -> NDArray[np.int64]:
        """Return the positions (n,) of the rows of a split."""
        return np.arange(len(self.splits[split]))


def share_rows(paths: Sequence[Path], options: RowOptions) -> SharedRows:
    """See that caches hold the same rows, and divide these.

    Rows that any of the caches finds to be copies are left out of all.

    Raises
    ------
    ParameterError
        No cache is given, or one twice.
    CacheError
        Two caches differ in their classes, or in ids, labels or groups of the rows that take part.
    HeadstartError
        See :meth:`data_cache.cache.FeatureCache.open`, :func:`classify.selection.division.divide`
        and :func:`classify.selection.sealed_test.find_test_split`.
    """
    (shared,) = share_rows_of_seeds(paths, options, [options.seed]).values()
    division = shared.division
    say(f"{len(division.training):,} rows to train on, {len(division.validation):,} to validate on")
    return shared


def share_rows_of_seeds(
    paths: Sequence[Path], options: RowOptions, seeds: Sequence[int]
) -> dict[int, SharedRows]:
    """Return the rows as each seed divides them; see :func:`share_rows`."""
    entrants: list[Entrant] = []
    left_out: LeftOut = frozenset()
    for name, path in zip(short_names(paths), paths, strict=True):
        with FeatureCache.open(path, check="always" if options.verify else "once") as cache:
            if not entrants:
                split = find_test_split(cache, options.test_split)
                first = _read_first(cache, _splits(cache, options, split))
            _check_splits(cache, _splits(cache, options, split), first)
            entrants.append(_enter(name, cache, first, options))
            left_out |= rows_to_leave_out(
                cache, split, drop_leaks=options.drop_leaks, exclude=options.exclude
            )
    return {
        seed: _divide(tuple(entrants), first, left_out, replace(options, seed=seed), split)
        for seed in seeds
    }


def short_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return a name for each file: its stem, with folders in front where others have the same.

    Raises
    ------
    ParameterError
        There is no path, or one is given twice.
    """
    if not paths:
        raise ParameterError("no cache is given: expected one or more")
    whole = [path.resolve() for path in paths]
    if twice := [path for at, path in enumerate(whole) if path in whole[:at]]:
        raise ParameterError(f"{twice[0]} is given twice: give each cache once")
    stems = [path.with_suffix("").parts for path in whole]
    for depth in range(1, max(map(len, stems)) + 1):
        names = tuple("/".join(parts[-depth:]) for parts in stems)
        if len(set(names)) == len(names):
            return names
    return tuple(str(path) for path in whole)


def _splits(cache: FeatureCache, options: RowOptions, test_split: str | None) -> tuple[str, ...]:
    """Return the splits of a cache that take part."""
    wanted = [TRAINING_SPLIT]
    if test_split != VALIDATION_SPLIT:
        wanted.append(VALIDATION_SPLIT)
    if test_split is not None and not options.no_test:
        wanted.append(test_split)
    return tuple(split for split in wanted if split in cache.split_names)


def _read_first(cache: FeatureCache, splits: Sequence[str]) -> _Positions:
    """Return what the first cache, which the others are held against, says of splits."""
    return _Positions(cache.path, cache.classes, {split: cache.rows(split) for split in splits})


def _check_splits(cache: FeatureCache, splits: Sequence[str], first: _Positions) -> None:
    """Refuse a cache whose classes or splits are not those of the first."""
    if cache.classes != first.classes:
        raise CacheError(
            f"{cache.path} and {first.path} have different classes ({len(cache.classes)} and "
            f"{len(first.classes)}, or of other names): only caches of the same images compare"
        )
    if set(splits) != set(first.splits):
        raise CacheError(
            f"{cache.path} has the splits {', '.join(splits) or 'none'} where {first.path} has "
            f"{', '.join(first.splits)}: only caches of the same images, divided alike, compare"
        )


def _enter(name: str, cache: FeatureCache, first: _Positions, options: RowOptions) -> Entrant:
    """Return a cache as an entrant, after holding its rows against those of the first."""
    order = {split: _aligned(cache, split, first) for split in first.splits}
    facts = CacheFacts(cache.path, cache.classes, cache.recipe, cache.provenance)
    budget = None
    if isinstance(options, StreamOptions):
        budget = streaming_budget(cache, order, options.memory_limit)
    return Entrant(name, facts, order, cache.n_features, budget)


def _aligned(cache: FeatureCache, split: str, first: _Positions) -> NDArray[np.int64]:
    """Return where the rows of a split are, (n,), in the order of the first cache."""
    expected, found = first.splits[split], cache.rows(split)
    _check_ids(cache.path, split, first.path, (expected.ids, found.ids))
    order = np.empty(len(found), np.int64)
    order[np.argsort(expected.ids, kind="stable")] = np.argsort(found.ids, kind="stable")
    _check_told(cache.path, split, first.path, (expected, found.take(order)))
    return order


def _check_ids(path: Path, split: str, first: Path, ids: tuple[NDArray, NDArray]) -> None:
    """Refuse a split that has other ids than the first cache's."""
    expected, found = (np.unique(one) for one in ids)
    lacking, extra = np.setdiff1d(expected, found), np.setdiff1d(found, expected)
    if not (len(lacking) or len(extra)) and len(ids[0]) == len(ids[1]):
        return
    example = (*lacking[:1], *extra[:1], b"one of them twice")[0].decode()
    raise CacheError(
        f"{split} of {path} lacks {len(lacking):,} of the rows that {first} has, and has "
        f"{len(extra):,} others ({example}): only caches of the same images, divided alike, compare"
    )


def _check_told(path: Path, split: str, first: Path, told: tuple[Rows, Rows]) -> None:
    """Refuse rows of the same ids with other labels or groups; warn of other contents."""
    expected, found = told
    groups = [np.zeros(len(one), "S1") if one.groups is None else one.groups for one in told]
    differing = {"classes": expected.labels != found.labels, "groups": groups[0] != groups[1]}
    for what, differs in differing.items():
        if differs.any():
            raise CacheError(
                f"{int(differs.sum()):,} rows of {split} have other {what} in {path} than in "
                f"{first} (such as {expected.ids[differs.argmax()].decode()}): only caches of the "
                "same images compare"
            )
    if n_other := int((expected.content != found.content).any(axis=1).sum()):
        warn(
            f"{n_other:,} rows of {split} were read from other bytes for {path} than for {first}, "
            "under the same ids: make sure that these are the same images"
        )


def _divide(
    entrants: tuple[Entrant, ...],
    first: _Positions,
    left_out: LeftOut,
    options: RowOptions,
    split: str | None,
) -> SharedRows:
    """Divide the rows; the test's labels are put under seal."""
    test, groups = None, None
    if split is not None and split in first.splits:
        test = SealedTest(first, split, *(one.facts.path for one in entrants))
        groups = first.splits[split].groups
    learned = {name: rows for name, rows in first.splits.items() if name != split}
    division = divide(
        replace(first, splits=learned),
        fraction=options.validation_split,
        seed=options.seed,
        rare_class=options.rare_class,
        test_split=split,
        left_out=left_out,
    )
    return SharedRows(entrants, division, test, groups)
