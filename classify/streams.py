"""Features that stay on disk: read block by block, or shuffled window by window, ahead of need.

:class:`StreamedFeatures` takes the place of an array (n, d) where that would not fit in memory.
Rows are chosen and joined as an array's are, at 8 bytes a row; the features themselves are read
where they are used, a bounded number at a time, and every byte is checked as in any reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_cache.cache import FeatureCache
from data_cache.console import say
from data_cache.memory import available_bytes, parse_size
from data_cache.recipe import Recipe
from data_cache.rows import Rows

if TYPE_CHECKING:
    from sklearn.preprocessing import StandardScaler

_MOST_BLOCK_ROWS = 8192
_MOST_SHUFFLE_BLOCK = 1024
_BLOCKS_IN_A_WINDOW = 16
_Result = TypeVar("_Result")
_Value = TypeVar("_Value", bound=np.generic)

Places = NDArray[np.int64] | slice
"""Positions of rows, (m,), or the slice that they are."""


@dataclass(frozen=True)
class Budget:
    """How many bytes features may take at a time.

    A window takes an eighth: two are in memory, the one in use and the one that is read ahead,
    and each is made from a copy. A block of a pass in order takes a 32nd: its sums are in float64.
    """

    n_bytes: int

    def block_rows(self, n_features: int) -> int:
        """Return how many rows are read at a time in order, 1 or more."""
        return max(1, min(_MOST_BLOCK_ROWS, self.n_bytes // (32 * 4 * n_features)))

    def shuffle(self, n_features: int) -> WindowShuffle:
        """Return how rows are shuffled."""
        window = max(1, self.n_bytes // (8 * 4 * n_features))
        block = max(1, min(_MOST_SHUFFLE_BLOCK, window // _BLOCKS_IN_A_WINDOW))
        return WindowShuffle(block, window // block * block)

    def facts(self, n_features: int) -> dict[str, int]:
        """Return what decides the order of streamed rows, and so what is learned from them."""
        return {"n_bytes": self.n_bytes, **asdict(self.shuffle(n_features))}


def streaming_budget(
    cache: FeatureCache, splits: Iterable[str], memory_limit: str | None
) -> Budget | None:
    """Return what features of splits may take of memory where they are streamed, and say so.

    That is half of ``memory_limit``, a size such as ``2GB``, by default of what is available; None
    where they take no more than that, and so are read whole.

    Raises
    ------
    ParameterError
        The limit is no size.
    """
    n_bytes = available_bytes() if memory_limit is None else parse_size(memory_limit)
    needed = 4 * cache.n_features * sum(map(cache.n_rows, splits))
    if needed <= n_bytes // 2:
        return None
    budget = Budget(n_bytes // 2)
    window = budget.shuffle(cache.n_features).window_rows
    say(
        f"Features are streamed: those of {cache.path.name} take {needed / 1e9:,.3g} GB, more than "
        f"half of {n_bytes / 1e9:,.3g} GB; shuffled in windows of {window:,} rows"
    )
    return budget


@dataclass(frozen=True)
class WindowShuffle:
    """An order for each epoch in which only a window of rows need be in memory.

    The rows are cut into blocks of ``block_rows`` that follow one another. An epoch draws an order
    of the blocks, takes as many at a time as make ``window_rows``, and draws an order of the rows
    in each such window. So rows of one block stay together within a window, and blocks of any
    place meet in one.
    """

    block_rows: int
    window_rows: int

    def windows(self, seed: int, epoch: int, n: int) -> Iterator[NDArray[np.int64]]:
        """Yield the positions of an epoch (from 0), window by window; together all of 0..n-1."""
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
        blocks = rng.permutation(-(-n // self.block_rows))
        together = max(1, self.window_rows // self.block_rows)
        within = np.arange(self.block_rows)
        for start in range(0, len(blocks), together):
            firsts = blocks[start : start + together, None] * self.block_rows
            rows = (firsts + within).ravel()
            yield rng.permutation(rows[rows < n])

    def order(self, seed: int, epoch: int, n: int) -> NDArray[np.int64]:
        """Return the order of an epoch, (n,), for rows that are in memory."""
        return np.concatenate(list(self.windows(seed, epoch, n)))


@dataclass(frozen=True, eq=False)
class StreamedFeatures:
    """Features (n, d) float32 that are read when they are used; the caches stay open meanwhile.

    Attributes
    ----------
    splits : where the features are: whole splits of caches, one after another
    positions : (n,) int64, the rows, counted through all of those splits
    budget : how much of them may be in memory
    """

    splits: tuple[tuple[FeatureCache, str], ...]
    positions: NDArray[np.int64]
    budget: Budget

    @classmethod
    def of(cls, cache: FeatureCache, split: str, budget: Budget) -> StreamedFeatures:
        """Return all features of a split."""
        return cls(((cache, split),), np.arange(cache.n_rows(split)), budget)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows, n, and of features, d."""
        return len(self.positions), self.splits[0][0].n_features

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, chosen: Any) -> StreamedFeatures:
        """Return the rows that positions, a mask or a slice choose; nothing is read yet."""
        return StreamedFeatures(self.splits, self.positions[chosen], self.budget)

    def join(self, other: StreamedFeatures) -> StreamedFeatures:
        """Return these rows followed by the other's."""
        n_before = sum(cache.n_rows(split) for cache, split in self.splits)
        positions = np.concatenate([self.positions, other.positions + n_before])
        return StreamedFeatures((*self.splits, *other.splits), positions, self.budget)

    def read(self, rows: Places) -> NDArray[np.float32]:
        """Return the features of ``rows`` ((m,) positions among the n), (m, d) float32.

        Raises
        ------
        CacheCorruptError
            See :meth:`data_cache.cache.FeatureCache.take`.
        """
        wanted = self.positions[rows]
        if len(self.splits) == 1:
            (cache, split) = self.splits[0]
            return cache.take(split, wanted)
        features, start = np.empty((len(wanted), self.shape[1]), np.float32), 0
        for cache, split in self.splits:
            stop = start + cache.n_rows(split)
            here = (start <= wanted) & (wanted < stop)
            if here.any():
                features[here] = cache.take(split, wanted[here] - start)
            start = stop
        return features

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], Places]]:
        """Yield all features, some rows at a time, and which rows; read ahead.

        Rows come as they lie in the cache: any other order would read it many times over.
        """
        n, size = len(self), self.budget.block_rows(self.shape[1])
        slices = (slice(start, min(start + size, n)) for start in range(0, n, size))
        places = [one if self._as_stored is None else self._as_stored[one] for one in slices]
        yield from zip(read_ahead(self.read, places), places, strict=True)

    def in_order(self) -> Iterator[NDArray[np.float32]]:
        """Yield all features in the order of the rows, some rows at a time; read ahead."""
        n, size = len(self), self.budget.block_rows(self.shape[1])
        yield from read_ahead(self.read, (slice(at, at + size) for at in range(0, n, size)))

    def epoch(
        self, shuffle: WindowShuffle, seed: int, number: int
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield the rows of an epoch window by window, shuffled: features and positions.

        Blocks that the shuffle keeps together are of rows that lie together in the cache.
        """
        windows = shuffle.windows(seed, number, len(self))
        if self._as_stored is not None:
            windows = (self._as_stored[rows] for rows in windows)
        yield from read_ahead(lambda rows: (self.read(rows), rows), windows)

    @cached_property
    def _as_stored(self) -> NDArray[np.int64] | None:
        """The rows, (n,), in the order in which they lie in the cache; None where they do."""
        if (np.diff(self.positions) >= 0).all():
            return None
        return np.argsort(self.positions, kind="stable")


@dataclass(frozen=True)
class StreamedSplits:
    """A cache whose features are streamed; its rows are divided as any cache's are."""

    cache: FeatureCache
    budget: Budget

    @property
    def path(self) -> Path:
        """The cache's file."""
        return self.cache.path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.cache.classes

    @property
    def recipe(self) -> Recipe:
        """What made the features."""
        return self.cache.recipe

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits there are."""
        return self.cache.split_names

    def rows(self, split: str) -> Rows:
        """Return what is known of the rows of a split."""
        return self.cache.rows(split)

    def features(self, split: str) -> StreamedFeatures:
        """Return the features of a split, not read yet."""
        return StreamedFeatures.of(self.cache, split, self.budget)


Splits = FeatureCache | StreamedSplits
"""A cache whose features are read whole, or streamed."""

Features = NDArray[np.float32] | StreamedFeatures
"""Features (n, d), in memory or on disk."""


def feature_blocks(features: Features) -> Iterator[tuple[NDArray[np.float32], Places]]:
    """Yield features (n, d) with their rows: in one piece where they are in memory."""
    if isinstance(features, StreamedFeatures):
        yield from features.blocks()
    else:
        yield features, slice(0, len(features))


def map_rows(
    function: Callable[[NDArray[np.float32]], NDArray[_Value]], features: Features
) -> NDArray[_Value]:
    """Return what ``function`` makes of features, a row of (n, ...) for each, in their order."""
    if not isinstance(features, StreamedFeatures):
        return function(features)
    mapped = None
    for block, rows in features.blocks():
        found = function(block)
        if mapped is None:
            mapped = np.empty((len(features), *found.shape[1:]), found.dtype)
        mapped[rows] = found
    return function(features.read(slice(0))) if mapped is None else mapped


def fit_scaler(features: Features) -> StandardScaler:
    """Return the mean and standard deviation of each feature, in float64, from one pass."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for block, _ in feature_blocks(features):
        scaler.partial_fit(block)
    return scaler


def join_features(first: Features, second: Features) -> Any:
    """Return features followed by others of the same kind."""
    if isinstance(first, StreamedFeatures) and isinstance(second, StreamedFeatures):
        return first.join(second)
    return np.concatenate([np.asarray(first), np.asarray(second)])


def read_ahead(
    read: Callable[[Any], _Result], places: Iterable[Any], n_ahead: int = 1
) -> Iterator[_Result]:
    """Yield what ``read`` returns for each place, the next of them read in the meantime."""
    with ThreadPoolExecutor(1) as reader:
        pending = []
        for place in places:
            pending.append(reader.submit(read, place))
            if len(pending) > n_ahead:
                yield pending.pop(0).result()
        for one in pending:
            yield one.result()


def cut_batches(
    windows: Iterable[Sequence[NDArray[Any]]], batch_size: int
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield batches of rows from windows of rows, each some columns of one length.

    A batch takes its rows from two windows where the first ends in the middle of it; only the last
    may be smaller.
    """
    rest: tuple[NDArray[Any], ...] = ()
    for window in windows:
        columns = tuple(window)
        if rest:
            n_lacking = batch_size - len(rest[0])
            pairs = zip(rest, columns, strict=True)
            rest = tuple(np.concatenate([a, b[:n_lacking]]) for a, b in pairs)
            if len(rest[0]) < batch_size:
                continue
            yield rest
            columns = tuple(column[n_lacking:] for column in columns)
        n_whole = len(columns[0]) // batch_size * batch_size
        for at in range(0, n_whole, batch_size):
            yield tuple(column[at : at + batch_size] for column in columns)
        rest = tuple(column[n_whole:].copy() for column in columns)
        rest = rest if len(rest[0]) else ()
    if rest:
        yield rest
